"""What a producer and an executor say to each other before the first call."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..contract.batching import OtherBatching
from ..contract.signature import Signature
from ..errors import ConfigError, HandshakeError, ProtocolError, rebuilt
from ..protocol import access, control, names
from ..protocol.layout import VERSION
from .line import Line


def greet(
    address: names.Address,
    sock: socket.socket,
    signature: Signature | None,
    batching: OtherBatching,
) -> int:
    """Ask to be attached; return a pidfd of who is to answer, which is the caller's to close.

    Raises:
        HandshakeError: it is not an executor of ours.
        EOFError, OSError: it is gone.
    """
    access.check_executor(sock, str(address))
    attach = {
        "kind": "attach",
        "version": VERSION,
        "function": address.function,
        "signature": None if signature is None else signature.to_message(),
        "max_batch_size": batching.max_batch_size,
        "wait_ns": batching.wait_ns,
    }
    try:
        control.send(sock, attach)
    except ConnectionError:
        said = control.last_message(sock)  # whom it does not serve it does not listen to
        if said is not None and said["kind"] == "refused":
            raise refusal(said) from None
        raise
    return control.peer_pidfd(sock)


@contextmanager
def answered(address: names.Address, sock: socket.socket) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Receive the answer, and confirm on leaving that its offer was taken.

    *sock* is the line's from then on; if what follows raises, its other descriptors are closed.

    Raises:
        HandshakeError: the executor refuses, or the answer is malformed.
        EOFError, OSError: it is gone.
    """
    reply, fds = control.receive(sock, max_fds=6)
    try:
        if reply["kind"] == "refused":
            raise refusal(reply)
        if reply["kind"] == "lost":  # it dies just now
            raise EOFError
        if reply["kind"] != "welcome" or len(fds) < (5 if reply["supervised"] else 3):
            raise HandshakeError(f"executor of '{address}' answered with {reply['kind']!r}")
        try:
            line = Line(sock, reply, fds)
        except HandshakeError:
            if control.is_gone(sock, None):  # and what it offered has gone with it
                raise EOFError from None
            raise
        try:
            yield line, reply
            control.send(sock, {"kind": "attached"})
        except BaseException:
            line.close_descriptors()
            raise
    except (ConfigError, HandshakeError):  # which say themselves what is wrong
        raise
    # What a welcome says is used where it is needed, by what takes it for what it should be.
    except (LookupError, TypeError, ValueError, ArithmeticError, ProtocolError) as error:
        raise HandshakeError(
            f"executor of '{address}' sent a malformed welcome: {error}"
        ) from None
    finally:
        for fd in fds:
            os.close(fd)


def refusal(reply: dict[str, Any]) -> Exception:
    """Rebuild the error with which the executor refused."""
    return rebuilt(reply.get("error"), reply.get("message"), HandshakeError)
