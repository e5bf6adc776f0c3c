"""Tells event loops of finished calls of one connection.

The executor writes one byte to the control socket for each batch in which an event loop's call
was completed. Every loop that waits reads that socket; whichever reads the byte looks through all
finished calls and tells each one's own loop, so a loop that is closed or busy stops nobody else.
The socket's end, or the executor's pidfd, says that the executor is gone.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol._core import ASYNC, LOOP
from ..protocol.clock import now_ns

if TYPE_CHECKING:
    from .connection import Connection

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Listener:
    """Belongs to a `Connection`; its methods are called in event loops' threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mutex = threading.RLock()  # held for moments; guards who waits, and which loops
        self._waiting: dict[int, list[_Waiter]] = {}  # by ticket
        self._slot_waiting: list[_Waiter] = []
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._socket_fd = connection.sock.fileno()
        self._pidfd = connection.pidfd

    async def any_outcome(self, tickets: Sequence[int], deadline_ns: int | None) -> None:
        """Return when one of the calls is done.

        Raises:
            CallTimeout: *deadline_ns* passed. ExecutorGone, ExecutorClosed: it never will be.
            ValueError: a ticket is over.
        """
        connection = self._connection
        if connection.dead:  # perhaps closed: there is nothing to listen to
            for ticket in tickets:
                connection.check_alive(ticket)
            return
        loop = self._listen()
        waiter = (loop, loop.create_future())
        try:
            with self._mutex:
                for ticket in tickets:
                    self._waiting.setdefault(ticket, []).append(waiter)
            armed = [connection.ring.arm(ticket, ASYNC) for ticket in tickets]
            if min(armed) < 0:
                return
            if connection.dead:
                for ticket in tickets:
                    connection.check_alive(ticket)
            elif not await _sleep(*waiter, deadline_ns):
                raise connection.late()
        finally:
            with self._mutex:
                for ticket in tickets:
                    self._forget(ticket, waiter)

    def _forget(self, ticket: int, waiter: _Waiter) -> None:
        waiters = self._waiting.get(ticket, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(ticket, None)

    async def slot(self, deadline_ns: int | None) -> None:
        """Return when a slot may be free.

        Raises:
            RingFull: *deadline_ns* passed. ExecutorGone: it never will be.
        """
        connection = self._connection
        if connection.dead:
            connection.check_alive()
        loop = self._listen()
        joined = connection.ring.join_completions(LOOP)
        try:
            while not connection.reap():
                connection.check_alive()
                timeout_ns = connection.slice_ns(deadline_ns)
                if timeout_ns <= 0:
                    raise connection.full()
                waiter = (loop, loop.create_future())
                self._slot_waiting.append(waiter)
                # In slices, since another thread may put a slot back and tell nobody.
                await _sleep(*waiter, now_ns() + timeout_ns)
                if waiter in self._slot_waiting:
                    self._slot_waiting.remove(waiter)
        finally:
            if joined >= 0:
                connection.ring.leave_completions(LOOP)

    def tell(self, ticket: int) -> None:
        """Wake those who wait for this call. From any thread."""
        with self._mutex:
            waiters = self._waiting.pop(ticket, ())
        for waiter in waiters:
            _wake(waiter)

    def close(self, then: Callable[[], None]) -> None:
        """Tell everybody to look again, stop reading, and call *then*; idempotent.

        *then* closes the descriptors, so it waits until every loop has let go of them: a loop
        that is late would keep, or remove, whatever has their numbers by then.
        """
        with self._mutex:
            loops, self._loops = self._loops, []
        reading = set(loops)

        def let_go(loop: asyncio.AbstractEventLoop) -> None:
            if not loop.is_closed():
                self._stop_reading(loop)
            with self._mutex:
                reading.discard(loop)
                last = not reading
            if last:
                then()

        for loop in loops:
            if not _in_loop(loop, let_go, loop):
                let_go(loop)
        if not loops:
            then()
        self._gone()

    def _listen(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            loop.add_reader(self._socket_fd, self._readable)
            loop.add_reader(self._pidfd, self._gone)
            with self._mutex:
                self._loops = [known for known in self._loops if not known.is_closed()] + [loop]
        return loop

    def _stop_reading(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._socket_fd)
        loop.remove_reader(self._pidfd)

    def _readable(self) -> None:
        gone = False
        try:
            while not gone:
                gone = not self._connection.sock.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError:
            gone = True
        if gone:
            self._gone()
            return
        for ticket in self._connection.ring.finished(False):
            self.tell(ticket)
        if self._slot_waiting and self._connection.reap():
            self._wake_for_slots()

    def _wake_for_slots(self) -> None:
        waiting, self._slot_waiting = self._slot_waiting, []
        for waiter in waiting:
            _wake(waiter)

    def _gone(self) -> None:
        """The executor is gone, or we have hung up: everybody looks for himself."""
        self._connection.dead = True
        loop = _running_loop()
        with self._mutex:
            if loop is not None and loop in self._loops:
                self._loops.remove(loop)
                self._stop_reading(loop)
            waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for waiter in waiters:
                _wake(waiter)
        self._wake_for_slots()


async def _sleep(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], deadline_ns: int | None
) -> bool:
    """Wait for *future*; False if the deadline passed first."""
    if deadline_ns is None:
        await future
        return True
    timer = loop.call_later(max(0, deadline_ns - now_ns()) / 1e9, _finish, future)
    try:
        await future
    finally:
        timer.cancel()
    return now_ns() < deadline_ns


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _wake(waiter: _Waiter) -> None:
    loop, future = waiter
    _in_loop(loop, _finish, future)


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> bool:
    """Run ``function(*args)`` in *loop*, at once if it runs us; False if it is closed."""
    if loop is _running_loop():
        function(*args)
        return True
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return False
    return True
