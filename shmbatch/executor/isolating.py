"""Which part of a failed batch is run next, until every call has an outcome. No clock, no memory.

A batch is halved, and its first half runs. What happens to the other half follows from that::

    the first half       the other half
    ------------------   ---------------------------------------------------------------------
    raised               is run: there may be bad inputs in both
    succeeded            must be where the batch failed: it is halved at once, and not run whole;
                         a single call is run, for an exception of its own
    needs more memory    is run, in parts as large as there is memory for

The first half is the smaller one. So k bad inputs of n take at most 2 k log2(n) + 1 executions,
that of the whole batch included, for any n; run at every turn, or the larger half first, they
would take more where n is no power of two. No call is given an error without having been run
alone, so a function that fails now and then is worth more executions, and nobody's outcome.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class Rows(Protocol):
    """Some calls of a batch, in their order; `Batch` is one."""

    @property
    def count(self) -> int: ...

    def split(self, at: int, /) -> Rows:
        """Move those from *at* on into another such object."""


R = TypeVar("R", bound=Rows)


class Parts(Generic[R]):
    """What is left to be run of one batch. Each part that `next` returns is reported on."""

    def __init__(self) -> None:
        self._waiting: list[R] = []  # the next one is the last
        # One of these: the other half of all that has been run since it was split off, as long as
        # that has succeeded.
        self._suspect: R | None = None

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return bool(self._waiting)

    def next(self, most: int) -> R:
        """Return what is to be run now, at most so many calls."""
        part = self._waiting.pop()
        if part.count > most:
            self._waiting.append(part.split(most))  # type: ignore[arg-type]
        return part

    def raised(self, part: R) -> None:
        """The function raised for a part of several calls; none of them has an outcome."""
        self._halve(part)

    def too_large(self, part: R) -> None:
        """There was no memory for a part of several calls; none of them has an outcome."""
        self._suspect = None
        self._waiting.append(part)

    def succeeded(self) -> None:
        """The function returned for the part that was run last."""
        suspect = self._suspect
        if suspect is None or self._waiting[-1] is not suspect:
            return
        self._suspect = None
        if suspect.count > 1:
            self._halve(self._waiting.pop())

    def unsure(self) -> None:
        """The part that was run last has outcomes of which nothing follows for others."""
        self._suspect = None

    def _halve(self, part: R) -> None:
        rest: R = part.split(part.count // 2)  # type: ignore[assignment]
        self._waiting += (rest, part)
        self._suspect = rest
