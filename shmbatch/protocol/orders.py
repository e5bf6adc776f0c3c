"""What a supervisor and an executor of its own say to each other, on a socket pair.

::

    executor                                       supervisor
    claimed    it has the name            ----->   keeps the name from now on
               loads                      <-----   kept
    log        it writes elsewhere now,
               to the descriptor sent     ----->   writes there, too
    notify     what a service manager             passes it on
               is to be told              ----->
    failed     why it cannot serve; ends  ----->   takes it for the cause
    ready      it accepts producers       ----->
    draining   somebody told it to stop,  ----->   starts no other one
               or, with now, to end at
               once
    reload     with the socket of who     ----->   forks the next one; answers there itself
               asks for it
               drain                      <-----   stop
               end at once                <-----   end

A reload, from when the next executor has loaded. It listens then, beside the old one::

    old                          supervisor                         next
                                          <-----   ready      it listens at <name>.next
    gives the name up    <-----  yield
    yielded              ----->  take     ----->   claims the name, renames its socket over the old
                                          <-----   taken
    tells its producers, <-----  replaced
    accepts nobody more
    released             ----->  answers who asked
    drains, ends

A side that does not read is not waited for, and misses what does not fit its queue any more. The
supervisor's death is told by its pidfd, the executor's likewise: either end of the socket may be
open in a child that somebody forked.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from ..errors import ProtocolError
from . import control
from .supervision import Supervisor


class Orders:
    """An executor's end. Any thread may use it.

    Args:
        keeper: pid of the supervisor.
        name: that the executors before this one had; None for the first.
        succeeds: whether one of them still serves, and is to be taken over from.
    """

    def __init__(
        self,
        sock: socket.socket,
        supervisor: Supervisor,
        *,
        keeper: int,
        name: str | None,
        succeeds: bool,
    ) -> None:
        self.supervisor = supervisor
        self.keeper = keeper
        self.name = name
        self.succeeds = succeeds
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def say(self, kind: str, fds: Sequence[int] = (), **what: Any) -> bool:
        """Tell the supervisor, if it is there to be told, and say whether it was."""
        return send(self._sock, {"kind": kind, **what}, fds)

    def notify(self, **state: Any) -> None:
        """Have a service manager be told; as what `notifier` returns."""
        self.say("notify", state=state)

    def next(self) -> str | None:
        """Return the next order; None if there will be no more.

        Raises:
            BlockingIOError: there is none yet.
        """
        try:
            message, _ = control.receive(self._sock, wait=False)
        except (EOFError, ConnectionError, ProtocolError):
            return None
        order: str = message["kind"]
        return order

    def wait(self) -> None:
        """Wait for the next order, or until the supervisor is dead, and forget it."""
        pidfd, _ = self.supervisor.fds()
        try:
            control.wait_for_message(self._sock, pidfd)
        except EOFError:
            return
        self.next()

    def close(self) -> None:
        """Close what this process has of it and of its supervisor. Idempotent."""
        self._sock.close()
        self.supervisor.close()


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
    """Send a message without waiting; False if the other side is gone, or does not read."""
    try:
        control.send(sock, message, fds, wait=False)
    except OSError:
        return False
    return True
