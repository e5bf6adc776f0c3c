"""How many calls a map keeps in flight, and in which order their results are yielded."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import (
    CallTimeout,
    DeadlineExceeded,
    ExecutorClosed,
    ExecutorGone,
    ExecutorNotFound,
    InputError,
    RingFull,
)
from .call import FunctionCall

if TYPE_CHECKING:
    import asyncio

    from .connection import Connection
    from .function import Function

Inputs = Iterator[tuple[Any, ...]]
AsyncInputs = AsyncIterator[tuple[Any, ...]]

# What concerns one input alone: it takes that input's place among the results.
_REFUSALS = (InputError, RingFull, CallTimeout, DeadlineExceeded)

# What concerns every input to come: it is raised when all that was submitted has been yielded.
_ENDS = (ExecutorClosed, ExecutorGone, ExecutorNotFound)


def _window(connection: Connection) -> int:
    """Two batches: one runs while the next one fills. Less where there are fewer slots."""
    return max(1, min(connection.capacity, 2 * connection.max_batch_size))


def run(
    function: Function, inputs: Inputs, order_outputs: bool, return_exceptions: bool
) -> Iterator[Any]:
    """Call *function* with each of *inputs*; see `Function.map`."""
    pending: deque[FunctionCall] = deque()
    exhausted = False
    end: Exception | None = None
    try:
        connection = function.connect()
        window = _window(connection)
        while pending or not exhausted:
            while not exhausted and len(pending) < window:
                try:
                    arguments = next(inputs)
                except StopIteration:
                    exhausted = True
                    break
                try:
                    pending.append(function.spawn(*arguments))
                except _REFUSALS as error:
                    pending.append(FunctionCall._refused(connection, error))
                except _ENDS as error:
                    exhausted, end = True, error
                    break
                if pending[0].done():
                    break  # a slow iterator must not keep results back
            if pending:
                yield _pop(pending, order_outputs)._result(return_exceptions)
        if end is not None:
            raise end
    finally:
        _cancel(pending)


def _pop(pending: deque[FunctionCall], ordered: bool) -> FunctionCall:
    """Remove and return a call that is done, the first one if *ordered*; wait until there is one.

    Who waits may be interrupted, so nothing is removed that is not done.
    """
    if ordered:
        if not pending[0].done():
            pending[0]._wait()
        return pending.popleft()
    while True:
        for at, call in enumerate(pending):
            if call.done():
                del pending[at]
                return call
        pending[0]._wait_any(pending)


def _cancel(pending: Iterable[FunctionCall]) -> None:
    """Give up what nobody will ask for; in a forked child the calls are the parent's."""
    for call in pending:
        if not call._connection.ring.forked:
            call.cancel()


async def run_aio(
    function: Function,
    inputs: Inputs | AsyncInputs,
    order_outputs: bool,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """Call *function* with each of *inputs*; results are yielded while inputs are awaited."""
    import asyncio

    from .arriving import connected  # which needs it, too

    pending: deque[FunctionCall] = deque()
    reading: asyncio.Future[tuple[Any, ...]] | None = None
    exhausted = False
    end: Exception | None = None
    try:
        limits = function._limits_from_now()
        connection = function.live() or await connected(function, limits)
        window = _window(connection)
        while pending or not exhausted:
            while not exhausted and len(pending) < window:
                try:
                    if isinstance(inputs, AsyncIterator):
                        reading = reading or asyncio.ensure_future(anext(inputs))
                        if not await _read_before_result(reading, pending, order_outputs):
                            break
                        arguments, reading = reading.result(), None
                    else:
                        arguments = next(inputs)
                except (StopIteration, StopAsyncIteration):
                    exhausted, reading = True, None
                    break
                try:
                    pending.append(await function.spawn.aio(*arguments))
                except _REFUSALS as error:
                    pending.append(FunctionCall._refused(connection, error))
                except _ENDS as error:
                    exhausted, end = True, error
                    break
                if pending[0].done():
                    break
            if pending:
                yield (await _pop_aio(pending, order_outputs))._result(return_exceptions)
        if end is not None:
            raise end
    finally:
        if reading is not None:
            reading.cancel()
        _cancel(pending)


async def _read_before_result(
    reading: asyncio.Future[Any], pending: deque[FunctionCall], ordered: bool
) -> bool:
    """Wait for the next input or the next result to yield; True if the input came."""
    import asyncio

    if not pending:
        await asyncio.wait({reading})
        return True
    calls = (pending[0],) if ordered else tuple(pending)
    while not (reading.done() or any(call.done() for call in calls)):
        result = asyncio.ensure_future(calls[0]._wait_any_aio(calls))
        try:
            await asyncio.wait({reading, result}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            result.cancel()
    return reading.done()


async def _pop_aio(pending: deque[FunctionCall], ordered: bool) -> FunctionCall:
    if ordered:
        await pending[0]._wait_aio()
        return pending.popleft()
    while True:
        for at, call in enumerate(pending):
            if call.done():
                del pending[at]
                return call
        await pending[0]._wait_any_aio(pending)


def zip_aio(iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...]) -> Inputs | AsyncInputs:
    """Zip iterables of either kind; an async iterator only if one of them is."""
    if any(isinstance(iterable, AsyncIterable) for iterable in iterables):
        return _zip_async(iterables)
    return zip(*iterables, strict=False)


def tuples_aio(
    iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
) -> Inputs | AsyncInputs:
    """Make each item a tuple of arguments."""
    if isinstance(iterable, AsyncIterable):
        return _tuples_async(iterable)
    return map(tuple, iterable)


async def _zip_async(
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
) -> AsyncIterator[tuple[Any, ...]]:
    ended = object()
    iterators = [
        aiter(each) if isinstance(each, AsyncIterable) else iter(each) for each in iterables
    ]
    while True:
        values = []
        for each in iterators:
            if isinstance(each, AsyncIterator):
                values.append(await anext(each, ended))
            else:
                values.append(next(each, ended))
            if values[-1] is ended:
                return
        yield tuple(values)


async def _tuples_async(
    iterable: AsyncIterable[Iterable[Any]],
) -> AsyncIterator[tuple[Any, ...]]:
    async for arguments in iterable:
        yield tuple(arguments)
