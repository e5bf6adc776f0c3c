"""What the executor tells those who come: their function, their welcome, its statistics."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from typing import Any

from ..contract.batching import BatchParameters, other_batching
from ..contract.signature import Signature
from ..errors import (
    ConfigError,
    HandshakeError,
    ProtocolError,
    ShmbatchError,
    UnknownFunction,
    VersionMismatch,
)
from ..protocol.layout import VERSION
from ..protocol.snapshot import Admission, Snapshot
from .served import ServedFunction


def asked_for(
    message: Mapping[str, Any], app: str, functions: Mapping[str, ServedFunction]
) -> ServedFunction:
    """Return the function, or that queue of it, which an attach message asks for.

    Raises:
        HandshakeError: version, name or signature do not fit.
        ProtocolError: the signature is malformed.
    """
    version = message.get("version")
    if version != VERSION:
        raise VersionMismatch(
            f"the executor of {app!r} speaks version {VERSION} of the protocol "
            f"and this producer version {str(version)[:20]}; install one shmbatch in both"
        )
    name = message.get("function")
    function = functions.get(name) if isinstance(name, str) else None
    if function is None:
        raise UnknownFunction(
            f"the executor of {app!r} has no function {str(name)[:80]!r}; "
            f"it has {', '.join(map(repr, functions))}"
        )
    if message.get("signature") is not None:
        theirs = Signature.from_message(message["signature"])
        ours = function.definition.signature
        if theirs != ours:
            raise ours.mismatch(theirs, function.address)
    return function.queue(_batching(message, function))


def _batching(message: Mapping[str, Any], function: ServedFunction) -> BatchParameters:
    wait_ns = message.get("wait_ns")
    if wait_ns is not None and type(wait_ns) is not int:
        raise ProtocolError(f"wait_ns arrived as {reprlib.repr(wait_ns)}, which is no int")
    wait_ms = None if wait_ns is None else wait_ns / 1e6
    try:
        other = other_batching(message.get("max_batch_size"), wait_ms)
        return other.instead_of(function.definition.parameters, function.address)
    except ConfigError as error:
        raise HandshakeError(str(error)) from None


def welcome(
    function: ServedFunction, offer: dict[str, Any], *, supervised: bool = False
) -> dict[str, Any]:
    """Return the message that a producer of *function* is let in with.

    Args:
        offer: what the transport says of the segment.
        supervised: another executor will come after this one, should it die.
    """
    return {
        "kind": "welcome",
        "pid": os.getpid(),
        "signature": function.definition.signature.to_message(),
        "max_batch_size": function.definition.parameters.max_batch_size,
        "capacity": function.capacity,
        "idempotent": function.definition.idempotent,
        "supervised": supervised,
        "offer": offer,
    }


def refusal(error: ShmbatchError) -> dict[str, Any]:
    """Return the message that somebody is refused with."""
    kind = type(error) if isinstance(error, HandshakeError) else HandshakeError
    return {"kind": "refused", "error": kind.__name__, "message": str(error)}


def statistics(
    app: str,
    functions: Mapping[str, ServedFunction],
    attached: Mapping[ServedFunction, int],
    transport: str,
    state: str,
    uptime_ns: int,
    admission: Admission,
) -> Snapshot:
    """Return what has been counted until now.

    Args:
        attached: how many producers each function has; one that it lacks has none.
        state: SERVING or DRAINING, as in the lock file.
    """
    return {
        "version": VERSION,
        "name": app,
        "pid": os.getpid(),
        "transport": transport,
        "device": next((each.device for each in functions.values()), "cpu"),
        "state": state,
        "uptime_ns": uptime_ns,
        "admission": admission,
        "functions": {
            _shown(name, each, function): each.counts(attached.get(each, 0))
            for name, function in functions.items()
            for each in (function, *tuple(function.queues.values()))
        },
    }


def _shown(name: str, queue: ServedFunction, function: ServedFunction) -> str:
    """Return what statistics call a function, or another queue of it."""
    if queue is function:
        return name
    parameters = queue.definition.parameters
    return f"{name}[{parameters.max_batch_size}, {parameters.wait_ns / 1e6:.12g} ms]"
