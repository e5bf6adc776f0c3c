"""Functions that tell their batches, for tests of their queues."""

from __future__ import annotations

import asyncio

import shmbatch
from tests import processes

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=1)
def batch_of(xs: list[int]) -> list[list[int]]:
    return [xs] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    """Is not due for ten minutes."""
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def counted(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def crowded(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, batch_sizes=(1, 4, 8))
def padded(xs: list[int]) -> list[int]:
    return [len(xs)] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
async def gated(xs: list[int]) -> list[int]:
    """Suspends while the gate is closed."""
    await asyncio.to_thread(processes.pass_through, xs)
    return xs


@app.cls()
class Model:
    @shmbatch.method()
    def told(self) -> int:
        return id(self)
