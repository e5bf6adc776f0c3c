"""How a producer gets its connection: find the name, wait for somebody to serve it, attach."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from ..contract.batching import OtherBatching
from ..contract.signature import Signature
from ..errors import ExecutorNotFound
from ..protocol import access, control, descriptors, directory, names
from ..protocol.clock import now_ns
from .connection import Connection
from .greeting import answered, greet

ANSWER_S = 10.0  # an executor that is there is given at least this long to answer
_LATE_ANSWER_S = 1.0  # and this long, however late it is for who asks
DECORATED = OtherBatching()  # nothing other than what the function is decorated with
_KNOCK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # between attempts to connect


def connect(
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    *,
    arrays: str,
    wait: str,
    batching: OtherBatching = DECORATED,
    answer_s: float = ANSWER_S,
) -> Connection:
    """Connect to whoever serves *address*, waiting until *deadline_ns* for somebody to.

    Args:
        signature: what the caller believes the function's signature is; None to be told.
        batching: which of the function's queues.
        answer_s: how long an executor that is there may take to answer, if that is later.

    Raises:
        ExecutorNotFound: nobody serves the name in time.
        HandshakeError: executor and producer do not fit together.
        ConfigError: this process may open no more descriptors.
    """
    with descriptors.needed(f"connect to '{address}'"):
        return _connect(
            address,
            signature,
            deadline_ns,
            arrays=arrays,
            wait=wait,
            batching=batching,
            answer_s=answer_s,
        )


def _connect(
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    *,
    arrays: str,
    wait: str,
    batching: OtherBatching,
    answer_s: float,
) -> Connection:
    app = address.served_as()
    path = directory.socket_path(app)
    attempt = 0
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found = _found_at(path)
        try:
            remaining_s = 3600.0 if deadline_ns is None else (deadline_ns - now_ns()) / 1e9
            patience_s = max(remaining_s, answer_s)
            sock.settimeout(patience_s)
            sock.connect(str(path))
            pidfd = greet(address, sock, signature, batching)
            try:
                control.wait_for_message(sock, pidfd)
            finally:
                os.close(pidfd)
            with answered(address, sock) as (line, welcome):
                connection = Connection(
                    address, app, line, welcome, arrays=arrays, wait=wait, batching=batching
                )
            sock.settimeout(None)
            return connection
        except PermissionError:
            sock.close()
            raise access.not_let_in(str(address)) from None
        except TimeoutError:
            sock.close()
            raise silent(app, patience_s) from None
        except (
            FileNotFoundError,  # nobody has served it yet
            ConnectionRefusedError,  # nobody listens any more
            BlockingIOError,  # its queue of connections is full
            ConnectionResetError,
            BrokenPipeError,
            EOFError,
        ):
            sock.close()
            if remaining_s <= 0 and _found_at(path) not in (None, found):
                continue  # at a reload: another executor has just taken over
            if remaining_s <= 0:
                raise ExecutorNotFound(f"no executor serves {app!r}; {_remedy(address)}") from None
            time.sleep(min(_KNOCK_S[min(attempt, len(_KNOCK_S) - 1)], remaining_s))
            attempt += 1
        except BaseException:
            sock.close()
            raise


def answer_within(until_ns: int | None) -> float:
    """Return how long an executor may take to answer somebody who has until *until_ns*."""
    if until_ns is None:
        return ANSWER_S
    return max(_LATE_ANSWER_S, min(ANSWER_S, (until_ns - now_ns()) / 1e9))


def _found_at(path: Path) -> tuple[int, int] | None:
    """Return what tells the socket at *path* from others that were, or will be, there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _remedy(address: names.Address) -> str:
    if address.instance:  # which `connect` cannot name
        user_class = address.function.partition(".")[0]
        return f"start one with `shmbatch start FILE::{user_class} --param NAME=VALUE`"
    return (
        f"start one with `shmbatch start FILE`, or wait for it with "
        f"shmbatch.connect('{address}', timeout=...)"
    )


def unserved(app: str) -> ExecutorNotFound:
    """Return the error of a name that nobody serves."""
    return ExecutorNotFound(
        f"no executor serves {app!r}; see `shmbatch ps`, or start one with `shmbatch start FILE`"
    )


def silent(app: str, patience_s: float | None) -> ExecutorNotFound:
    """Return the error of an executor that is there and does not answer.

    Args:
        patience_s: how long it was given; None where its queue had no room for the question.
    """
    within = "" if patience_s is None else f" within {round(patience_s, 1):g} seconds"
    return ExecutorNotFound(
        f"the executor of {app!r} does not answer{within}; it may be stopped or overloaded"
    )
