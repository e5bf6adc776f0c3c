"""Whether a batch that failed is run again in parts, and which run takes its next part.

::

    what failed                        retried where the function is
    --------------------------------   -----------------------------
    the function raised                on_error="isolate"
    out of memory in the function      idempotent
    out of memory while staging        any: nothing has run
    it returned what is no result      none: that is everybody's outcome

A batch in parts keeps its run, and no other batch of its function is launched meanwhile. Parts
are due when they are known, so functions that were due before them go first. Whatever the function
raised counts, SystemExit too: the executor does not end by it, and batch-mates must not suffer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypedDict

from ..contract.failing import FailureOptions
from .isolating import Parts
from .memory_limit import MemoryLimit, is_out_of_memory

if TYPE_CHECKING:
    from ..protocol._core import Batch
    from .batcher import Batcher
    from .runner import Run


class RetryCounts(TypedDict):
    """As of `FunctionCounts`."""

    halved: int
    out_of_memory: int
    memory_limit: int | None


class Retries:
    """The batches of one function that are in parts, and the limit that memory sets.

    Args:
        batcher: is told of that limit.
        sizes: the allowed ones of a batch; None for all.
    """

    def __init__(
        self, failing: FailureOptions, batcher: Batcher, sizes: tuple[int, ...] | None = None
    ) -> None:
        self.active = False  # a batch is in parts, or there is a limit
        self.in_pieces = 0  # batches
        self.waiting: deque[Run] = deque()  # those of them of which no part is in flight
        self.due_ns = 0  # since when the first of them is; 0: the loop has not seen it yet
        self.halved = 0  # executions that failed, so far, and whose calls were run again
        self.out_of_memory = 0  # executions, so far
        self.limit: MemoryLimit | None = None
        self._isolates = failing.on_error == "isolate"
        self._idempotent = failing.idempotent
        self._batcher = batcher
        self._sizes = sizes

    def takes(self, run: Run) -> bool:
        """Say whether a failed run is to go on in parts; if so it waits for its turn."""
        assert run.error is not None
        count, parts = run.batch.count, run.parts
        if is_out_of_memory(run.error):
            self.out_of_memory += 1
            if run.failed_in == "staging" or self._idempotent:
                self._exceeded(count)
                if count > 1:
                    parts = self._parts_of(run)
                    parts.too_large(run.batch)
                    return self._wait(run)
        elif self._isolates and run.failed_in == "running" and count > 1:
            parts = self._parts_of(run)
            parts.raised(run.batch)
            return self._wait(run)
        if parts is not None:
            parts.unsure()
        return False

    def next(self) -> Run:
        """Return the run that goes on, its batch the part that is to be run now.

        Calls that were given up meanwhile are not in it; there may be none left.
        """
        run = self.waiting.popleft()
        self.due_ns = 0
        assert run.parts is not None
        run.batch = run.parts.next(self._batcher.max_batch_size)
        count = run.batch.count
        if run.batch.drop_abandoned() < count:
            run.parts.unsure()
        return run

    def delivered(self, run: Run, count: int) -> bool:
        """Part of a batch, or a whole one, has its outcomes; say whether its run is free."""
        fine, parts = run.error is None, run.parts
        if fine and count and self.limit is not None:
            self._fitted(count)
        if parts is not None:
            if fine and count and parts:
                parts.succeeded()
            if parts:
                self.waiting.append(run)
                return False
            run.parts, run.batch = None, run.home
            self.in_pieces -= 1
        if not self.in_pieces and self.limit is not None:
            self.limit.settled()
            self._forget()
        self.active = self.in_pieces > 0 or self.limit is not None
        return True

    def counts(self) -> RetryCounts:
        """Return what was counted; for any thread."""
        limit = self.limit
        return {
            "halved": self.halved,
            "out_of_memory": self.out_of_memory,
            "memory_limit": None if limit is None else limit.limit,
        }

    def _parts_of(self, run: Run) -> Parts[Batch]:
        if run.parts is None:
            run.parts = Parts()
            self.in_pieces += 1
        return run.parts

    def _wait(self, run: Run) -> bool:
        self.active = True
        self.halved += 1
        self.waiting.append(run)
        return True

    def _exceeded(self, size: int) -> None:
        if self.limit is None:
            self.limit = MemoryLimit(self._batcher.max_batch_size, self._sizes)
            self.active = True
        self.limit.exceeded(size)
        self._batcher.max_batch_size = self.limit.limit

    def _fitted(self, size: int) -> None:
        assert self.limit is not None
        self.limit.fitted(size)
        self._batcher.max_batch_size = self.limit.limit
        self._forget()

    def _forget(self) -> None:
        """Drop the limit if it is over."""
        if self.limit is not None and self.limit.is_over:
            self.limit = None
