"""The tie between this process and one executor process: is it there, and why not, if it is not.

A line learns of the executor's death from its socket's end and from its pidfd, whichever comes
first. Either says that it is gone; only the pidfd says that it is dead, and that what is in the
shared memory will not change any more.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol import control
from ..protocol._core import PARKED, POLLING
from ..protocol.clock import now_ns
from ..protocol.transport import ProducerTransport, producer_transport

if TYPE_CHECKING:
    from ..protocol.supervision import Supervisor

_PACKETS_MAX = 1024  # more than a socket's buffer holds; somebody may send without an end
# An executor's socket ends before its process does, which has exit handlers to run and perhaps a
# device to let go of; after this it has merely hung up.
_DYING_NS = 10_000_000_000


class Line:
    """A live line; made by `greeting.answered`.

    Args:
        sock: taken over.
        welcome: the executor's message.
        fds: what came with it, which are not taken over: a pidfd of the executor, what wakes its
            event loop, a pidfd and the notice of its supervisor if it has one, and the rest is
            the transport's.
    """

    pidfd = -1
    supervisor: Supervisor | None = None
    _loop_socket: socket.socket | None = None

    def __init__(self, sock: socket.socket, welcome: dict[str, Any], fds: Sequence[int]) -> None:
        self.executor_pid: int = welcome["pid"]
        self.sock = sock
        self.cause: str | None = None  # of the executor's death, if it could say so
        self._process = os.getpid()
        self._gone_ns: int | None = None  # when it was found to be gone
        # Held for moments; by the same thread twice if a signal handler makes a call.
        self._reading = threading.RLock()
        others = 4 if welcome.get("supervised") else 2
        self.transport: ProducerTransport = producer_transport(welcome["offer"], fds[others:])
        # From here on there is something to close; nothing but these is likely to fail.
        self.pidfd = os.dup(fds[0])
        try:
            self._loop_socket = _socket(os.dup(fds[1]))
            self._loop_socket.setblocking(False)
            if others == 4:
                self.supervisor = _supervisor(fds[2], fds[3])
        except BaseException:
            self.close_descriptors()
            raise

    # ---- the other end -------------------------------------------------------------------

    def wake(self, sleeping: int) -> None:
        """Wake the executor; the ring calls it with what the bell says of how it sleeps."""
        if sleeping & PARKED:
            self.transport.wake_executor()
        if sleeping & POLLING and self._loop_socket is not None:
            try:
                self._loop_socket.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # full: it has been woken already; or closed: it is going

    def is_gone(self) -> bool:
        """Say whether the executor is dead or has hung up; one system call."""
        return control.is_gone(self.sock, self.pidfd)

    def is_dead(self) -> bool:
        """Say whether its process is dead, so that it will never touch the memory again."""
        return self.pidfd >= 0 and control.is_dead(self.pidfd)

    def may_die(self) -> bool:
        """Say whether an executor that is gone may only be about to be dead."""
        if self._gone_ns is None:
            self._gone_ns = now_ns()
        return now_ns() - self._gone_ns < _DYING_NS

    def read(self) -> bool:
        """Take in what the executor has sent, without waiting; False if nothing will follow.

        For whoever looks, from any thread: who reads a cause has noted it before another one
        finds nothing left to read. Not in a forked child, where all that is the parent's.
        """
        if os.getpid() != self._process:
            return True
        with self._reading:
            for _ in range(_PACKETS_MAX):
                try:
                    packet = self.sock.recv(control.LOST_NBYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return True
                except ConnectionResetError:
                    continue  # said once, ahead of what it had sent before; see `control.receive`
                except OSError:
                    return False
                if not packet:
                    return False
                if len(packet) > 1:  # else it only wakes event loops
                    self.cause = control.cause_in(packet) or self.cause
        return True

    # ---- our own end ---------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Tell the executor that the end of this line will be no accident."""
        try:
            self.sock.send(control.GOODBYE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone, or far too busy

    def hang_up(self) -> None:
        """Part from the executor; descriptors stay open, for event loops that still have them."""
        self.say_goodbye()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed before, or the executor is gone

    def close_descriptors(self) -> None:
        """Close what is open. Idempotent; in a forked child they are copies of the parent's."""
        self.sock.close()
        if self._loop_socket is not None:
            self._loop_socket.close()
        if self.supervisor is not None:
            self.supervisor.close()
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    # A loop that was to close them may have been closed before it came to that. The default is
    # found while modules still have their names.
    def __del__(self, interpreter_ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "sock") and not interpreter_ends():
            self.close_descriptors()


def _socket(fd: int) -> socket.socket:
    """Return a socket that takes *fd* over, which is closed if it is none."""
    try:
        return socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise


def _supervisor(pidfd: int, notice_fd: int) -> Supervisor:
    from ..protocol.supervision import Supervisor

    pidfd = os.dup(pidfd)
    try:
        return Supervisor(pidfd, os.dup(notice_fd))
    except BaseException:
        os.close(pidfd)
        raise
