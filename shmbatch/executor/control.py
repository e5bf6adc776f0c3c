"""The executor's control thread: who attaches, who leaves, who asks.

It owns the listening socket, the handshakes, the creation of segments, and the watch over each
producer's socket and pidfd. The loop never waits for it: attach and detach are posted as
commands, and the loop closes what it was given. Nothing a producer does can block this thread:
its reads and writes never wait, and whoever does not read is disconnected.

::

    producer                     control thread                                loop
    connect            ------>   accept: same user?
    attach             ------>   same version, function, signature?
                                 create segment and ring        -- attach -->  drained from now on
                       <------   welcome + descriptors, or refused
    attached           ------>   drop names and descriptors
    end of file, death ------>   stop watching                  -- detach -->  drop calls, close
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..contract.signature import Signature
from ..contract.wire import ring_arguments
from ..errors import (
    HandshakeError,
    ProtocolError,
    ShmbatchError,
    UnknownFunction,
    VersionMismatch,
)
from ..protocol import control
from ..protocol._core import DRAINING, ExecutorRing
from ..protocol.clock import now_ns
from ..protocol.layout import LAYOUT_VERSION, VERSION
from ..protocol.transport import ExecutorTransport
from .loop import Loop
from .poller import Poller
from .served import ServedFunction

log = logging.getLogger("shmbatch.executor")


class Connection:
    """One producer, from accept on; attached once it has a ring."""

    ring: ExecutorRing

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # or MSG_DONTWAIT is ignored, where a default timeout is set
        self.sock = sock
        self.since_ns = now_ns()
        self.pid = control.peer_credentials(sock).pid
        self.pidfd = control.peer_pidfd(sock)
        self.function: ServedFunction = None  # type: ignore[assignment] # set when attached
        self.segment: Any = None
        self.violated = False

    @property
    def attached(self) -> bool:
        return self.segment is not None

    def close(self) -> None:
        """Close descriptors; the memory goes when the last batch that uses it does. Idempotent."""
        self.sock.close()
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        if self.segment is not None:
            self.segment.handed_over()


class Control:
    """A thread that runs from `start` to `close`.

    Args:
        listener: bound and listening; closed by `refuse`.
        app: the name that is served, for messages.
        functions: by name.
        stop: called with ``now`` when somebody asks the executor to stop.
        supervisor_fd: a pidfd, or the end of a pipe: when that process dies or the other end
            closes, the executor drains; None for no supervisor.
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
    ) -> None:
        self._thread = threading.Thread(target=self._run, name="shmbatch-control", daemon=True)
        self._listener = listener
        self._app = app
        self._functions = functions
        self._transport = transport
        self._loop = loop
        self._producers_end = poller.producers_end
        self._on_stop = stop
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._poll = select.epoll()
        self._watched: dict[int, Connection] = {}  # by socket and by pidfd
        self._requests: deque[Callable[[], None]] = deque()
        self._bell_out, self._bell_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._reserve_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._closing = False
        self._refusing = False
        listener.setblocking(False)
        self._poll.register(listener, select.EPOLLIN)
        self._poll.register(self._bell_out, select.EPOLLIN)
        self._supervisor_fd = supervisor_fd
        if supervisor_fd is not None:
            self._poll.register(supervisor_fd, select.EPOLLIN)

    # ---- called from the loop's thread -----------------------------------------------------

    def start(self) -> None:
        """Begin to accept producers."""
        self._thread.start()

    def refuse(self) -> None:
        """Accept nobody any more; new connects find no socket."""
        self._refusing = True  # at once, also for whom the thread has accepted already
        self._request(self._close_listener)

    def disconnect(self, connection: Any) -> None:
        """Stop watching a producer, and have the loop detach it. Does not wait."""
        self._request(lambda: self._lost(connection))

    def close(self) -> None:
        """End the thread and close every connection that is left."""
        self._closing = True
        self._request(lambda: None)
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        self._close_listener()
        for connection in set(self._watched.values()):
            connection.close()
        self._poll.close()
        for fd in (self._bell_out, self._bell_in, self._own_pidfd, self._reserve_fd):
            if fd >= 0:
                os.close(fd)

    def _request(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        try:
            os.write(self._bell_in, b"!")
        except BlockingIOError:
            pass  # it has plenty to wake up for

    # ---- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._poll.poll():
                if fd == self._bell_out:
                    os.read(fd, 4096)
                elif fd == self._supervisor_fd:
                    self._poll.unregister(fd)
                    log.info("the process that started this executor is gone")
                    self._on_stop(False)
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd in self._watched:
                    # No local name for the connection: it would keep the memory of a producer
                    # that has left until the next event.
                    self._hear(self._watched[fd], fd)
            while self._requests:
                self._requests.popleft()()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._poll.unregister(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a producer: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        try:
            uid = control.peer_credentials(sock).uid
            if uid != os.geteuid():
                log.warning("refused a producer of uid %d", uid)
                sock.close()
                return
            connection = Connection(sock)
        except (OSError, EOFError, ShmbatchError) as error:
            log.warning("cannot watch a producer: %s", error)
            sock.close()
            return
        for fd in (sock.fileno(), connection.pidfd):
            self._watched[fd] = connection
            self._poll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def _turn_away(self) -> None:
        """Hang up on the next producer, for whom no descriptor is left but our reserve.

        Left in the queue, it would wake this thread again at once, for ever.
        """
        if self._reserve_fd >= 0:
            reserve, self._reserve_fd = self._reserve_fd, -1
            os.close(reserve)
        try:
            self._listener.accept()[0].close()
            self._reserve_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # somebody else took the descriptor; the next one is turned away later

    def _hear(self, connection: Connection, fd: int) -> None:
        try:
            # Asked again: the event may be of an older pidfd that had the same number.
            if fd != connection.pidfd:
                self._receive(connection)
            elif control.is_gone(connection.sock, connection.pidfd):
                self._lost(connection)
        except Exception:  # a bug here must not make the executor deaf
            log.exception("lost producer %d", connection.pid)
            self._lost(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            message, fds = control.receive(connection.sock, wait=False)
            for extra in fds:
                os.close(extra)
            self._answer(connection, message)
        except BlockingIOError:
            if control.is_gone(connection.sock, None):
                self._lost(connection)
        except (EOFError, OSError):
            self._lost(connection)
        except ShmbatchError as error:
            self._refuse(connection, error)

    def _answer(self, connection: Connection, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "attached" and connection.attached:
            connection.segment.handed_over()
        elif kind == "attach" and self._refusing:
            self._lost(connection)
        elif kind == "attach" and not connection.attached:
            self._attach(connection, message)
        elif kind == "statistics":
            # Counted here and not in the inboxes: there a producer arrives after its welcome.
            attached = [each.function for each in set(self._watched.values()) if each.attached]
            functions = {
                name: function.statistics.snapshot() | {"producers": attached.count(function)}
                for name, function in self._functions.items()
            }
            self._reply(connection, {"kind": "statistics", "functions": functions})
        elif kind == "stop":
            self._reply(connection, {"kind": "stopping", "pid": os.getpid()})
            self._on_stop(bool(message.get("now")))
        else:
            raise ProtocolError(f"a message of kind {kind[:40]!r} makes no sense here")

    def _attach(self, connection: Connection, message: dict[str, Any]) -> None:
        function = self._asked_for(message)
        try:
            segment = self._transport.create(function.layout.nbytes, function.capacity)
        except OSError as error:
            raise HandshakeError(
                f"the executor of {self._app!r} has no room for {function.capacity} slots "
                f"({function.layout.nbytes} bytes) of '{function.address}': {error}; "
                f"give the function fewer with slots="
            ) from error
        signature = function.definition.signature
        shared = ring_arguments(segment.memory, signature, function.layout)
        connection.ring = ExecutorRing(*(*shared, LAYOUT_VERSION))
        connection.function, connection.segment = function, segment
        offer, fds = segment.offer()
        welcome = {
            "kind": "welcome",
            "pid": os.getpid(),
            "signature": signature.to_message(),
            "max_batch_size": function.batcher.max_batch_size,
            "capacity": function.capacity,
            "offer": offer,
        }
        self._loop.post(lambda: self._loop.attach(connection))
        if self._refusing:  # the loop may have ended before it heard of this one
            connection.ring.set_status(DRAINING)
        self._reply(connection, welcome, [self._own_pidfd, self._producers_end.fileno(), *fds])
        log.info("producer %d attached to %s", connection.pid, function.address)

    def _asked_for(self, message: dict[str, Any]) -> ServedFunction:
        """Return the function that an attach message asks for.

        Raises:
            HandshakeError: version, name or signature do not fit.
        """
        version = message.get("version")
        if version != VERSION:
            raise VersionMismatch(
                f"the executor of {self._app!r} speaks version {VERSION} of the protocol "
                f"and this producer version {str(version)[:20]}; install one shmbatch in both"
            )
        name = message.get("function")
        function = self._functions.get(name) if isinstance(name, str) else None
        if function is None:
            raise UnknownFunction(
                f"the executor of {self._app!r} has no function {str(name)[:80]!r}; "
                f"it has {', '.join(map(repr, self._functions))}"
            )
        if message.get("signature") is not None:
            theirs = Signature.from_message(message["signature"])
            ours = function.definition.signature
            if theirs != ours:
                raise ours.mismatch(theirs, function.address)
        return function

    def _refuse(self, connection: Connection, error: ShmbatchError) -> None:
        log.warning("refused producer %d: %s", connection.pid, error)
        kind = type(error).__name__
        if not isinstance(error, HandshakeError):
            kind = HandshakeError.__name__
        self._reply(connection, {"kind": "refused", "error": kind, "message": str(error)})
        self._lost(connection)

    def _reply(
        self, connection: Connection, message: dict[str, Any], fds: list[int] | None = None
    ) -> None:
        try:
            control.send(connection.sock, message, fds or [], wait=False)
        except OSError:  # it does not read, or is gone
            self._lost(connection)

    def _lost(self, connection: Connection) -> None:
        self._forget(connection)
        if connection.attached:
            log.info("producer %d left %s", connection.pid, connection.function.address)
            self._loop.post(lambda: self._loop.detach(connection))
        else:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        for fd in (connection.sock.fileno(), connection.pidfd):
            if self._watched.pop(fd, None) is not None:
                self._poll.unregister(fd)
