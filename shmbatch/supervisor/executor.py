"""One executor as its supervisor sees it: forked, told what to do, and buried."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..errors import ProtocolError
from ..protocol import control, orders
from ..protocol.clock import now_ns
from ..protocol.endings import ending
from .signals import Signals

log = logging.getLogger("shmbatch.supervisor")


def fork(signals: Signals) -> Executor | socket.socket:
    """Fork an executor and return it; in that, return its end of the line to this process.

    Raises:
        OSError: there is no process, or no descriptor, to be had.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as it is where the descriptor was closed
            stream.flush()  # or both would write what is in the buffer
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with signals.waiting():
            pid = os.fork()
            if pid == 0:
                signals.leave()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        ours.close()
        return theirs
    theirs.close()
    try:
        return Executor(pid, ours)
    except OSError:  # nobody could see it end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()
        raise


class Executor:
    """A child of this process that serves, or is about to, or has been replaced.

    Args:
        sock: the supervisor's end of the line to it.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)  # not reaped yet, so certainly its own
        self.since_ns = now_ns()
        self.ready_ns: int | None = None  # when it had loaded
        self.taken_ns: int | None = None  # when it took the name over
        self.failure: dict[str, str] | None = None  # the error it has reported
        self.is_to_take = False  # the name, from another one, or has
        self.service = ""  # what a service manager is to be told of it once it has the name
        self._sock = sock
        self._is_deaf = False

    def fds(self) -> list[int]:
        """Return what to look at: its pidfd, and the line to it while there is more to hear."""
        return [self.pidfd] if self._is_deaf else [self.pidfd, self._sock.fileno()]

    def order(self, kind: str) -> None:
        """Tell it, if it can hear."""
        orders.send(self._sock, {"kind": kind})

    def said(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield what it has said, with descriptors that are the caller's; does not wait."""
        while not self._is_deaf:
            try:
                yield control.receive(self._sock, max_fds=1, wait=False)
            except BlockingIOError:
                return
            except ProtocolError as error:  # for a descriptor that we may not open, say
                log.warning("process %d is not understood: %s", self.pid, error)
            except (EOFError, OSError):
                self._is_deaf = True

    def stop(self, hurry: bool) -> None:
        """Have it drain, or end at once."""
        if self.ready_ns is None:  # it has taken no call
            self.kill(signal.SIGKILL if hurry else signal.SIGTERM)
            return
        self.order("end" if hurry else "stop")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it lives."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def bury(self) -> int:
        """Reap it, which is dead, and return its exit status, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        self.close()
        return os.waitstatus_to_exitcode(status)

    def served_ns(self) -> int | None:
        """Return for how long it has served until now; None if it has not begun to."""
        return None if self.ready_ns is None else now_ns() - self.ready_ns

    def fate(self, status: int) -> str:
        """Say how it has ended."""
        if self.failure is not None:
            return f"{self.failure['error']}: {self.failure['message']}"
        how = ending(status)
        return how if self.ready_ns is not None else f"{how} while it started"

    def close(self) -> None:
        """Close descriptors; in another executor, too, where they are copies."""
        self._sock.close()
        os.close(self.pidfd)
