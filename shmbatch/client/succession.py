"""Who comes after an executor that has died, for the calls of one connection.

There is no thread that watches. Whoever waits for something of the connection helps for as long
as it can wait, one thread or task at a time; what was begun, the next one goes on with::

    dead for certain? --no--> look again                            (the pidfd says so)
    supervisor over? --yes--> there will be none: ExecutorGone
    connect ----refused-----> nobody listens yet: again, a little later
    greet
    answered? --not yet-----> it loads; somebody looks again
    refused? ---------------> there will be none; or it has no room yet: again, later
    the ring moves; everybody who waits looks again

A signal handler that makes a call may find that it has interrupted who helps, who will not go on
before it returns. So it helps, too, and who was interrupted may find everything done. Whatever
changes the connection therefore says for which line, and whoever takes `_greeted` out of there has
it for himself.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from ..errors import ShmbatchError, SignatureMismatch, UnknownFunction, VersionMismatch
from ..protocol import descriptors, directory
from ..protocol._core import REPLACED
from ..protocol.clock import now_ns
from .greeting import answered, greet

if TYPE_CHECKING:
    from .attended import Attended
    from .line import Line

_KNOCK_NS = 2_000_000  # between attempts to connect, at first
_KNOCK_MAX_NS = 50_000_000

# What no waiting changes. Of anything else, such as a want of room there or of descriptors here,
# it may be over soon: it is final when it has come so often, which takes ten seconds.
_FINAL = (SignatureMismatch, UnknownFunction, VersionMismatch)
_REFUSALS_MAX = 40
_REFUSED_NS = 250_000_000  # until the next attempt

_Greeted = tuple[socket.socket, int]  # connected, and a pidfd of who is to answer


class Succession:
    """Brings a connection over to the executor that comes after that of its line.

    It belongs to one connection, which it does not know itself, so that this goes with its last
    reference.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # held by who helps; twice by a signal handler's call
        self._greeted: _Greeted | None = None
        self._knock_ns = _KNOCK_NS
        self._next_ns = 0  # when to connect again
        self._refusals = 0  # in a row

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
                connection.give_up(line, None)  # it has hung up, and will do so again
            return
        supervisor = line.supervisor
        if supervisor is None or supervisor.is_over():
            self.leave()
            connection.give_up(line, None)
            return
        # Waits are outside of the `try`: what a signal handler raises there is the caller's.
        greeted = self._greeted
        if greeted is not None:
            sock, pidfd = greeted
            if not _sleep((sock.fileno(), pidfd, supervisor.fds()[0]), until_ns):
                return
        else:
            wait_ns = min(self._next_ns, until_ns) - now_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            if now_ns() < self._next_ns:
                return
        try:
            with descriptors.needed(f"connect to '{connection.address}'"):
                if greeted is None:
                    self._connect(connection)
                else:
                    self._attach(connection, line, greeted)
        except (OSError, EOFError):
            self._refusals = 0  # nobody is there, or is gone again, or busy: the next attempt
        except ShmbatchError as error:
            self._next_ns = now_ns() + _REFUSED_NS
            self._refusals += 1
            if isinstance(error, _FINAL) or self._refusals == _REFUSALS_MAX:
                connection.give_up(line, str(error))

    def _connect(self, connection: Attended) -> None:
        self._next_ns = now_ns() + self._knock_ns
        self._knock_ns = min(2 * self._knock_ns, _KNOCK_MAX_NS)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(0)
            sock.connect(str(directory.socket_path(connection.name)))
            pidfd = greet(connection.address, sock, connection.signature, connection.batching)
        except BaseException:
            sock.close()
            raise
        if self._greeted is None and not connection.dead:
            self._greeted = sock, pidfd
        else:  # a signal handler's call was faster, or another thread has hung up
            _part(sock, pidfd)

    def _attach(self, connection: Attended, before: Line, greeted: _Greeted) -> None:
        if self._greeted is not greeted:
            return  # it is somebody else's by now
        self._greeted = None
        try:
            with answered(connection.address, greeted[0]) as (line, welcome):
                capacity, nbytes = welcome["capacity"], len(line.transport.memory)
                if (capacity, nbytes) != (connection.capacity, connection.nbytes):
                    raise SignatureMismatch(  # as good as one: another layout
                        f"it has {capacity} slots for them, {nbytes} bytes, and not "
                        f"{connection.capacity}, {connection.nbytes} bytes"
                    )
                if line.is_gone():
                    raise EOFError  # it was tired of waiting for us, or is dead
                most, is_idempotent = welcome["max_batch_size"], welcome["idempotent"]
                line.sock.settimeout(None)
        except BaseException:
            _part(*greeted)
            raise
        os.close(greeted[1])
        try:
            connection.move(before, line, most, is_idempotent)
        finally:
            if connection.line is line:
                self._knock_ns, self._next_ns, self._refusals = _KNOCK_NS, 0, 0
            else:
                line.close_descriptors()

    def leave(self) -> None:
        """Let go of an attempt. Idempotent; from any thread."""
        greeted, self._greeted = self._greeted, None
        if greeted is not None:
            _part(*greeted)


def _part(sock: socket.socket, pidfd: int) -> None:
    sock.close()
    os.close(pidfd)


def _sleep(fds: tuple[int, ...], until_ns: int) -> bool:
    """Wait until one of *fds* can be read, no longer than *until_ns*; say whether one can.

    One that is closed may be -1.
    """
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, until_ns - now_ns()) / 1e6))
