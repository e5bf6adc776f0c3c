"""How event loops' tasks get a connection: in each loop one asks, and the others wait for that.

A thread asks, for no longer than an answer takes, or the start of an instance. While nobody
serves a name, no thread is kept. Whoever waits can be cancelled; what was asked goes on, and the
next one waits for it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ..errors import ExecutorNotFound
from ..protocol.clock import now_ns
from .connection import Connection
from .limits import Limits, unserved
from .patience import ASK_EVERY_S, Patience

if TYPE_CHECKING:
    from .function import Function

_ANSWER_MIN_S = 1.0  # for who has hardly any time: the answer may be about to come

_Key = tuple[asyncio.AbstractEventLoop, str, str]  # by loop, name and function


class _Asking:
    """What the tasks of one loop ask about one function, and what came of it."""

    def __init__(self, key: _Key) -> None:
        self.tasks = 0
        self.asked: asyncio.Future[Connection] | None = None  # under way
        self.vain_ns = 0  # when that was asked which was last in vain, and why it was
        self.failure = ""
        self._key = key

    def ask(self, handle: Function, limits: Limits) -> asyncio.Future[Connection]:
        asked = self._key[0].run_in_executor(
            None, partial(handle.connect, limits=limits, once=True)
        )
        self.asked = asked
        asked.add_done_callback(partial(self._answered, now_ns()))
        return asked

    def _answered(self, asked_ns: int, asked: asyncio.Future[Connection]) -> None:
        self.asked = None
        error = None if asked.cancelled() else asked.exception()
        if isinstance(error, ExecutorNotFound):
            self.vain_ns, self.failure = asked_ns, str(error)
        self.go()

    def go(self) -> None:
        """Be forgotten with the last task, unless the next one could wait for what is asked."""
        if self.tasks == 0 and self.asked is None:
            _asking.pop(self._key, None)


_asking: dict[_Key, _Asking] = {}


async def connected(handle: Function, limits: Limits) -> Connection:
    """Return a live connection for a call with *limits*.

    Raises:
        as `Function.connect`.
    """
    name = handle.address.served_as()
    for known in list(_asking):
        if known[0].is_closed():
            _asking.pop(known, None)
    key = asyncio.get_running_loop(), name, handle.address.function
    asking = _asking.setdefault(key, _Asking(key))
    asking.tasks += 1
    try:
        return await _connected(handle, Patience(name, limits.next_ns), limits, asking)
    finally:
        asking.tasks -= 1
        asking.go()


async def _connected(
    handle: Function, patience: Patience, limits: Limits, asking: _Asking
) -> Connection:
    since_ns = now_ns()
    while True:
        connection = handle.live()
        if connection is not None:
            return connection
        if asking.asked is None and asking.vain_ns < since_ns:
            asked = asking.ask(handle, limits)
            await asyncio.wait((asked,))
            if not isinstance(asked.exception(), ExecutorNotFound):
                return asked.result()
        elif asking.asked is not None and not await _waited(asking.asked, limits.next_ns):
            patience.is_left()  # which says why not
            raise _failure(
                handle,
                patience,
                limits,
                "no executor has answered yet, and another task waits for it, too; wait longer "
                "with timeout=",
            )
        if asking.vain_ns >= since_ns:  # for us, too
            if not patience.is_left():
                raise _failure(handle, patience, limits, asking.failure)
            since_ns = now_ns()
            await asyncio.sleep(ASK_EVERY_S)


def _failure(handle: Function, patience: Patience, limits: Limits, message: str) -> Exception:
    return unserved(handle.address, limits) if patience.is_over else ExecutorNotFound(message)


async def _waited(asked: asyncio.Future[Connection], until_ns: int | None) -> bool:
    """Wait for what another task has asked; False if there is no more time."""
    timeout = None
    if until_ns is not None:
        timeout = max(_ANSWER_MIN_S, (until_ns - now_ns()) / 1e9)
    answered, _ = await asyncio.wait((asked,), timeout=timeout)
    return bool(answered)
