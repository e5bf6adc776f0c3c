"""How large a batch may be for which memory does not suffice, and when to try a larger one.

::

    state       a batch fits                            a batch does not fit
    ---------   -------------------------------------   --------------------------------------
    searching   after PATIENCE full ones: doubled, or   the half of it is the limit; but the old
                half way to what did not fit            limit if only a larger one was tried, and
    next to     after as many as it takes: that         then twice as many must fit before another
    what did    is tried; if it fits, nothing is        one is tried, up to PATIENCE_MAX
    not fit     known to be too large any more
    one call    -                                       the input is too large, not the batch: the
                                                        limit of before this batch is restored

Full is a batch as large as the limit; smaller ones say nothing. A limit that has come back to
`max_batch_size`, and fitted there, is over.
"""

from __future__ import annotations

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
    return isinstance(error, MemoryError) or any(
        (each.__module__, each.__qualname__) in _OUT_OF_MEMORY for each in type(error).__mro__
    )


class MemoryLimit:
    """The limit of one function, from the first batch that did not fit until it `is_over`.

    Args:
        most: calls in a batch, were there memory enough.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = most
        self._before: int | None = None  # what it was when the batch that is in pieces did not fit
        self._fitted: int | None = None  # so many calls do, lately; never more than the limit
        self._too_large: int | None = None  # so many do not
        self._full = 0  # batches in a row
        self._patience = PATIENCE

    @property
    def is_over(self) -> bool:
        """Whether there is memory enough again."""
        return self._fitted == self.most

    def exceeded(self, size: int) -> None:
        """A batch of *size* calls did not fit."""
        if self._before is None:
            self._before = self.limit
        self._full = 0
        if size == 1:
            self.limit, self._too_large = self._before, None
            return
        self._too_large = size
        if self._fitted is not None and self._fitted < size:
            self.limit = min(self.limit, self._fitted)
            self._patience = min(2 * self._patience, PATIENCE_MAX)
        else:
            self.limit = min(self.limit, size // 2)
        self._fitted = None

    def settled(self) -> None:
        """No batch is in pieces any more."""
        self._before = None

    def fitted(self, size: int) -> None:
        """A batch of *size* calls did fit."""
        if self._too_large is not None and size >= self._too_large:
            self._too_large = None
            self._patience = PATIENCE
        if size < self.limit:
            return
        self._fitted = self.limit
        self._full += 1
        if self._full < self._patience or self.limit == self.most:
            return
        self._full = 0
        wanted = 2 * self.limit
        if self._too_large is not None:
            # Half way, and at last just what had not fitted.
            wanted = max(self.limit + 1, (self.limit + self._too_large) // 2)
        self.limit = min(wanted, self.most)
