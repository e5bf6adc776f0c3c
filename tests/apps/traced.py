# ruff: noqa: F722 - jaxtyping reads these strings
"""Functions whose results tell what they were given, in which batch, and at which index of it."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
from jaxtyping import Int64

import shmbatch

app = shmbatch.App()

_numbers = itertools.count(1)

# What each function is given, in order, and what max_batch_size it has.
FUNCTIONS = {"alone": 1, "few": 7, "many": 32, "many_later": 16}


def _trace(
    keys: list[int], values: list[float], rows: Int64[np.ndarray, "batch 2"]
) -> Int64[np.ndarray, "batch 7"]:
    """key, value, row of two, size of the batch, its number, index in it."""
    size, number = len(keys), next(_numbers)
    assert len(values) == len(rows) == size
    return np.array(
        [
            [key, int(value), *row, size, number, index]
            for index, (key, value, row) in enumerate(zip(keys, values, rows, strict=True))
        ],
        np.int64,
    )


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def alone(
    keys: list[int], values: list[float], rows: Int64[np.ndarray, "batch 2"]
) -> Int64[np.ndarray, "batch 7"]:
    return _trace(keys, values, rows)


@app.function()
@shmbatch.batched(max_batch_size=7, wait_ms=0.5, slots=5)
def few(
    keys: list[int], values: list[float], rows: Int64[np.ndarray, "batch 2"]
) -> Int64[np.ndarray, "batch 7"]:
    """Has fewer slots than a batch has room."""
    return _trace(keys, values, rows)


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=2)
def many(
    keys: list[int], values: list[float], rows: Int64[np.ndarray, "batch 2"]
) -> Int64[np.ndarray, "batch 7"]:
    return _trace(keys, values, rows)


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=0)
async def many_later(
    keys: list[int], values: list[float], rows: Int64[np.ndarray, "batch 2"]
) -> Int64[np.ndarray, "batch 7"]:
    """Gives other functions a turn while it is under way."""
    for _ in range(keys[0] % 3):
        await asyncio.sleep(0)
    return _trace(keys, values, rows)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=1)
def picky(xs: list[int]) -> list[int]:
    """Returns an exception object for each third number."""
    return [7 * x if x % 3 else ValueError(x) for x in xs]  # type: ignore[misc]
