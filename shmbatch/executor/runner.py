"""Runs async functions: at once, or on the event loop for as long as they await.

A coroutine that never suspends is stepped to its end right here, a twentieth of the cost of a
turn of the event loop. So that it cannot tell the difference, that step already runs inside the
task that will go on with it if it does suspend (`asyncio.current_task`, timeouts and task groups
work from the first line on). The task of a coroutine that did not suspend waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Literal

from ..protocol._core import Batch
from .batcher import SealReason
from .isolating import Parts
from .staging.devices import Landing

Stage = Literal["staging", "running", "delivering"]

# A coroutine, the context it runs in, what it awaits, and whose it is.
_Suspended = tuple[Coroutine[Any, Any, Any], contextvars.Context, Any, "Run"]


class Run:
    """One execution of a batch: `done`, and then `value` or `error`. Used again and again."""

    __slots__ = (
        *("batch", "done", "error", "failed_in", "home", "landing", "parts", "reason", "size"),
        *("value", "watched"),
    )

    def __init__(self, batch: Batch) -> None:
        self.home = batch
        self.batch = batch  # or a part of one that failed
        self.parts: Parts[Batch] | None = None  # what else is left of that one
        self.reason = SealReason.DRAIN  # until launched
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.size = 0  # of the batch as the function sees it: its calls and padding
        self.landing: Landing | None = None  # when `value` is on the host
        self.watched = False  # somebody sleeps until then
        self.failed_in: Stage = "running"  # if there is an error

    def returned(self, value: Any) -> None:
        self.value = value
        self.done = True

    def raised(self, error: BaseException, stage: Stage = "running") -> None:
        self.error = error
        self.failed_in = stage
        self.done = True


class AsyncRunner:
    """Runs one async function; at most one execution at a time.

    Args:
        function: takes one list or stack a parameter.
        loop: where it suspends.
    """

    def __init__(self, function: Callable[..., Any], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self._host: _Host | None = None

    def start(self, run: Run, inputs: Sequence[Any]) -> None:
        """Call the function; the run is done unless the function awaits something."""
        value = self._function(*inputs)
        if not inspect.iscoroutine(value):  # it was wrapped by something that is not async
            run.returned(value)
            return
        if self._host is None or self._host.is_spent():
            self._host = _Host(self._loop)
        self._host.step(value, run)

    def close(self) -> None:
        """End the waiting task; a coroutine in it is cancelled. Idempotent."""
        if self._host is not None:
            self._host.close()
            self._host = None


class _Host:
    """A task that takes over coroutines which have already been stepped once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()
        self._next: asyncio.Future[_Suspended] = loop.create_future()
        self._closing = False
        self.task = loop.create_task(self._serve())
        # A task that is cancelled before it began, as the first step may do, would never begin.
        loop.call_soon(loop.stop)
        loop.run_forever()

    def step(self, coroutine: Coroutine[Any, Any, Any], run: Run) -> None:
        """Start *coroutine*; if it suspends, the task goes on with it."""
        context = self._context.copy()  # as a task of its own would have
        asyncio._set_running_loop(self._loop)
        asyncio.tasks._enter_task(self._loop, self.task)
        try:
            awaited = context.run(coroutine.send, None)
        except StopIteration as stop:
            run.returned(stop.value)
        except BaseException as error:
            run.raised(error)
        else:
            self._next.set_result((coroutine, context, awaited, run))
        finally:
            asyncio.tasks._leave_task(self._loop, self.task)
            asyncio._set_running_loop(None)

    async def _serve(self) -> None:
        while True:
            thrown: BaseException | None = None
            while not self._next.done():
                try:
                    await asyncio.wait({self._next})
                except asyncio.CancelledError as error:
                    # In its first step the coroutine had this task cancelled, as
                    # asyncio.timeout(0) does. If it has suspended it must hear of that.
                    thrown = error if self._next.done() else None
            if self._next.cancelled():
                return
            coroutine, context, awaited, run = self._next.result()
            self._next = self._loop.create_future()
            try:
                run.returned(await _Rest(coroutine, context, awaited, thrown))
            except BaseException as error:
                run.raised(error)
            if self._closing:
                return
            self._loop.stop()  # the executor has something to complete
            if self.task.cancelling():
                return  # what cancelled it may do so again; the next run gets a new host

    def is_spent(self) -> bool:
        """Whether the task has ended, or was cancelled by a coroutine that did not suspend."""
        if self.task.cancelling():
            self._next.cancel()  # ends it, in the loop's next turn
            return True
        return self.task.done()

    def close(self) -> None:
        """End the task, and what it goes on with."""
        self._closing = True
        self._next.cancel()
        self.task.cancel()
        ended = self._loop.create_task(asyncio.wait({self.task}, timeout=1))
        ended.add_done_callback(lambda _: self._loop.stop())
        while not ended.done():  # a wake-up that comes late stops the loop too
            self._loop.run_forever()


class _Rest:
    """Await the rest of a coroutine that has already yielded *awaited*."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context,
        awaited: Any,
        thrown: BaseException | None,
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._awaited = awaited
        self._thrown = thrown

    def __await__(self) -> Generator[Any, Any, Any]:
        send, throw, step = self._coroutine.send, self._coroutine.throw, self._context.run
        awaited = self._awaited
        thrown = self._thrown
        while True:
            try:
                if thrown is not None:
                    error, thrown = thrown, None
                    awaited = step(throw, error)
                    continue
                try:
                    sent = yield awaited
                except BaseException as error:
                    thrown = error
                    continue
                awaited = step(send, sent)
            except StopIteration as stop:
                return stop.value
