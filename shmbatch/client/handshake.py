"""How a producer gets its connection: find the name, greet the executor, attach to its offer."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from .. import errors
from ..contract.signature import Signature
from ..errors import ExecutorNotFound, HandshakeError, ProtocolError
from ..protocol import control, names
from ..protocol.clock import now_ns
from ..protocol.layout import VERSION
from .connection import Connection

ANSWER_S = 10.0  # an executor that is there is given at least this long to answer
_KNOCK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # between attempts to connect


def connect(
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    *,
    arrays: str,
    wait: str,
) -> Connection:
    """Connect to whoever serves *address*, waiting until *deadline_ns* for somebody to.

    Args:
        signature: what the caller believes the function's signature is; None to be told.

    Raises:
        ExecutorNotFound: nobody serves the name in time.
        HandshakeError: executor and producer do not fit together.
    """
    app = names.resolve(address.app)
    path = names.socket_path(app)
    attempt = 0
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            remaining_s = 3600.0 if deadline_ns is None else (deadline_ns - now_ns()) / 1e9
            sock.settimeout(max(remaining_s, ANSWER_S))
            sock.connect(str(path))
            connection = _greet(address, sock, signature, arrays=arrays, wait=wait)
            sock.settimeout(None)
            return connection
        except TimeoutError:
            sock.close()
            raise silent(app) from None
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
                raise ExecutorNotFound(
                    f"no executor serves {app!r}; start one with `shmbatch start FILE`, or wait "
                    f"for it with shmbatch.connect('{address}', timeout=...)"
                ) from None
            time.sleep(min(_KNOCK_S[min(attempt, len(_KNOCK_S) - 1)], remaining_s))
            attempt += 1
        except BaseException:
            sock.close()
            raise


def silent(app: str) -> ExecutorNotFound:
    """Return the error of an executor that is there and does not answer."""
    return ExecutorNotFound(
        f"the executor of {app!r} does not answer; it may be stopped or overloaded"
    )


def _greet(
    address: names.Address,
    sock: socket.socket,
    signature: Signature | None,
    *,
    arrays: str,
    wait: str,
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
            raise _refusal(reply)
        if reply["kind"] != "welcome" or len(fds) < 3:
            raise HandshakeError(f"executor of '{address}' answered with {reply['kind']!r}")
        connection = Connection(address, sock, reply, fds, arrays=arrays, wait=wait)
    except (KeyError, TypeError, ProtocolError) as error:
        raise HandshakeError(
            f"executor of '{address}' sent a malformed welcome: {error}"
        ) from None
    finally:
        for fd in fds:
            os.close(fd)
    control.send(sock, {"kind": "attached"})
    return connection


def _refusal(reply: dict[str, Any]) -> Exception:
    """Rebuild the error with which the executor refused."""
    kind = getattr(errors, str(reply.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.ShmbatchError)):
        kind = HandshakeError
    return kind(str(reply.get("message")))
