"""One process at the other end of the control socket, and how all we have of it is closed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocol import control
from ..protocol._core import ExecutorRing
from ..protocol.access import is_owner
from ..protocol.clock import now_ns
from . import closing
from .served import ServedFunction

if TYPE_CHECKING:
    from .staging.direct import Registration


class Connection:
    """One process at the other end, from accept on; a producer once it has a ring."""

    ring: ExecutorRing

    def __init__(self, sock: socket.socket, who: control.Credentials) -> None:
        sock.setblocking(False)  # or MSG_DONTWAIT is ignored, where a default timeout is set
        self.sock = sock
        self.since_ns = self.heard_ns = now_ns()
        self.pid = who.pid
        self.is_own = is_owner(who)  # of our user: may stop us, and functions are lent its slots
        self.pidfd = control.peer_pidfd(sock)
        self.function: ServedFunction = None  # type: ignore[assignment] # set when attached
        self.segment: Any = None
        self.registration: Registration | None = None  # of the segment, with the device
        # Who closes that, which waits for the device; the loop must not.
        self.retire: Callable[[Callable[[], None]], object] = lambda close: close()
        self.closed: Callable[[Connection], object] = lambda connection: None
        self.violated = False
        self.leaves = False  # it has said so, and its end will be no accident

    @property
    def attached(self) -> bool:
        return self.segment is not None

    def close(self) -> None:
        """Close descriptors; the memory goes when the last batch that uses it does. Idempotent."""
        closing.close(self.sock)
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        registration, self.registration = self.registration, None
        if registration is not None:
            self.retire(registration.close)
        if self.segment is not None:
            self.segment.handed_over()
        self.closed(self)
