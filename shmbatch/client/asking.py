"""What can be asked of an executor besides calls: to stop, and what it has counted."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ExecutorNotFound
from ..protocol import control, names
from .handshake import ANSWER_S, silent


def stop(app: str, *, now: bool = False) -> None:
    """Have the executor of *app* end; return when its process is gone.

    Args:
        now: lose calls already made instead of finishing them.

    Raises:
        ExecutorNotFound: nobody serves *app*.
    """
    with _asked(app, {"kind": "stop", "now": now}) as (_, pidfd):
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
    names.sweep()


def statistics(app: str) -> dict[str, Any]:
    """Return what the executor of *app* has counted, a dictionary a function.

    ``producers`` attached now; ``calls_done`` and of those ``calls_failed``; ``batch_sizes``, how
    many batches of each size; ``sealed``, how many for each reason.

    Raises:
        ExecutorNotFound: nobody serves *app*.
    """
    with _asked(app, {"kind": "statistics"}) as (sock, pidfd):
        try:
            control.wait_for_message(sock, pidfd)
            message, _ = control.receive(sock)
        except TimeoutError:
            raise silent(app) from None
        except (EOFError, OSError):
            raise ExecutorNotFound(f"the executor of {app!r} has just stopped") from None
        functions: dict[str, Any] = message["functions"]
        return functions


@contextmanager
def _asked(app: str, message: dict[str, Any]) -> Iterator[tuple[socket.socket, int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(names.socket_path(names.resolve(app))))
            pidfd = control.peer_pidfd(sock)
            try:
                if control.is_gone(sock, pidfd):  # a child of the dead executor still listens
                    raise EOFError
                control.send(sock, message)
            except BaseException:
                os.close(pidfd)
                raise
        except (FileNotFoundError, EOFError, ConnectionError):
            names.sweep()
            raise ExecutorNotFound(f"no executor serves {app!r}") from None
        except (TimeoutError, BlockingIOError):
            raise silent(app) from None
        try:
            yield sock, pidfd
        finally:
            os.close(pidfd)
