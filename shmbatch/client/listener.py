"""Tells event loops of finished calls of one connection.

The executor writes one byte to the control socket for each batch in which an event loop's call
was completed. Every loop that waits reads that socket; whichever reads the byte looks through all
finished calls and tells each one's own loop, so a loop that is closed or busy stops nobody else.
The socket's end, or the executor's pidfd, says that the executor is gone. When the connection has
gone over to another line, each loop reads that one from its next wait on. Until it has, each loop
in which anybody waits helps the next executor to come, now and then, for all of them.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..protocol._core import ASYNC, DONE, SUBMIT_FULL
from ..protocol.clock import now_ns
from .attended import SLICE_NS
from .limits import Limits, earlier

if TYPE_CHECKING:
    from .connection import Connection
    from .line import Line

# How long a loop waits between helping a successor to come.
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
        # Which line each loop reads. Weak: a loop that is closed before it lets go of one is to
        # keep it no longer than it is kept itself.
        self._reading: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = (
            weakref.WeakKeyDictionary()
        )
        # How many tasks wait for a successor, of each loop that helps it to come.
        self._orphans: dict[asyncio.AbstractEventLoop, int] = {}

    async def any_outcome(self, tickets: Sequence[int], until_ns: int | None) -> bool:
        """Return when one of the calls is done; False if *until_ns* passed first.

        Raises:
            ExecutorGone, ExecutorClosed: it never will be.
            ValueError: a ticket is over.
        """
        connection = self._connection
        loop = self._listen()
        waiter = (loop, loop.create_future())
        try:
            with self._mutex:
                for ticket in tickets:
                    self._waiting.setdefault(ticket, []).append(waiter)
            if connection.dead or connection.is_orphaned:
                attended = [connection.is_attended(ticket) for ticket in tickets]
                if all(attended) or any(connection.ring.state(each) == DONE for each in tickets):
                    return True
                with self._helping(loop):
                    return await _sleep(*waiter, until_ns)
            armed = [connection.ring.arm(ticket, ASYNC) for ticket in tickets]
            if min(armed) < 0:
                return True
            is_read = self._reading.get(loop) is connection.line
            if connection.dead or connection.is_orphaned or not is_read:
                return True  # it has changed meanwhile: to look again
            return await _sleep(*waiter, until_ns)
        finally:
            with self._mutex:
                for ticket in tickets:
                    self._forget(ticket, waiter)

    @contextmanager
    def _helping(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """While a task of *loop* is in here, the loop helps, and tells all when it is over."""
        helps = loop in self._orphans
        self._orphans[loop] = self._orphans.get(loop, 0) + 1
        try:
            if not helps:
                for known, tasks in list(self._orphans.items()):
                    if known.is_closed() and not tasks:
                        self._orphans.pop(known, None)
                self._help(loop)
            yield
        finally:
            self._orphans[loop] -= 1

    def _help(self, loop: asyncio.AbstractEventLoop) -> None:
        """Help now, and every few milliseconds, until nobody in *loop* waits for it."""
        if not self._orphans[loop]:
            del self._orphans[loop]
            return
        loop.call_later(_HELP_EVERY_S, self._help, loop)  # first: to help may fail
        self._connection.help(0)
        if not self._connection.is_orphaned:  # who came too late to be told by what changed it
            self.tell_all()
            self._connection.slots.tell_all()

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
        loop = self._listen()
        waiter = WaitingTask(loop)
        since_ns = now_ns()
        try:
            connection.slots.join(waiter)
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
                at_ns = earlier(limits.next_ns, since_ns + SLICE_NS if first else None)
                if connection.is_attended():
                    self._listen()
                    await waiter.sleep(at_ns)
                else:
                    with self._helping(loop):
                        await waiter.sleep(at_ns)
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
        """Have the running loop read the connection's line, if it has one, and no other."""
        loop = asyncio.get_running_loop()
        connection, before = self._connection, self._reading.get(loop)
        if before is connection.line or connection.dead or connection.is_orphaned:
            return loop
        if before is not None:
            self._stop_reading(loop, before)
        with self._mutex:  # `let_go` closes nothing meanwhile, and from then on asks this loop
            line = connection.line
            if connection.dead or connection.is_orphaned:
                return loop
            for known in [each for each in self._reading if each.is_closed()]:
                del self._reading[known]
            loop.add_reader(line.sock.fileno(), self._readable, line)
            loop.add_reader(line.pidfd, self._gone, line)
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
