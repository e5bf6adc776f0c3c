"""Who comes after an executor that has died, for the calls of one connection.

There is no thread that watches. Whoever waits for something of the connection helps for as long
as it can wait, one thread or task at a time; what was begun, the next one goes on with::

    dead for certain? --no--> look again                            (the pidfd says so)
    supervisor over? --yes--> there will be none: ExecutorGone
    connect ----refused-----> nobody listens yet: again, a little later
    greet
    answered? --not yet-----> it loads; somebody looks again
    same layout? --no-------> there will be none
    the ring moves; everybody who waits looks again
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from ..errors import HandshakeError, ShmbatchError
from ..protocol import descriptors, directory
from ..protocol._core import REPLACED
from ..protocol.clock import now_ns
from .greeting import answered, greet

if TYPE_CHECKING:
    from .attended import Attended
    from .line import Line

_KNOCK_NS = 2_000_000  # between attempts to connect, at first
_KNOCK_MAX_NS = 50_000_000


class Succession:
    """Brings a connection over to the executor that comes after that of its line.

    It belongs to one connection, which it does not know itself, so that this goes with its last
    reference.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # held by who helps
        self._sock: socket.socket | None = None  # connected and greeted
        self._pidfd = -1  # of who is to answer
        self._knock_ns = _KNOCK_NS
        self._next_ns = 0  # when to connect again

    def help(self, connection: Attended, timeout_ns: int) -> None:
        """Do what can be done about it within *timeout_ns*; return early if something changed.

        Cost: a few system calls, and for who finds the answer what attaching costs.
        """
        until_ns = now_ns() + max(0, timeout_ns)
        if not self._mutex.acquire(timeout=max(0, timeout_ns) / 1e9):
            return  # another one helps
        try:
            if connection.is_orphaned:
                self._help(connection, connection.line, until_ns)
        finally:
            self._mutex.release()

    def _help(self, connection: Attended, line: Line, until_ns: int) -> None:
        if not line.is_dead():
            # One that was replaced ends by itself, however long that takes.
            if line.may_die() or connection.ring.status == REPLACED:
                _sleep((line.pidfd,), until_ns)
            else:
                connection.give_up(None)  # it has hung up, and will do so again
            return
        supervisor = line.supervisor
        if supervisor is None or supervisor.is_over():
            self.leave()
            connection.give_up(None)
            return
        try:
            with descriptors.needed(f"connect to '{connection.address}'"):
                if self._sock is None:
                    self._connect(connection, until_ns)
                if self._sock is not None and self._is_answered(supervisor.fds()[0], until_ns):
                    self._attach(connection, self._sock)
        except (OSError, EOFError):
            self.leave()  # gone again, or busy: the next attempt
        except ShmbatchError as error:  # it does not serve this function any more
            self.leave()
            connection.give_up(str(error))
        except BaseException:
            self.leave()
            raise

    def _connect(self, connection: Attended, until_ns: int) -> None:
        wait_ns = min(self._next_ns, until_ns) - now_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        if now_ns() < self._next_ns:
            return
        self._next_ns = now_ns() + self._knock_ns
        self._knock_ns = min(2 * self._knock_ns, _KNOCK_MAX_NS)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(0)
            sock.connect(str(directory.socket_path(connection.name)))
            self._pidfd = greet(
                connection.address, sock, connection.signature, connection.batching
            )
        except BaseException:
            sock.close()
            raise
        self._sock = sock

    def _is_answered(self, supervisor_pidfd: int, until_ns: int) -> bool:
        assert self._sock is not None
        fds = (self._sock.fileno(), self._pidfd, supervisor_pidfd)
        found = _sleep(fds, until_ns)
        if found and self._sock.fileno() not in found:
            raise EOFError  # who was to answer is dead
        return bool(found)

    def _attach(self, connection: Attended, sock: socket.socket) -> None:
        with answered(connection.address, sock) as (line, welcome):
            self._sock = None  # it is the line's
            if welcome["capacity"] != connection.capacity:
                raise HandshakeError(
                    f"it has {welcome['capacity']} slots for them and not {connection.capacity}"
                )
            if line.is_gone():
                raise EOFError  # it was tired of waiting for us, or is dead: its ring is nobody's
            sock.settimeout(None)
            connection.move(line, welcome)
        self.leave()
        self._knock_ns, self._next_ns = _KNOCK_NS, 0

    def leave(self) -> None:
        """Let go of an attempt. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def _sleep(fds: tuple[int, ...], until_ns: int) -> list[int]:
    """Return which of *fds* can be read; wait until one can, no longer than *until_ns*."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0, until_ns - now_ns()) / 1e6)]
