"""Functions for tests of calls: sums, gates, faults, and a function that tells its batches."""

from __future__ import annotations

import asyncio
import os

import shmbatch
from tests import processes

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=1)
def add(xs: list[int], ys: list[int]) -> list[int]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=1)
async def add_later(xs: list[int], ys: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [x + y for x, y in zip(xs, ys, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, slots=4)
def held(xs: list[int]) -> list[int]:
    """Runs while the gate is closed."""
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=2)
def held_alone(xs: list[int]) -> list[int]:
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=1)
def held_single(xs: list[int]) -> list[int]:
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=64, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    """Is not due for ten minutes."""
    return xs


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=600_000)
def pair(xs: list[int]) -> list[int]:
    """Runs only with two inputs; each gets their sum."""
    return [sum(xs)] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def calls_itself(xs: list[int]) -> list[int]:
    """Calls a function of its own executor, by handle or by name."""
    handle = add if xs[0] == 0 else shmbatch.connect(os.environ["SHMBATCH_TEST_SELF"])
    return [handle.remote(x, x) for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def fails(xs: list[int]) -> list[int]:
    raise KeyError(xs[0])
