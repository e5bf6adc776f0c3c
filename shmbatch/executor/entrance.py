"""Who comes in: whom the executor does not serve, and has no descriptor for, is turned away."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import suppress

from ..errors import HandshakeError, ShmbatchError
from ..protocol import control
from ..protocol.access import Access
from . import closing, greeting
from .connection import Connection

log = logging.getLogger("shmbatch.executor")


class Entrance:
    """A listening socket, and a descriptor in reserve for when there is no other.

    Args:
        listener: bound and listening; closed by `close`.
        app: the name that is served, for messages.
        access: who is let in beside this process's user.
    """

    def __init__(self, listener: socket.socket, app: str, access: Access) -> None:
        self.refused = 0  # how many
        self._listener = listener
        self._app = app
        self._access = access
        self._reserve_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        listener.setblocking(False)

    def fileno(self) -> int:
        """Return the listening socket's descriptor; -1 once it is closed."""
        return self._listener.fileno()

    def accept(self) -> Connection | None:
        """Return the next one; None if that was turned away, or is gone. Does not wait."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log.warning("cannot accept a producer: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return None
        try:
            who = control.peer_credentials(sock)
            if not self._access.admits(sock, who):
                self._keep_out(sock, who)
                return None
            return Connection(sock, who)
        except (OSError, EOFError, ShmbatchError) as error:
            log.warning("cannot watch a producer: %s", error)
            closing.close(sock)
            return None

    def close(self) -> None:
        """Let nobody in any more, and hang up on who was not let in yet. Idempotent."""
        closing.close_listener(self._listener)
        reserve, self._reserve_fd = self._reserve_fd, -1
        if reserve >= 0:
            os.close(reserve)

    def _keep_out(self, sock: socket.socket, who: control.Credentials) -> None:
        self.refused += 1
        log.warning("refused a producer of uid %d, process %d", who.uid, who.pid)
        refusal = greeting.refusal(
            HandshakeError(
                f"the executor of {self._app!r} does not serve uid {who.uid}; "
                f"start it with --allow-uid {who.uid}"
            )
        )
        with suppress(OSError):  # it is gone
            control.send(sock, refusal, wait=False)
        closing.close(sock)

    def _turn_away(self) -> None:
        """Hang up on the next producer, for whom no descriptor is left but our reserve.

        Left in the queue, it would wake this thread again at once, for ever.
        """
        if self._reserve_fd >= 0:
            reserve, self._reserve_fd = self._reserve_fd, -1
            os.close(reserve)
        try:
            closing.close(self._listener.accept()[0])
            self._reserve_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # somebody else took the descriptor; the next one is turned away later
