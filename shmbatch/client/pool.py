"""Which connection serves a handle: one for each address and set of options, in each process."""

from __future__ import annotations

import atexit
import os
import threading
import time

from ..contract.batching import OtherBatching
from ..contract.signature import Signature
from ..errors import ExecutorNotFound
from ..protocol import names
from ..protocol.clock import now_ns
from ..protocol.spinning import wait_mode
from .connection import Connection
from .handshake import ANSWER_S, DECORATED, connect
from .patience import ASK_EVERY_S, NotInTime, Patience, check_loaded

_Key = tuple[str, str, str, str, OtherBatching]

# Both kinds by the same thread twice if a signal handler makes a call.
_mutex = threading.RLock()  # never held for long
_connecting: dict[_Key, threading.RLock] = {}  # held while somebody waits for an executor
_connections: dict[_Key, Connection] = {}


def connection_to(
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    *,
    arrays: str,
    wait: str | None,
    batching: OtherBatching = DECORATED,
    answer_s: float = ANSWER_S,
    kept_ns: int | None = 0,
    served: bool = False,
) -> Connection:
    """Return this process's live connection, made now if there is none.

    Waits while another thread connects to the same function, and for nobody else; if it is to be
    *served*, also for the successor of an executor that has died.

    Args:
        kept_ns: until when to wait while a supervisor keeps the name, if that is later; None for
            as long as it does.

    Raises:
        as `handshake.connect`.
    """
    mode = wait_mode(wait)
    name = address.served_as()
    key = (name, address.function, arrays, mode, batching)
    patience = Patience(name, kept_ns)
    while True:
        try:
            return _connection_to(
                key, address, signature, deadline_ns, batching, answer_s=answer_s, served=served
            )
        except ExecutorNotFound as error:
            if not patience.is_left():
                if patience.is_over:
                    raise NotInTime(str(error)) from None
                raise
        time.sleep(ASK_EVERY_S)  # not in there, where others would have to wait for us


def _connection_to(
    key: _Key,
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    batching: OtherBatching,
    *,
    answer_s: float,
    served: bool,
) -> Connection:
    connection = _connections.get(key)
    if connection is not None and served:
        connection.await_executor(deadline_ns)
    if connection is None or not connection.is_usable():
        connection = _connected(key, address, signature, deadline_ns, batching, answer_s)
    if signature is not None and signature != connection.signature:
        # Made for a handle that knew none; the executor compares only when connecting.
        raise connection.signature.mismatch(signature, str(address))
    return connection


def _connected(
    key: _Key,
    address: names.Address,
    signature: Signature | None,
    deadline_ns: int | None,
    batching: OtherBatching,
    answer_s: float,
) -> Connection:
    """Connect, one thread at a time."""
    with _mutex:
        connecting = _connecting.setdefault(key, threading.RLock())
    # Who has no time gets some all the same: the other thread may be about to succeed.
    patience_s = -1.0 if deadline_ns is None else max(answer_s, (deadline_ns - now_ns()) / 1e9)
    if not connecting.acquire(timeout=patience_s):
        raise ExecutorNotFound(
            f"no executor serves {key[0]!r} yet; another thread waits for it too, wait longer "
            f"with timeout="
        )
    try:
        connection = _connections.get(key)
        if connection is not None and connection.is_usable():
            return connection  # that thread has
        if connection is not None and connection.dead:
            connection.close()
        check_loaded(key[0])
        connection = connect(
            address,
            signature,
            deadline_ns,
            arrays=key[2],
            wait=key[3],
            batching=batching,
            answer_s=answer_s,
        )
        with _mutex:
            faster = _connections.get(key)  # of a signal handler's call
            if faster is None or not faster.is_usable():
                _connections[key] = connection
                return connection
        connection.close()
        return faster
    finally:
        connecting.release()


def rebind(app: str) -> None:
    """Have handles of *app*, and of instances of its classes, look up anew what its name means.

    Connections stay open for the calls that were made over them.
    """
    with _mutex:
        connections = list(_connections.values())
    for connection in connections:
        for handle in list(connection.handles):
            if handle.address.app == app:
                handle.forget(connection)


def forget(name: str, *, instances: bool = False) -> None:
    """Hang up on the executor of that name.

    Args:
        instances: and on those of instances of its classes.
    """
    with _mutex:
        gone = [
            key
            for key in _connections
            if key[0] == name or (instances and key[0].startswith(f"{name}-"))
        ]
        closing = [_connections.pop(key) for key in gone]
    for connection in closing:
        connection.close()


def _after_fork() -> None:
    """In a forked child: the parent's connections are not ours, nor is a lock it may hold."""
    global _mutex
    _mutex = threading.RLock()
    _connections.clear()
    _connecting.clear()


def _at_exit() -> None:
    """Part as one who leaves, and not as one who has died; nothing is closed that is in use."""
    for connection in list(_connections.values()):
        connection.say_goodbye()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
