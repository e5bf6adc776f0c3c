"""Tells event loops of finished calls of one connection.

The executor writes one byte to the control socket for each batch in which an event loop's call
was completed. Every loop that waits reads that socket; whichever reads the byte looks through all
finished calls and tells each one's own loop, so a loop that is closed or busy stops nobody else.
The socket's end, or the executor's pidfd, says that the executor is gone. When the connection has
gone over to another line, each loop reads that one from its next wait on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol._core import ASYNC, DONE, SUBMIT_FULL
from ..protocol.clock import now_ns
from .attended import SLICE_NS
from .limits import Limits, earlier

if TYPE_CHECKING:
    from .connection import Connection
    from .line import Line

# How long a task sleeps between helping a successor to come.
_HELP_EVERY_S = 0.005

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
        self._reading: dict[asyncio.AbstractEventLoop, Line] = {}  # which line each loop reads

    async def any_outcome(self, tickets: Sequence[int], until_ns: int | None) -> bool:
        """Return when one of the calls is done; False if *until_ns* passed first.

        Raises:
            ExecutorGone, ExecutorClosed: it never will be.
            ValueError: a ticket is over.
        """
        connection = self._connection
        if connection.dead or connection.is_orphaned:  # there is nothing to listen to
            return await self._any_unattended(tickets, until_ns)
        loop = self._listen()
        waiter = (loop, loop.create_future())
        try:
            with self._mutex:
                for ticket in tickets:
                    self._waiting.setdefault(ticket, []).append(waiter)
            armed = [connection.ring.arm(ticket, ASYNC) for ticket in tickets]
            if min(armed) < 0:
                return True
            if connection.dead or connection.is_orphaned:
                return True  # to look again, and come to the case above
            return await _sleep(*waiter, until_ns)
        finally:
            with self._mutex:
                for ticket in tickets:
                    self._forget(ticket, waiter)

    async def _any_unattended(self, tickets: Sequence[int], until_ns: int | None) -> bool:
        """As `any_outcome`, where no executor has the calls; or when one has them again."""
        connection = self._connection
        while True:
            attended = [connection.is_attended(ticket) for ticket in tickets]
            if all(attended) or any(connection.ring.state(each) == DONE for each in tickets):
                return True
            if until_ns is not None and until_ns <= now_ns():
                return False
            connection.help(0)
            await asyncio.sleep(_HELP_EVERY_S)

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
                if not connection.is_attended():
                    connection.help(0)
                    await asyncio.sleep(_HELP_EVERY_S)
                    continue
                await waiter.sleep(earlier(limits.next_ns, since_ns + SLICE_NS if first else None))
        finally:
            connection.slots.leave(waiter)

    def tell(self, ticket: int) -> None:
        """Wake those who wait for this call. From any thread."""
        with self._mutex:
            waiters = self._waiting.pop(ticket, ())
        for waiter in waiters:
            _wake(waiter)

    def tell_all(self) -> None:
        """Have everybody look again. From any thread."""
        with self._mutex:
            waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for waiter in waiters:
                _wake(waiter)

    def let_go(self, line: Line) -> None:
        """Have nobody read *line* any more, and close its descriptors; from any thread.

        They are closed when every loop has let go of them: a loop that is late would keep, or
        remove, whatever has their numbers by then.
        """
        with self._mutex:
            reading = {loop for loop, read in self._reading.items() if read is line}
        if not reading:
            line.close_descriptors()

        def stop(loop: asyncio.AbstractEventLoop) -> None:
            self._stop_reading(loop, line)
            with self._mutex:
                reading.discard(loop)
                last = not reading
            if last:
                line.close_descriptors()

        for loop in reading.copy():
            if not _in_loop(loop, stop, loop):
                stop(loop)

    def _listen(self) -> asyncio.AbstractEventLoop:
        """Have the running loop read the connection's line, and no other."""
        loop = asyncio.get_running_loop()
        line, before = self._connection.line, self._reading.get(loop)
        if before is not line:
            if before is not None:
                self._stop_reading(loop, before)
            loop.add_reader(line.sock.fileno(), self._readable, line)
            loop.add_reader(line.pidfd, self._gone, line)
            with self._mutex:
                for known in [each for each in self._reading if each.is_closed()]:
                    del self._reading[known]
                self._reading[loop] = line
        return loop

    def _stop_reading(self, loop: asyncio.AbstractEventLoop, line: Line) -> None:
        """Have a loop not read *line*, if it does; in its own thread, or when it is closed."""
        with self._mutex:
            if self._reading.get(loop) is not line:
                return
            del self._reading[loop]
        if not loop.is_closed():
            loop.remove_reader(line.sock.fileno())
            loop.remove_reader(line.pidfd)

    def _readable(self, line: Line) -> None:
        connection = self._connection
        if not line.read():
            self._gone(line)
            return
        for ticket in connection.ring.finished(False):
            self.tell(ticket)
        if connection.slots and connection.reap():
            connection.slots.tell()

    def _gone(self, line: Line) -> None:
        """The executor is gone, or we have hung up: everybody looks for himself."""
        self._connection.lost(line)
        loop = _running_loop()
        if loop is not None:
            self._stop_reading(loop, line)
        self.tell_all()
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
