"""How a simulated executor waits: not at all; time passes until the next thing that happens.

The bell is the real one, so a wake-up that the protocol does not send does not come here either.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from typing import Any

from ..executor.batcher import NEVER_NS
from ..executor.loop import IDLE_NS
from ..executor.poller import SLICE_NS
from ..protocol import layout
from ..protocol._core import PARKED, Bell
from .clock import VirtualClock
from .events import VirtualEvents

_RING = 4  # what a ring of the bell adds to its word


class Paused(BaseException):
    """Nothing happens until the time that was asked for; the loop can be run again."""


class Watcher:
    """What is told of a simulation as it goes on, to hold it against what is promised."""

    def launching(self, function: int) -> None:
        """A batch is about to be taken of what waits."""

    def launched(self, flight: Any, inputs: tuple[Any, ...]) -> None:
        """The function is about to run, on *inputs*."""

    def completed(self, function: int, halved: bool) -> None:
        """The outcomes of the oldest batch have been published, or it will run again in halves."""

    def waits(self, until_ns: int) -> None:
        """The executor does nothing until then, unless it is woken."""


class VirtualPoller:
    """Stands in the place of the executor's `Poller`.

    Args:
        finished: says whether an async function is done whose results wait to be delivered.
    """

    def __init__(
        self, clock: VirtualClock, watcher: Watcher, finished: Callable[[], bool]
    ) -> None:
        self.memory = mmap.mmap(-1, layout.BELL_NBYTES)
        self.bell = Bell(self.memory)
        self.spin_ns = 0  # it spins so long before it parks
        self.until_ns: int | None = None  # then it pauses; None: when nothing is left to happen
        self._clock = clock
        self._watcher = watcher
        self._finished = finished
        self._woken = False
        self._rung = False  # by the executor itself, since it began to spin

    def woken(self, sleeping: int) -> None:
        """A producer wakes the executor, as the protocol has told it to."""
        self._woken = True

    def wake(self) -> None:
        self._rung = True
        if self.bell.ring():
            self._woken = True

    def spin(self, seen: int, until_ns: int, calls: int) -> int:
        end_ns = min(until_ns, self._clock.now_ns + self.spin_ns)
        word = self.bell.look()
        if word != seen:
            return word
        self._rung = False
        while self._clock.now_ns < end_ns:
            self._pass(end_ns)
            word = self.bell.look()
            if self._rung or (word - seen) // _RING >= calls:
                return word
        return seen

    def park(self, seen: int, until_ns: int, calls: int) -> int:
        if until_ns <= self._clock.now_ns:
            return self.bell.look()
        end_ns = until_ns
        if until_ns < NEVER_NS:
            end_ns = min(until_ns, self._clock.now_ns + SLICE_NS)
        if self.bell.arm(seen, PARKED, calls):
            self._woken = False
            try:
                while not self._woken and self._clock.now_ns < end_ns:
                    self._pass(end_ns)
            finally:
                self.bell.disarm()
        return self.bell.look()

    def wait_in_loop(
        self, events: asyncio.AbstractEventLoop, seen: int, until_ns: int, calls: int
    ) -> int:
        assert isinstance(events, VirtualEvents)
        self._clock.move(self._clock.now_ns)  # what is to happen now happens before time passes
        events.settle()
        if until_ns > IDLE_NS and not self._finished():
            # Every action may have made a suspended function go on.
            happens_ns = min(until_ns, events.next_ns, self._clock.next_ns)
            self.park(seen, happens_ns, calls)
        return self.bell.look()

    def _pass(self, end_ns: int) -> None:
        """Let time pass until the next thing that happens, or until *end_ns*."""
        if self._clock.troubles:
            raise Paused  # for good
        next_ns = min(end_ns, self._clock.next_ns)
        if self.until_ns is not None and next_ns > self.until_ns:
            self._watcher.waits(self.until_ns)
            self._clock.move(self.until_ns)
            raise Paused
        if next_ns >= NEVER_NS:
            raise Paused
        self._watcher.waits(next_ns)
        self._clock.move(next_ns)
