"""How large a batch may be for which memory does not suffice, and when to try a larger one.

::

    state       a batch fits                            a batch does not fit
    ---------   -------------------------------------   --------------------------------------
    searching   after PATIENCE full ones: doubled, or   the half of it is the limit; but the old
                half way to what did not fit            limit if only a larger one was tried, and
    next to     after as many as it takes: that         then twice as many must fit before another
    what did    is tried; if it fits, nothing is        one is tried, up to PATIENCE_MAX
    not fit     known to be too large any more
    one call    -                                       the input is too large, not the batch: all
                                                        is as it was before this batch

Full is a batch as large as the limit; smaller ones say nothing. A limit that has come back to
`max_batch_size`, and fitted there, is over.

Where `batch_sizes` says which sizes there are, all that counts is those: a batch is as large as it
is with its padding, and the limit is the next allowed size in the same direction. Below the
smallest it is halved on, since one input may be to blame.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from ..contract.sizes import padded_size

PATIENCE = 8  # full batches, before a larger one is tried
PATIENCE_MAX = 4096

# By class path, so that torch need not be there: what it is called now, and was before 2.5.
_OUT_OF_MEMORY = {
    ("torch", "OutOfMemoryError"),
    ("torch.cuda", "OutOfMemoryError"),
    ("torch._C", "OutOfMemoryError"),
}


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether *error* is Python's or torch's for memory that was not to be had."""
    cls = type(error)
    try:
        return issubclass(cls, MemoryError) or any(
            (each.__module__, each.__qualname__) in _OUT_OF_MEMORY for each in cls.__mro__
        )
    except BaseException:  # a user's class may have anything in these places
        return False


class _State(NamedTuple):
    """What is known."""

    limit: int
    fitted: int | None = None  # so many calls do, lately; never more than the limit
    too_large: int | None = None  # so many do not
    full: int = 0  # batches in a row
    patience: int = PATIENCE


class MemoryLimit:
    """The limit of one function, from the first batch that did not fit until it `is_over`.

    Args:
        most: calls in a batch, were there memory enough.
        sizes: the allowed ones, increasing; None for all.
    """

    def __init__(self, most: int, sizes: tuple[int, ...] | None = None) -> None:
        self.most = most
        self._sizes = None
        if sizes is not None:
            self._sizes = (*(size for size in sizes if size < most), most)
        self._state = _State(most)
        self._before: _State | None = None  # of the batch that is in parts

    @property
    def limit(self) -> int:
        """The most calls that a batch may have now."""
        return self._state.limit

    @property
    def is_over(self) -> bool:
        """Whether there is memory enough again, or always was: nothing says otherwise."""
        fitted = self._state.fitted
        return fitted == self.most or (self._before is None and self._state == _State(self.most))

    def exceeded(self, size: int) -> None:
        """A batch of *size* calls did not fit."""
        state = self._state
        if self._before is None:
            self._before = state
        if size == 1:
            self._state = self._before
            return
        rows = self._rows(size)
        if state.fitted is not None and state.fitted < rows:
            limit, patience = state.fitted, min(2 * state.patience, PATIENCE_MAX)
        else:
            limit, patience = self._below(size), state.patience
        limit = min(state.limit, limit)
        self._state = _State(limit, too_large=rows, patience=patience)

    def settled(self) -> None:
        """No batch is in parts any more."""
        self._before = None

    def fitted(self, size: int) -> None:
        """A batch of *size* calls did fit."""
        rows = self._rows(size)
        limit, fitted, too_large, full, patience = self._state
        if too_large is not None and rows >= too_large:
            too_large, patience = None, PATIENCE
        if rows >= limit:
            fitted, full = limit, full + 1
            if full >= patience and limit < self.most:
                full = 0
                wanted = 2 * limit
                if too_large is not None:
                    # Half way, and at last just what had not fitted.
                    wanted = max(limit + 1, (limit + too_large) // 2)
                limit = self._above(limit, wanted)
        self._state = _State(limit, fitted, too_large, full, patience)

    def _rows(self, size: int) -> int:
        """Return how large a batch of *size* calls is."""
        return size if self._sizes is None else padded_size(self._sizes, size)

    def _below(self, size: int) -> int:
        """Return what to try where *size* calls do not fit: about the half of their batch."""
        if self._sizes is None:
            return size // 2
        rows = padded_size(self._sizes, size)
        smaller = self._sizes[: bisect_left(self._sizes, rows)]
        if not smaller:
            return size // 2
        return smaller[max(0, bisect_right(smaller, rows // 2) - 1)]

    def _above(self, limit: int, wanted: int) -> int:
        """Return what to try instead of *limit*: about *wanted*."""
        if self._sizes is None:
            return min(wanted, self.most)
        at = bisect_right(self._sizes, limit)  # the first that is larger
        return self._sizes[max(at, bisect_right(self._sizes, wanted) - 1)]
