"""How a producer gets its connection: find the name, greet the executor, attach to its offer."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from ..contract.batching import OtherBatching
from ..contract.signature import Signature
from ..errors import ExecutorNotFound, HandshakeError, ProtocolError, rebuilt
from ..protocol import control, descriptors, directory, names
from ..protocol.clock import now_ns
from ..protocol.layout import VERSION
from .connection import Connection

ANSWER_S = 10.0  # an executor that is there is given at least this long to answer
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
        try:
            remaining_s = 3600.0 if deadline_ns is None else (deadline_ns - now_ns()) / 1e9
            patience_s = max(remaining_s, answer_s)
            sock.settimeout(patience_s)
            sock.connect(str(path))
            connection = _greet(
                address, sock, signature, arrays=arrays, wait=wait, batching=batching
            )
            sock.settimeout(None)
            return connection
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
            if remaining_s <= 0:
                raise ExecutorNotFound(f"no executor serves {app!r}; {_remedy(address)}") from None
            time.sleep(min(_KNOCK_S[min(attempt, len(_KNOCK_S) - 1)], remaining_s))
            attempt += 1
        except BaseException:
            sock.close()
            raise


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


def _greet(
    address: names.Address,
    sock: socket.socket,
    signature: Signature | None,
    *,
    arrays: str,
    wait: str,
    batching: OtherBatching,
) -> Connection:
    uid = control.peer_credentials(sock).uid
    if uid != os.geteuid():
        raise HandshakeError(
            f"the executor of '{address}' runs as uid {uid} and this is uid {os.geteuid()}; "
            f"run both as one user"
        )
    control.send(
        sock,
        {
            "kind": "attach",
            "version": VERSION,
            "function": address.function,
            "signature": None if signature is None else signature.to_message(),
            "max_batch_size": batching.max_batch_size,
            "wait_ns": batching.wait_ns,
        },
    )
    pidfd = control.peer_pidfd(sock)
    try:
        control.wait_for_message(sock, pidfd)
    finally:
        os.close(pidfd)
    reply, fds = control.receive(sock, max_fds=4)
    try:
        if reply["kind"] == "refused":
            raise refusal(reply)
        if reply["kind"] == "lost":  # it dies just now
            raise EOFError
        if reply["kind"] != "welcome" or len(fds) < 3:
            raise HandshakeError(f"executor of '{address}' answered with {reply['kind']!r}")
        try:
            connection = Connection(address, sock, reply, fds, arrays=arrays, wait=wait)
        except HandshakeError:
            if control.is_gone(sock, None):  # and what it offered has gone with it
                raise EOFError from None
            raise
    except (KeyError, TypeError, ProtocolError) as error:
        raise HandshakeError(
            f"executor of '{address}' sent a malformed welcome: {error}"
        ) from None
    finally:
        for fd in fds:
            os.close(fd)
    control.send(sock, {"kind": "attached"})
    return connection


def refusal(reply: dict[str, Any]) -> Exception:
    """Rebuild the error with which the executor refused."""
    return rebuilt(reply.get("error"), reply.get("message"), HandshakeError)
