"""Functions that raise, or have no memory, because of some of their inputs."""

# ruff: noqa: F722, F821, UP037 - jaxtyping reads these strings

from __future__ import annotations

import asyncio

import numpy as np
from jaxtyping import Float32

import shmbatch
from tests import processes

app = shmbatch.App()

_BATCHES = {"max_batch_size": 8, "wait_ms": 600_000}


def _refuse(xs: list[int]) -> None:
    bad = [x for x in xs if x < 0]
    if bad:
        raise ValueError(f"{bad} of {len(xs)}")


@app.function()
@shmbatch.batched(**_BATCHES, on_error="isolate")
def roots(xs: list[int]) -> list[int]:
    _refuse(xs)
    return [x * x for x in xs]


@app.function()
@shmbatch.batched(**_BATCHES, on_error="isolate")
async def later(xs: list[int]) -> list[int]:
    await asyncio.sleep(0)
    _refuse(xs)
    return [x * x for x in xs]


@app.function()
@shmbatch.batched(**_BATCHES, on_error="isolate")
def norms(xs: Float32[np.ndarray, "batch 3"]) -> Float32[np.ndarray, "batch"]:
    xs *= 2  # they are its own; what it does to them is not to be seen in the next part
    _refuse([int(x) for x in xs[:, 0]])
    return xs.sum(1)


@app.function()
@shmbatch.batched(**_BATCHES, on_error="isolate")
def gated(xs: list[int]) -> list[int]:
    processes.pass_through(xs)
    _refuse(xs)
    return xs


@app.function()
@shmbatch.batched(**_BATCHES, idempotent=True)
def greedy(xs: list[int]) -> list[int]:
    """Has memory for two inputs at once."""
    if len(xs) > 2:
        raise MemoryError(f"no room for {len(xs)}")
    return [x + 1 for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, idempotent=True, read_only=True)
def held(xs: Float32[np.ndarray, "batch 3"]) -> Float32[np.ndarray, "batch 3"]:
    """Give its inputs back when the gate is open; another executor runs it again before."""
    processes.pass_through(xs.tolist())
    return xs
