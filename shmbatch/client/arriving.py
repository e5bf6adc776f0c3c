"""How event loops' tasks get a connection: in each loop one asks, and the others wait for it.

A thread asks for it, and for no longer than an answer takes. While nobody serves a name, no
thread is kept, and whoever waits can be cancelled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import ExecutorNotFound
from ..protocol.clock import now_ns
from .connection import Connection
from .handshake import answer_within
from .limits import Limits
from .patience import ASK_EVERY_S, Patience

if TYPE_CHECKING:
    from .function import Function


class _Turn:
    """Who asks for one function in one loop, and when and how that was last in vain."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.tasks = 0  # that ask or wait; it goes with the last
        self.failed_ns = 0
        self.failure = ""


_turns: dict[tuple[asyncio.AbstractEventLoop, str, str], _Turn] = {}  # by name and function


async def connected(handle: Function, limits: Limits) -> Connection:
    """Return a live connection for a call with *limits*.

    Raises:
        as `Function.connect`.
    """
    name = handle.address.served_as()
    key = asyncio.get_running_loop(), name, handle.address.function
    turn = _turns.setdefault(key, _Turn())
    turn.tasks += 1
    try:
        return await _connected(handle, name, limits, turn)
    finally:
        turn.tasks -= 1
        if turn.tasks == 0:
            del _turns[key]


async def _connected(handle: Function, name: str, limits: Limits, turn: _Turn) -> Connection:
    since_ns, until_ns = now_ns(), limits.next_ns
    # Who has no time gets some all the same: the other task may be about to succeed.
    try:
        async with asyncio.timeout(None if until_ns is None else answer_within(until_ns)):
            await turn.lock.acquire()
    except TimeoutError:
        raise ExecutorNotFound(
            f"no executor serves {name!r} yet; another task waits for it too, wait longer with "
            f"timeout="
        ) from None
    try:
        patience = Patience(name, until_ns)
        while True:
            connection = handle.live()
            if connection is not None:
                return connection
            if turn.failed_ns < since_ns:  # nobody has asked since we came, or last asked
                try:
                    return await asyncio.to_thread(handle.connect, limits=limits, once=True)
                except ExecutorNotFound as error:
                    turn.failed_ns, turn.failure = now_ns(), str(error)
            if not patience.is_left():
                raise ExecutorNotFound(turn.failure)
            since_ns = now_ns()
            await asyncio.sleep(ASK_EVERY_S)
    finally:
        turn.lock.release()
