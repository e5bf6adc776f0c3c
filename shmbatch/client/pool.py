"""Which connection serves a handle: one for each (address, kind of arrays) and process."""

from __future__ import annotations

import os
import threading

from ..contract.signature import Signature
from ..protocol import names
from ..protocol.spinning import wait_mode
from .connection import Connection, connect

_Key = tuple[str, str, str]

_mutex = threading.Lock()
_connections: dict[_Key, Connection] = {}


def connection_to(
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    *,
    arrays: str,
    wait: str | None,
) -> Connection:
    """Return this process's live connection, made now if there is none.

    Raises:
        as `connection.connect`.
    """
    key = (names.resolve(address.app), address.function, arrays)
    mode = wait_mode(wait)
    with _mutex:
        connection = _connections.get(key)
        if connection is None or connection.dead or connection.ring.forked:
            connection = connect(address, signature, deadline_ns, arrays=arrays, wait=mode)
            _connections[key] = connection
    return connection


def forget(app: str) -> None:
    """Hang up on everything that *app* resolves to in this process."""
    with _mutex:
        gone = [key for key in _connections if key[0] == app]
        closing = [_connections.pop(key) for key in gone]
    for connection in closing:
        connection.close()


def _after_fork() -> None:
    """In a forked child: the parent's connections are not ours, nor is a lock it may hold."""
    global _mutex
    _mutex = threading.Lock()
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork)
