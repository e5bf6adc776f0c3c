"""When a batch is due, and what goes first. No clock, no I/O, no memory.

A `Batcher` is told what waits and what time it is, and answers; it never looks for itself.

::

    waiting calls           draining   oldest waits         due
    ---------------------   --------   ------------------   --------
    none                    any        -                    no
    max_batch_size or more  any        any                  SIZE
    fewer                   any        wait_ns or longer    DEADLINE
    fewer                   yes        less                 DRAIN
    fewer                   no         less                 no

The clock of a call starts when its producer published it; later calls never move it. Being due
is not enough: a batch is sealed only when it can be launched, and until then it keeps filling.

I4  When something is due and the executor can launch, a batch launches at once.
"""

from __future__ import annotations

import enum

NEVER_NS = 1 << 63  # later than any deadline


class SealReason(enum.Enum):
    """Why a batch stopped filling."""

    SIZE = "size"
    DEADLINE = "deadline"
    DRAIN = "drain"

    __hash__ = object.__hash__  # Enum's own is written in Python; this is counted every batch


# Looking a member up in its class is slow enough to notice, and is done every turn.
_SIZE, _DEADLINE, _DRAIN = SealReason


class Batcher:
    """Decides for one function.

    Args:
        max_batch_size: most calls in a batch (I1).
        wait_ns: how long the oldest call waits for company.
    """

    __slots__ = ("_full_since_ns", "due_ns", "max_batch_size", "missing", "reason", "wait_ns")

    def __init__(self, max_batch_size: int, wait_ns: int) -> None:
        self.max_batch_size = max_batch_size
        self.wait_ns = wait_ns
        self._full_since_ns = NEVER_NS
        # Why a batch is due now, or None; since when, or when it will be; and how many calls
        # more would make it due at once.
        self.reason: SealReason | None = None
        self.due_ns = NEVER_NS
        self.missing = max_batch_size

    def observe(self, waiting: int, oldest_ns: int, now_ns: int, draining: bool) -> None:
        """Set `reason`, `due_ns` and `missing` for what waits now."""
        self.missing = self.max_batch_size - waiting
        if waiting == 0:
            self.reason = None
            self.due_ns = self._full_since_ns = NEVER_NS
            return
        deadline_ns = oldest_ns + self.wait_ns
        if waiting >= self.max_batch_size:
            if self._full_since_ns == NEVER_NS:
                self._full_since_ns = now_ns
            self.reason = _SIZE
            since_ns = self._full_since_ns
            self.due_ns = deadline_ns if deadline_ns < since_ns else since_ns
            return
        self._full_since_ns = NEVER_NS
        self.due_ns = deadline_ns
        if deadline_ns <= now_ns:
            self.reason = _DEADLINE
        elif draining:
            self.reason = _DRAIN
            self.due_ns = now_ns
        else:
            self.reason = None

    def sealed(self) -> SealReason:
        """A batch has just been taken; say why. What is left is full, if at all, since later."""
        assert self.reason is not None, "only what is due is sealed"
        self._full_since_ns = NEVER_NS
        return self.reason
