"""A thread that sleeps until a batch has landed, for a loop that could launch another meanwhile.

While there is room for a batch on the device, the loop must not sleep for the one in front: a
call may come, and be due. So it waits for the bell as ever, and this thread rings it. Where there
is no room, the loop waits for the device itself, which is sooner back.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from .staging.devices import Landing


class Lander:
    """A thread that runs from the first `watch` to `close`.

    Args:
        wake: has the loop look again.
        adopt: prepares the thread, which calls it, for the devices.
    """

    def __init__(self, wake: Callable[[], None], adopt: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._adopt = adopt
        self._landings: queue.SimpleQueue[Landing | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="shmbatch-lander", daemon=True)

    def watch(self, landing: Landing) -> None:
        """Wake the loop when *landing* is over; for the loop's thread."""
        if self._thread.ident is None:
            self._thread.start()
        self._landings.put(landing)

    def close(self) -> None:
        """End the thread, once what it watches is over. Idempotent."""
        self._landings.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        with suppress(Exception):  # or it waits for them unprepared
            self._adopt()
        while (landing := self._landings.get()) is not None:
            with suppress(Exception):  # the loop will meet it too, and knows whose it is
                landing.wait_elsewhere()
            self._wake()
