"""What a lane that is an event loop does: calls of every kind, several steps at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import shmbatch
from benchmarks.soak.calls import Attempt, Lane
from benchmarks.soak.ledger import Column

gather = shmbatch.FunctionCall.gather


async def function_of(lane: Lane, name: str) -> shmbatch.Function:
    return await asyncio.to_thread(lane.function, name)


async def settle(lane: Lane, attempt: Attempt, outcome: Awaitable[Any]) -> None:
    try:
        result = await outcome
    except Exception as error:
        lane.failed(attempt, error)
    else:
        lane.returned(attempt, result)


async def remote(lane: Lane) -> None:
    name = lane.any_function()
    function = await function_of(lane, name)
    attempts = [lane.attempt(name) for _ in range(lane.random.randrange(1, 20))]
    await asyncio.gather(
        *(settle(lane, each, function.remote.aio(lane.value(each))) for each in attempts)
    )


async def spawned(lane: Lane) -> None:
    pending = await _spawned(lane, lane.any_function(), 20)
    outcomes = await gather.aio(*(call for _, call in pending), return_exceptions=True)
    for (attempt, _), outcome in zip(pending, outcomes, strict=True):
        lane.outcome(attempt, outcome)


async def mapped(lane: Lane) -> None:
    name = lane.any_function()
    function = await function_of(lane, name)
    count = lane.random.randrange(1, 60)
    waits = lane.random.random() < 0.5
    waiting: list[Attempt] = []

    def inputs() -> Iterator[Any]:
        for _ in range(count):
            waiting.append(lane.attempt(name))
            yield lane.value(waiting[-1])

    async def awaited_inputs() -> AsyncIterator[Any]:
        for each in inputs():
            await asyncio.sleep(0)
            yield each

    iterable = awaited_inputs() if waits else inputs()
    try:
        async for outcome in function.map.aio(iterable, return_exceptions=True):
            lane.outcome(waiting.pop(0), outcome)
    except Exception as error:
        lane.ended_by(waiting or [lane.attempt(name)], error)


async def cancelled(lane: Lane) -> None:
    """Cancel tasks that wait for their calls."""
    name = lane.any_function()
    function = await function_of(lane, name)

    async def one(attempt: Attempt) -> None:
        try:
            result = await function.remote.aio(lane.value(attempt))
        except asyncio.CancelledError:
            lane.dropped(attempt)
            raise
        except Exception as error:
            lane.failed(attempt, error)
        else:
            lane.returned(attempt, result)

    # Attempts are counted by the task: one that is cancelled before it runs makes no call.
    async def counted() -> None:
        await one(lane.attempt(name))

    tasks = [asyncio.create_task(counted()) for _ in range(lane.random.randrange(1, 10))]
    await asyncio.sleep(lane.random.choice((0, 0.0005, 0.005)))
    for task in tasks:
        if lane.random.random() < 0.7:
            task.cancel()
    await asyncio.wait(tasks)


async def limited(lane: Lane) -> None:
    """Little time for the caller, or until the launch."""
    name = lane.random.choice(("slow", "slow", "again", "once"))
    function = await function_of(lane, name)
    if lane.random.random() < 0.5:
        function = function.with_options(timeout=lane.random.choice((0.0, 0.003, 0.03)))
        allowed: tuple[Column, ...] = (Column.TIMEOUT, Column.RING_FULL)
    else:
        function = function.with_options(deadline_ms=lane.random.choice((0.5, 5.0, 20.0)))
        allowed = (Column.DEADLINE,)
    attempts = [lane.attempt(name, *allowed) for _ in range(lane.random.randrange(1, 10))]
    await asyncio.gather(
        *(settle(lane, each, function.remote.aio(lane.value(each))) for each in attempts)
    )


async def dropped(lane: Lane) -> None:
    for attempt, _ in await _spawned(lane, lane.any_function(), 10):
        lane.dropped(attempt)


async def _spawned(
    lane: Lane, name: str, most: int
) -> list[tuple[Attempt, shmbatch.FunctionCall]]:
    function = await function_of(lane, name)
    pending = []
    for _ in range(lane.random.randrange(1, most + 1)):
        attempt = lane.attempt(name)
        try:
            pending.append((attempt, await function.spawn.aio(lane.value(attempt))))
        except Exception as error:
            lane.failed(attempt, error)
    return pending


STEPS: tuple[Callable[[Lane], Awaitable[None]], ...] = (
    *(remote, spawned, mapped, cancelled, limited, dropped),
)
