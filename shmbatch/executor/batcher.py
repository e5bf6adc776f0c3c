"""When a batch is due, and why. No clock, no I/O, no memory.

A `Batcher` is told what waits and what time it is, and answers; it never looks for itself.

::

    waiting calls           absent   draining   oldest waits         due
    ---------------------   ------   --------   ------------------   --------
    none                    any      any        -                    no
    max_batch_size or more  any      any        any                  SIZE
    fewer                   nobody   any        any                  ALL
    fewer                   some     any        wait_ns or longer    DEADLINE
    fewer                   some     yes        less                 DRAIN
    fewer                   some     no         less                 no

Absent is, in lockstep, how many calls are still to come until every producer has as many
outstanding as lately it had at most: where nobody is, there is nobody to wait for. Without
lockstep nobody knows who will call, and some always are.

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
    ALL = "all"
    DEADLINE = "deadline"
    DRAIN = "drain"

    __hash__ = object.__hash__  # Enum's own is written in Python; this is counted every batch


# Looking a member up in its class is slow enough to notice, and is done every turn.
_SIZE, _ALL, _DEADLINE, _DRAIN = SealReason


class Batcher:
    """Decides for one function.

    Args:
        max_batch_size: most calls in a batch (I1).
        wait_ns: how long the oldest call waits for company.
        lockstep: a batch is also due when nobody is left to wait for.
    """

    __slots__ = (
        "_ripe_since_ns",
        "due_ns",
        "lockstep",
        "max_batch_size",
        "missing",
        "reason",
        "wait_ns",
    )

    def __init__(self, max_batch_size: int, wait_ns: int, lockstep: bool = False) -> None:
        self.max_batch_size = max_batch_size
        self.wait_ns = wait_ns
        self.lockstep = lockstep
        self._ripe_since_ns = NEVER_NS  # since when SIZE or ALL has held without a break
        # Why a batch is due now, or None; since when, or when it will be; and how many calls
        # more, at least, would make it due at once.
        self.reason: SealReason | None = None
        self.due_ns = NEVER_NS
        self.missing = max_batch_size

    def observe(
        self, waiting: int, oldest_ns: int, now_ns: int, draining: bool, absent: int = 0
    ) -> None:
        """Set `reason`, `due_ns` and `missing` for what waits now.

        Args:
            absent: as of `Inbox`; of no account without lockstep.
        """
        missing = self.max_batch_size - waiting
        if self.lockstep and absent < missing:
            missing = absent
        if waiting == 0:
            self.missing = missing or 1
            self.reason = None
            self.due_ns = self._ripe_since_ns = NEVER_NS
            return
        self.missing = missing
        deadline_ns = oldest_ns + self.wait_ns
        if missing <= 0:
            if self._ripe_since_ns == NEVER_NS:
                self._ripe_since_ns = now_ns
            self.reason = _SIZE if waiting >= self.max_batch_size else _ALL
            since_ns = self._ripe_since_ns
            self.due_ns = deadline_ns if deadline_ns < since_ns else since_ns
            return
        self._ripe_since_ns = NEVER_NS
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
        self._ripe_since_ns = NEVER_NS
        return self.reason
