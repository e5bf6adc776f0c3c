"""An event loop whose timers follow a virtual clock: no thread, no socket, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..executor.batcher import NEVER_NS
from .clock import VirtualClock

_ROUNDS = 1000  # of tasks that only let others go first, before time passes all the same


class VirtualEvents(asyncio.BaseEventLoop):
    """Runs what async functions await of asyncio's own: sleeps, events, tasks, timeouts.

    A thread that a function asks for, as by ``asyncio.to_thread``, runs here and now. Sockets and
    processes there are none.

    Raises:
        ConfigError: an event loop runs in this thread, which cannot run another one meanwhile.
    """

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        if asyncio._get_running_loop() is not None:
            self.close()
            raise ConfigError(
                "an async function cannot be simulated from inside an event loop; do it in a "
                "plain test, not in an async one"
            )
        self._clock = clock
        self._selector = _NothingToSelect(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now_ns / 1e9

    @property
    def next_ns(self) -> int:
        """When the next timer fires; `NEVER_NS` if there is none."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        live = [timer.when() for timer in timers if not timer.cancelled()]
        return round(min(live) * 1e9) if live else NEVER_NS

    def settle(self) -> None:
        """Run everything that can run without time passing."""
        for _ in range(_ROUNDS):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready and self.next_ns > self._clock.now_ns:  # type: ignore[attr-defined]
                break

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def pass_time(self, seconds: float | None) -> None:
        """Wait for a timer as the real loop would, asleep; of that only time passes."""
        if seconds is None:
            raise ConfigError(
                "an async function awaits something that never comes in a simulation; "
                "it can await what asyncio itself has, but no sockets, processes or threads"
            )
        if seconds > 0:
            self._clock.move(self._clock.now_ns + round(seconds * 1e9))

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass  # whoever calls us is not another thread


class _NothingToSelect:
    """What stands in the place of a selector, which is how asyncio's loop waits."""

    def __init__(self, events: VirtualEvents) -> None:
        self._events = events

    def select(self, timeout: float | None) -> list[Any]:
        self._events.pass_time(timeout)
        return []
