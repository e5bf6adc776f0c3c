"""Tells event loops of finished calls of one connection.

The executor writes one byte to the control socket for each batch in which an event loop's call
was completed. Every loop that waits reads that socket; whichever reads the byte looks through all
finished calls and tells each one's own loop, so a loop that is closed or busy stops nobody else.
The socket's end, or the executor's pidfd, says that the executor is gone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol._core import ASYNC, SUBMIT_FULL
from ..protocol.clock import now_ns
from .connection import SLICE_NS
from .limits import Limits, earlier

if TYPE_CHECKING:
    from .connection import Connection

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class WaitingTask:
    """A task in the queue for slots; see `slots.Waiter`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = loop
        self._told = False
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> bool:
        self._told = True
        return self._future is None or _wake((self.kind, self._future))

    async def sleep(self, until_ns: int | None) -> None:
        """Sleep until woken, or *until_ns*; not at all if woken since the last sleep."""
        self._future = self.kind.create_future()
        if not self._told:
            await _sleep(self.kind, self._future, until_ns)
        self._told, self._future = False, None


class Listener:
    """Belongs to a `Connection`; its methods are called in event loops' threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mutex = threading.RLock()  # held for moments; guards who waits, and which loops
        self._waiting: dict[int, list[_Waiter]] = {}  # by ticket
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._socket_fd = connection.sock.fileno()
        self._pidfd = connection.pidfd

    async def any_outcome(self, tickets: Sequence[int], until_ns: int | None) -> bool:
        """Return when one of the calls is done; False if *until_ns* passed first.

        Raises:
            ExecutorGone, ExecutorClosed: it never will be.
            ValueError: a ticket is over.
        """
        connection = self._connection
        if connection.dead:  # perhaps closed: there is nothing to listen to
            for ticket in tickets:
                connection.check_alive(ticket)
            return True
        loop = self._listen()
        waiter = (loop, loop.create_future())
        try:
            with self._mutex:
                for ticket in tickets:
                    self._waiting.setdefault(ticket, []).append(waiter)
            armed = [connection.ring.arm(ticket, ASYNC) for ticket in tickets]
            if min(armed) < 0:
                return True
            if connection.dead:
                for ticket in tickets:
                    connection.check_alive(ticket)
                return True
            return await _sleep(*waiter, until_ns)
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

    async def submit(self, values: tuple[Any, ...], flags: int, limits: Limits) -> int:
        """Queue for a slot, publish one call and return its ticket.

        Raises:
            as `Connection.submit`.
        """
        connection = self._connection
        if connection.dead:
            connection.check_alive()
        waiter = WaitingTask(self._listen())
        since_ns = now_ns()
        connection.slots.join(waiter)
        try:
            while True:
                first = connection.slots.is_first(waiter)
                overdue = first and now_ns() - since_ns >= SLICE_NS
                if connection.reap() and (overdue or connection.slots.is_next(waiter)):
                    ticket = connection.ring.submit(values, flags, limits.deadline_ns)
                    if ticket >= 0:
                        return ticket
                    if ticket != SUBMIT_FULL:
                        values = connection.refusal(ticket, values)
                        continue
                if overdue:
                    since_ns = now_ns()
                if limits.next_ns is not None and limits.next_ns <= now_ns():
                    raise connection.no_slot(limits)
                connection.check_alive()
                await waiter.sleep(earlier(limits.next_ns, since_ns + SLICE_NS if first else None))
        finally:
            connection.slots.leave(waiter)

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
        connection = self._connection
        if not connection.read():
            self._gone()
            return
        for ticket in connection.ring.finished(False):
            self.tell(ticket)
        if connection.slots and connection.reap():
            connection.slots.tell()

    def _gone(self) -> None:
        """The executor is gone, or we have hung up: everybody looks for himself."""
        self._connection.lost()
        loop = _running_loop()
        with self._mutex:
            if loop is not None and loop in self._loops:
                self._loops.remove(loop)
                self._stop_reading(loop)
            waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for waiter in waiters:
                _wake(waiter)
        self._connection.slots.tell_all()


async def _sleep(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], until_ns: int | None
) -> bool:
    """Wait for *future*; False if *until_ns* passed first."""
    if until_ns is None:
        await future
        return True
    timer = loop.call_later(max(0, until_ns - now_ns()) / 1e9, _finish, future)
    try:
        await future
    finally:
        timer.cancel()
    return now_ns() < until_ns


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _wake(waiter: _Waiter) -> bool:
    loop, future = waiter
    return _in_loop(loop, _finish, future)


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
