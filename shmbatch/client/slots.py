"""Who gets the next free slot of a connection: whoever has waited longest.

Threads and event loops' tasks stand in one queue. Calls are submitted and polled through
`Slots.entrance`, which is the ring itself while nobody queues: calls that find a slot at once pay
for none of this. While somebody queues, the ring is told, so that the core leaves calls to Python,
and `Queueing` stands there. Its `submit` says that the ring is full, even if it is not, so a
newcomer joins the queue instead of jumping it; and its `poll` tells the first in the queue of the
slot that it has just put back.

Whoever is told tries, in place, and leaves the queue when the call is published. A task cannot try
while its event loop does not run. So that nobody waits for it for ever, the first thread, and the
first task of each event loop, look for themselves once a slice, whoever is before them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from ..protocol._core import LOOP, SUBMIT_FULL, ProducerRing


class Waiter(Protocol):
    """Somebody in the queue."""

    @property
    def kind(self) -> object:
        """The event loop; None for a thread."""

    def wake(self) -> bool:
        """Have it look again; from any thread, and before it sleeps, too.

        False if it never will: its event loop is closed.
        """


class WaitingThread:
    """A thread in the queue. The first one sleeps on the completion word, the others here."""

    kind = None

    def __init__(self, wake_completions: Callable[[], None]) -> None:
        self._wake_completions = wake_completions
        self._told = threading.Lock()
        self._told.acquire()
        self.on_completions = False

    def wake(self) -> bool:
        try:
            self._told.release()
        except RuntimeError:
            pass  # it has been told already
        if self.on_completions:
            self._wake_completions()
        return True

    def sleep(self, timeout_s: float) -> None:
        """Sleep until woken; a negative time is for ever."""
        self._told.acquire(timeout=timeout_s)


class Slots:
    """The slots of one connection, as those see them who want one."""

    def __init__(self, ring: ProducerRing) -> None:
        self.entrance: ProducerRing | Queueing = ring
        self._ring = ring
        # Held for moments; by the same thread twice if the garbage collector drops a call in one.
        self._mutex = threading.RLock()
        self._queue: list[Waiter] = []
        self._tasks = 0  # of the queue

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    def join(self, waiter: Waiter) -> None:
        """Put *waiter* at the end of the queue."""
        with self._mutex:
            if waiter.kind is not None:
                if self._tasks == 0:
                    self._ring.join_completions(LOOP)  # or the executor would tell threads only
                self._tasks += 1
            self._queue.append(waiter)
            self.entrance = Queueing(self, self._ring)
            self._ring.queueing = True

    def leave(self, waiter: Waiter) -> None:
        """Take *waiter* out of the queue, and tell whoever is concerned. Idempotent."""
        if self._ring.forked:
            return  # the queue is the parent's, and so may be the mutex
        with self._mutex:
            if waiter not in self._queue:
                return
            self._queue.remove(waiter)
            if not self._queue:
                self._ring.queueing = False
                self.entrance = self._ring
            if waiter.kind is not None:
                self._tasks -= 1
                if self._tasks == 0:
                    self._ring.leave_completions(LOOP)
            first = self._first(waiter.kind)
        if first is not None:
            self._wake(first)  # it may be the first of its kind only now
        self.tell()

    def is_first(self, waiter: Waiter) -> bool:
        """Say whether *waiter* is the first thread, or the first task of its event loop."""
        return self._first(waiter.kind) is waiter

    def is_next(self, waiter: Waiter) -> bool:
        """Say whether there is a slot for *waiter* beside those for whoever is before it."""
        return self._queue.index(waiter) < self._ring.free_slots

    def tell(self) -> None:
        """Wake as many of the first as there are slots."""
        if self._queue and not self._ring.forked:
            for waiter in self._queue[: self._ring.free_slots]:
                self._wake(waiter)

    def tell_all(self) -> None:
        """Wake everybody: there may never be a slot again."""
        for waiter in self._queue[:]:
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        if not waiter.wake():
            self.leave(waiter)

    def _first(self, kind: object) -> Waiter | None:
        return next((waiter for waiter in self._queue[:] if waiter.kind is kind), None)


class Queueing:
    """What takes the ring's place while somebody waits for a slot."""

    def __init__(self, slots: Slots, ring: ProducerRing) -> None:
        self._slots = slots
        self._ring = ring

    def submit(self, values: tuple[Any, ...], flags: int, deadline_ns: int = 0) -> int:
        return SUBMIT_FULL

    def reserve(self, tell: Callable[[], object]) -> int:
        return SUBMIT_FULL

    def poll(self, ticket: int, spin_ns: int) -> Any:
        try:
            return self._ring.poll(ticket, spin_ns)
        finally:
            self._slots.tell()
