"""Functions for tests that kill: quick ones, slow ones, and one that leaves a child behind."""

from __future__ import annotations

import os

import shmbatch
from tests import processes

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
async def triple(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def held(xs: list[int]) -> list[int]:
    """Runs while the gate is closed."""
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    """Is not due for ten minutes, but for a full batch of four."""
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def forks(xs: list[int]) -> list[int]:
    """Starts a child that has all of the executor's descriptors and lives until it is killed."""
    child = os.fork()
    if child == 0:
        while True:
            os.read(os.pipe()[0], 1)
    return [child] * len(xs)
