"""What can be asked of an executor besides calls: what it has counted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ExecutorNotFound, HandshakeError
from ..protocol import access, control, descriptors, directory, names, snapshot
from .greeting import refusal
from .handshake import ANSWER_S, silent, unserved
from .report import report


def statistics(app: str, *, timeout: float = ANSWER_S) -> dict[str, Any]:
    """Return what the executor of *app* has counted since it began to serve.

    ``name``, ``pid``, ``version`` (of the protocol), ``transport``, ``device``, ``state``
    (``serving`` or ``draining``), ``uptime_s``; ``admission``, which is how many ``producers`` are
    attached, the ``nbytes`` of their segments, what both may be at most (``producers_max``,
    ``nbytes_max``), how many were ``refused``, and how many ``expelled`` because they broke the
    protocol; and ``functions``, for each by its name:

    - ``max_batch_size`` and ``wait_ms``, as it was defined;
    - ``producers`` attached now; ``slots`` and ``segment_nbytes`` of each of them;
    - ``calls_waiting`` and ``calls_in_flight`` now;
    - ``calls_done``, those that had an outcome; ``calls_failed`` of them; and those by the name
      of their error's class, ``failed``, with ``DeadlineExceeded`` for calls that came too late;
    - ``calls_cancelled``: those that were given up before they ran, cancelled or timed out; they
      are not among those done;
    - ``batches``, ``mean_batch_size`` (None if there were none), ``batch_sizes`` (how many batches
      there were of each size, which is a text), ``sealed`` (for each reason), and
      ``batch_sizes_by_reason``;
    - ``executions_halved``, those that failed and whose calls were run again in parts;
      ``executions_out_of_memory``; and ``memory_limit``, the most calls in a batch for which there
      was memory lately (None where it did suffice);
    - ``latency_us``: how long calls were ``waiting``, in ``staging``, ``running``, and in
      ``delivering``, each with ``count``, ``mean``, ``p50``, ``p90``, ``p99``, ``p99.9`` and
      ``max`` in microseconds (None if there were none). Percentiles are too large by a
      sixteenth at most.

    The executor answers from a thread beside the one that serves calls, which waits for nothing;
    *timeout* is how many seconds it is given.

    Raises:
        ExecutorNotFound: nobody serves *app*, or who does gives no answer.
        HandshakeError: the answer was something else.
        ProtocolError: the answer was malformed.
        ConfigError: this process may open no more descriptors.
    """
    asking = asked(app, {"kind": "statistics"}, timeout)
    with descriptors.needed(f"ask the executor of {app!r}"), asking as (sock, pidfd):
        try:
            control.wait_for_message(sock, pidfd)
            message, fds = control.receive(sock, max_fds=1)
        except TimeoutError:
            raise silent(app, timeout) from None
        except (EOFError, OSError):
            raise ExecutorNotFound(f"the executor of {app!r} has just stopped") from None
    try:
        if message["kind"] == "refused":
            raise refusal(message)
        if message["kind"] != "statistics" or not fds:
            raise HandshakeError(
                f"the executor of {app!r} answered with {message['kind'][:40]!r} "
                f"and {len(fds)} descriptors"
            )
        return report(snapshot.load(fds[0]))
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def asked(
    app: str, message: dict[str, Any], timeout: float
) -> Iterator[tuple[socket.socket, int]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(directory.socket_path(names.resolve(app))))
            access.check_executor(sock, app)
            pidfd = control.peer_pidfd(sock)
            try:
                if control.is_gone(sock, pidfd):  # a child of the dead executor still listens
                    raise EOFError
                control.send(sock, message)
            except BaseException:
                os.close(pidfd)
                raise
        except (FileNotFoundError, EOFError, ConnectionError):
            said = control.last_message(sock)  # whom it does not serve it does not listen to
            if said is not None and said["kind"] == "refused":
                raise refusal(said) from None
            raise unserved(app) from None
        except PermissionError:
            raise access.not_let_in(app) from None
        except TimeoutError:
            raise silent(app, timeout) from None
        except BlockingIOError:
            raise silent(app, None) from None
        try:
            yield sock, pidfd
        finally:
            os.close(pidfd)
