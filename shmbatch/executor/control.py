"""The executor's control thread: who attaches, who leaves, who asks.

It owns the listening socket, the handshakes, the creation of segments, and the watch over each
producer's socket and pidfd. The loop never waits for it: attach and detach are posted as
commands, and the loop closes what it was given, but for a segment's registration with a device:
to end that takes time, so the loop has this thread do it. Nothing a producer does can block this
thread: its reads and writes never wait, whoever does not read is disconnected, and descriptors
that somebody sends are never received; see `closing`.

::

    producer                     control thread                                loop
    connect            ------>   accept: same user, or let in?
    attach             ------>   same version, function, signature? room for it?
                                 create segment and ring        -- attach -->  drained from now on
                       <------   welcome + descriptors, or refused
    attached           ------>   drop names and descriptors
    statistics         ------>   count
                       <------   statistics + descriptor
    reload             ------>   passes it on to the supervisor, which answers
    goodbye            ------>   its end will be no accident
    end of file, death           stop watching                  -- detach -->  drop calls, close
                       <------   lost, if the device is              <-- hang up --

Whoever has `SILENCE_NS` to say something and says nothing is hung up on, until it has said that it
has attached: then it may be silent for ever. Who breaks the protocol is hung up on too, and finds
the reason in its segment.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..contract.wire import ring_arguments
from ..errors import HandshakeError, ProtocolError, ShmbatchError
from ..protocol import _core, control, snapshot
from ..protocol._core import ExecutorRing
from ..protocol.access import Access
from ..protocol.clock import now_ns
from ..protocol.layout import LAYOUT_VERSION
from ..protocol.ownership import DRAINING, SERVING
from ..protocol.transport import ExecutorTransport
from . import greeting
from .connection import Connection
from .entrance import Entrance
from .loop import Loop
from .obeying import Obedience
from .poller import Poller
from .room import Quotas, Room
from .served import ServedFunction

log = logging.getLogger("shmbatch.executor")

SILENCE_NS = 30_000_000_000  # for which somebody who has not attached may say nothing

_LAST_STEP_S = 1.0  # which the thread is given to end, by a process that is about to


class Control:
    """A thread that runs from `start` to `close`.

    Args:
        listener: bound and listening; closed by `refuse`.
        app: the name that is served, for messages.
        functions: by name.
        stop: called with ``now`` when somebody asks the executor to stop.
        supervisor_fd: a pidfd, or the end of a pipe: when that process dies or the other end
            closes, the executor drains; None for no supervisor.
        obedience: what an executor does that its supervisor has forked; None if there is none.
        access: who is let in beside this process's user.
        room: what producers may have; by default what fits the machine.
    """

    def __init__(
        self,
        listener: socket.socket,
        app: str,
        functions: Mapping[str, ServedFunction],
        transport: ExecutorTransport,
        loop: Loop,
        poller: Poller,
        stop: Callable[[bool], None],
        supervisor_fd: int | None = None,
        *,
        obedience: Obedience | None = None,
        access: Access | None = None,
        room: Room | None = None,
    ) -> None:
        self._obedience = obedience
        self._watches = {} if obedience is None else obedience.watches
        self._room = Room(Quotas(), app) if room is None else room
        self._refused = self._expelled = 0  # how many
        self._thread = threading.Thread(target=self._run, name="shmbatch-control", daemon=True)
        self._entrance = Entrance(listener, app, Access() if access is None else access)
        self._app = app
        self._functions = functions
        self._transport = transport
        self._loop = loop
        self._producers_end = poller.producers_end
        self._on_stop = stop
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._poll = select.epoll()
        self._watched: dict[int, Connection] = {}  # by socket and by pidfd
        # Those who have to say something; whoever has been silent for longest comes first.
        self._awaited: dict[Connection, None] = {}
        self._since_ns = now_ns()
        self._requests: deque[Callable[[], None]] = deque()
        self._bell_out, self._bell_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = False
        self._refusing = False
        self._refused_as = _core.DRAINING  # what a late producer is told
        self._poll.register(self._entrance, select.EPOLLIN)
        self._poll.register(self._bell_out, select.EPOLLIN)
        self._supervisor_fd = supervisor_fd
        for other in (supervisor_fd, *self._watches):
            if other is not None:
                self._poll.register(other, select.EPOLLIN)

    # ---- called from the loop's thread -----------------------------------------------------

    def start(self) -> None:
        """Begin to accept producers."""
        self._thread.start()

    def refuse(self, status: int = _core.DRAINING) -> None:
        """Accept nobody any more; new connects find no socket, or that of a successor. Idempotent.

        Args:
            status: what a ring says that is just being made.
        """
        if not self._refusing:
            self._refused_as = status
            self._refusing = True  # at once, also for whom the thread has accepted already
            self._request(self._close_entrance)

    def disconnect(self, connection: Any) -> None:
        """Hang up on a producer that broke the protocol of the ring. Does not wait."""
        self._request(lambda: self._expel(connection, "its ring holds what no producer writes"))

    def hang_up(self, cause: str) -> None:
        """Tell every producer why this process is about to die, and hang up on it.

        For one that then ends without `close`. Waits for no producer: who does not read is not
        told, and finds its connection closed. Names that handshakes still needed are removed.
        """
        self._refusing = self._closing = True
        self._tell_lost(cause)  # at once: the thread may be making a segment, which takes time
        self._request(lambda: None)
        if self._thread.ident is not None:
            self._thread.join(_LAST_STEP_S)
        for connection in self._tell_lost(cause):
            with suppress(Exception):
                connection.segment.handed_over()

    def close(self) -> None:
        """End the thread and close every connection that is left."""
        self._closing = True
        self._request(lambda: None)
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        self._close_entrance()
        for connection in set(self._watched.values()):
            connection.close()
        while self._requests:  # what the thread was too late for, and what these have asked for
            self._safely(self._requests.popleft())
        self._poll.close()
        for fd in (self._bell_out, self._bell_in, self._own_pidfd):
            os.close(fd)

    def _tell_lost(self, cause: str) -> list[Connection]:
        """Tell whoever is attached, and hang up; return them. Who was told is not told again."""
        attached = [each for each in set(self._watched.copy().values()) if each.attached]
        for connection in attached:
            with suppress(OSError):  # it does not read, or is gone
                control.send(connection.sock, control.lost(cause), wait=False)
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
        return attached

    def _request(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        try:
            os.write(self._bell_in, b"!")
        except BlockingIOError:
            pass  # it has plenty to wake up for

    # ---- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._poll.poll(self._patience_s()):
                self._safely(self._happened, fd)
            while self._requests:
                self._safely(self._requests.popleft())
            self._safely(self._hang_up_on_the_silent)

    def _safely(self, step: Callable[..., None], *arguments: Any) -> None:
        """A bug must not make the executor deaf."""
        try:
            step(*arguments)
        except Exception:
            log.exception("a fault of the control thread, which goes on")

    def _happened(self, fd: int) -> None:
        if fd == self._bell_out:
            os.read(fd, 4096)
        elif fd == self._supervisor_fd:
            self._poll.unregister(fd)
            log.info("the process that started this executor is gone")
            self._on_stop(False)
        elif fd in self._watches:
            if not self._watches[fd]():
                self._poll.unregister(fd)
        elif fd == self._entrance.fileno():
            self._accept()
        elif fd in self._watched:
            # No local name for the connection: it would keep the memory of a producer that has
            # left until the next event.
            self._hear(self._watched[fd], fd)

    def _patience_s(self) -> float | None:
        """How long to wait for something to happen; None for ever."""
        for connection in self._awaited:
            return max(0, connection.heard_ns + SILENCE_NS - now_ns()) / 1e9
        return None

    def _hang_up_on_the_silent(self) -> None:
        if not self._awaited:
            return
        at_ns = now_ns() - SILENCE_NS
        for connection in [each for each in self._awaited if each.heard_ns <= at_ns]:
            if connection.attached:
                # It has done no wrong: it looks for its welcome when it has time for it, and
                # comes again.
                self._lost(connection, f"did not take its welcome for {SILENCE_NS / 1e9:g} s")
            else:
                self._refuse(
                    connection, HandshakeError(f"said nothing for {SILENCE_NS / 1e9:g} seconds")
                )

    def _close_entrance(self) -> None:
        if self._entrance.fileno() >= 0:
            self._poll.unregister(self._entrance)
            self._entrance.close()

    def _accept(self) -> None:
        connection = self._entrance.accept()
        if connection is None:
            return
        for fd in (connection.sock.fileno(), connection.pidfd):
            self._watched[fd] = connection
            self._poll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._awaited[connection] = None
        if len(self._awaited) > self._room.strangers_max:
            strangers = [each for each in self._awaited if not each.attached]
            if len(strangers) > self._room.strangers_max:
                self._refuse(
                    strangers[0],
                    HandshakeError("said nothing while many others came; connect again"),
                )

    def _hear(self, connection: Connection, fd: int) -> None:
        try:
            # Asked again: the event may be of an older pidfd that had the same number.
            if fd != connection.pidfd:
                self._receive(connection)
            elif control.is_gone(connection.sock, connection.pidfd):
                self._gone(connection)
        except Exception:
            log.exception("a fault of the control thread")
            self._lost(connection, "is disconnected for that")

    def _receive(self, connection: Connection) -> None:
        try:
            if control.brings_descriptors(connection.sock):
                raise ProtocolError("a message came with descriptors, and none are expected")
            message, _ = control.receive(connection.sock, wait=False)
            if self._awaited.pop(connection, 0) is None:
                connection.heard_ns = now_ns()
                self._awaited[connection] = None  # the last one now
            self._answer(connection, message)
        except BlockingIOError:
            if control.is_gone(connection.sock, None):
                self._gone(connection)
        except (EOFError, OSError):
            self._gone(connection)
        except ShmbatchError as error:
            self._refuse(connection, error)

    def _answer(self, connection: Connection, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "attached" and connection.attached:
            connection.segment.handed_over()
            self._awaited.pop(connection, None)
        elif kind == "goodbye":
            connection.leaves = True  # as soon as its threads and its exit handlers are through
        elif kind == "attach" and self._refusing:
            self._lost(connection, "came too late")
        elif kind == "attach" and not connection.attached:
            self._attach(connection, message)
        elif kind == "statistics":
            self._tell_statistics(connection)
        elif kind == "stop":
            self._check_command(connection, "stop")
            log.info("process %d asks for a stop", connection.pid)
            self._reply(connection, {"kind": "stopping", "pid": os.getpid()})
            self._on_stop(bool(message.get("now")))
        elif kind == "reload" and not connection.attached:
            self._check_command(connection, "reload")
            self._reload(connection)
        else:
            raise ProtocolError(f"a message of kind {kind[:40]!r} makes no sense here")

    def _check_command(self, connection: Connection, kind: str) -> None:
        if not connection.is_own:
            raise HandshakeError(
                f"a {kind} of the executor of {self._app!r} is for uid {os.geteuid()} to ask for"
            )

    def _reload(self, connection: Connection) -> None:
        """Have the supervisor reload and answer; until then whoever asks may be silent."""
        if self._obedience is None:
            raise HandshakeError(
                f"the executor of {self._app!r} (process {os.getpid()}) has no supervisor that "
                f"could reload it; start it with `shmbatch start FILE --restart`"
            )
        self._obedience.ask_for_reload(connection.sock.fileno())
        self._forget(connection)
        os.close(connection.sock.detach())  # not hung up on: the supervisor has it, too
        connection.close()

    def _tell_statistics(self, connection: Connection) -> None:
        # Counted here and not in the inboxes: there a producer arrives after its welcome.
        attached = Counter(each.function for each in set(self._watched.values()) if each.attached)
        state = DRAINING if self._refusing else SERVING
        uptime_ns = now_ns() - self._since_ns
        admission: snapshot.Admission = {
            "producers": self._room.producers,
            "producers_max": self._room.producers_max,
            "nbytes": self._room.nbytes,
            "nbytes_max": self._room.nbytes_max,
            "refused": self._refused + self._entrance.refused,
            "expelled": self._expelled,
        }
        counted = greeting.statistics(
            self._app, self._functions, attached, self._transport.name, state, uptime_ns, admission
        )
        try:
            fd = snapshot.store(counted)
        except OSError as error:
            raise HandshakeError(
                f"the executor of {self._app!r} has no room for its statistics: {error}"
            ) from error
        try:
            self._reply(connection, {"kind": "statistics"}, [fd])
        finally:
            os.close(fd)

    def _attach(self, connection: Connection, message: dict[str, Any]) -> None:
        function = greeting.asked_for(message, self._app, self._functions)
        self._room.check(function.layout.nbytes, function.address)
        try:
            segment = self._transport.create(function.layout.nbytes, function.capacity)
        except OSError as error:
            raise HandshakeError(
                f"the executor of {self._app!r} has no room for {function.capacity} slots "
                f"({function.layout.nbytes} bytes) of '{function.address}': {error}; "
                f"give the function fewer with slots="
            ) from error
        shared = ring_arguments(segment.memory, function.definition.signature, function.layout)
        connection.ring = ExecutorRing(*(*shared, LAYOUT_VERSION))
        connection.ring.wakes = segment.wakes_in_core
        connection.function, connection.segment = function, segment
        connection.registration = function.register(connection.ring, segment.memory)
        if connection.is_own:
            function.lend(connection.ring, segment.memory)
        connection.retire = self._request
        connection.closed = self._room.left
        self._room.taken(connection, segment.memory, function.layout.nbytes)
        offer, fds = segment.offer()
        supervisor = () if self._obedience is None else self._obedience.fds()
        welcome = greeting.welcome(function, offer, supervised=bool(supervisor))
        self._loop.post(lambda: self._loop.attach(connection))
        if self._refusing:  # the loop may have ended before it heard of this one
            connection.ring.set_status(self._refused_as)
        log.info(
            "producer %d attached to %s: %d slots, %d bytes of memory",
            connection.pid,
            function.address,
            function.capacity,
            function.layout.nbytes,
        )
        own = (self._own_pidfd, self._producers_end.fileno())
        self._reply(connection, welcome, [*own, *supervisor, *fds])

    def _refuse(self, connection: Connection, error: ShmbatchError) -> None:
        with suppress(OSError):  # it does not read, or is gone; then so be it
            control.send(connection.sock, greeting.refusal(error), wait=False)
        if connection.attached:
            self._expel(connection, str(error))
        else:
            self._refused += 1
            log.warning("refused process %d: %s", connection.pid, error)
            self._lost(connection, "was refused")

    def _reply(
        self, connection: Connection, message: dict[str, Any], fds: list[int] | None = None
    ) -> None:
        try:
            control.send(connection.sock, message, fds or [], wait=False)
        except BlockingIOError:
            log.warning("process %d does not read what it is told", connection.pid)
            self._lost(connection, "is disconnected")
        except OSError:
            self._gone(connection)

    def _expel(self, connection: Connection, why: str) -> None:
        """Hang up on a producer that broke the protocol, and have it find that out."""
        if connection.pidfd in self._watched:
            self._expelled += 1
            connection.ring.set_status(_core.EXPELLED)
            self._lost(connection, f"broke the protocol and is disconnected: {why}", logging.ERROR)

    def _gone(self, connection: Connection) -> None:
        """Somebody is gone: left, if it has said goodbye, as those do who can."""
        if connection.leaves:
            self._lost(connection, "left")
        else:
            died = control.is_dead(connection.pidfd)
            self._lost(connection, "died" if died else "hung up without a goodbye")

    def _lost(self, connection: Connection, how: str, level: int = logging.INFO) -> None:
        """Have nothing to do with somebody any more. Idempotent."""
        if not self._forget(connection):
            return
        if connection.attached:
            log.log(
                level, "producer %d of %s %s", connection.pid, connection.function.address, how
            )
            # At once: the loop may have ended, and then nobody else would remove its names.
            connection.segment.handed_over()
            self._loop.post(lambda: self._loop.detach(connection))
        else:
            connection.close()

    def _forget(self, connection: Connection) -> bool:
        """Stop watching; return whether it was watched."""
        self._awaited.pop(connection, None)
        watched = False
        for fd in (connection.sock.fileno(), connection.pidfd):
            if self._watched.pop(fd, None) is not None:
                self._poll.unregister(fd)
                watched = True
        return watched
