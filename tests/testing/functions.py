"""Batched functions, right and wrong, for the tests of `shmbatch.testing`."""

# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from jaxtyping import Float32
from torch import Tensor

import shmbatch

app = shmbatch.App("tested")


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=1000)
async def add_slowly(xs: list[int], ys: list[int]) -> list[int]:
    await asyncio.sleep(0.25)
    return [x + y for x, y in zip(xs, ys, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=5)
def scaled(xs: list[float], by: list[int]) -> list[float]:
    return [x * (factor % 10) for x, factor in zip(xs, by, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=5, batch_sizes=(2, 4))
def rows_seen(xs: list[int]) -> list[list[int]]:
    return [list(xs) for _ in xs]


@app.cls()
class Counter:
    start: int = shmbatch.parameter(default=0)

    @shmbatch.enter()
    def begin(self) -> None:
        self.entered = self.start

    @shmbatch.batched(max_batch_size=4, wait_ms=5)
    def above(self, xs: list[int]) -> list[int]:
        return [x // 2 + self.entered for x in xs]

    @shmbatch.method()
    def raise_to(self, level: int) -> int:
        self.entered = level
        return level


def small(**options: Any) -> Any:
    """Batch up to four calls for up to 5 ms."""
    return shmbatch.batched(**({"max_batch_size": 4, "wait_ms": 5} | options))


@small(lockstep=True)
async def in_step(xs: list[int], names: list[str]) -> list[str]:
    await asyncio.sleep(0.002)
    return [f"{name}{x}" for x, name in zip(xs, names, strict=True)]


@small(max_lengths={"seq": 3}, ragged="pad", batch_sizes=(2, 4))
def summed(xs: Float32[np.ndarray, "batch seq 2"]) -> Float32[np.ndarray, "batch 2"]:
    rows, _ = xs
    total: np.ndarray[Any, Any] = rows.sum(axis=1)
    return total


@small()
def refuses(xs: list[int]) -> list[int]:
    if any(x < 0 for x in xs):
        raise ValueError("an input is negative")
    return xs


@small()
def backwards(xs: list[int]) -> list[int]:
    return xs[::-1]


@small()
def three_at_most(xs: list[int]) -> list[int]:
    return xs[:3]


_batches = [0]


@small()
def counting(xs: list[int]) -> list[int]:
    _batches[0] += 1
    return [_batches[0] for _ in xs]


_hiccups = [0]  # batches so far


@small()
def hiccup_once(xs: list[int]) -> list[int]:
    _hiccups[0] += 1
    return [x // 2 + (_hiccups[0] == 50) for x in xs]


@small()
def spreading(xs: list[int]) -> list[Any]:
    bad = any(x < 0 for x in xs)
    return [ValueError("an input is negative") if bad else x for x in xs]


@small()
def shy(xs: list[int]) -> list[int]:
    if len(xs) > 1:
        raise RuntimeError("too many")
    return xs


@small()
def sociable(xs: list[int]) -> list[int]:
    if len(xs) == 1:
        raise ValueError("one is too few")
    return xs


@small()
def failing(xs: list[int]) -> list[int]:
    raise ValueError("never works")


@small(max_lengths={"seq": 12}, ragged="pad")
def padded_maximum(xs: Float32[np.ndarray, "batch seq 4"]) -> Float32[np.ndarray, "batch 4"]:
    rows, _ = xs
    return np.concatenate([rows, np.full((len(rows), 1, 4), -1e9, "f4")], axis=1).max(axis=1)


@small(max_lengths={"seq": 3}, ragged="pad")
def padded_mean(xs: Float32[np.ndarray, "batch seq"]) -> list[float]:
    rows, _ = xs
    return [float(row.sum()) / max(1, rows.shape[1]) for row in rows]


@small(max_lengths={"seq": 3})
def stacked_mean(xs: Float32[Tensor, "batch seq"]) -> list[float]:
    longest = max(1, *map(len, xs)) if len(xs) > 1 else max(1, len(xs[0]))
    return [float(x.sum()) / longest for x in xs]


@small()
def normalised(xs: list[float]) -> list[float]:
    largest = max(map(abs, xs)) or 1.0
    return [x / largest for x in xs]


@small()
def share(xs: list[float]) -> list[float]:
    return [x / len(xs) for x in xs]


@small()
def third(xs: list[int]) -> list[bool]:
    return [row == 2 for row, _ in enumerate(xs)]


@small(batch_sizes=(1, 4))
def by_rows(xs: Float32[np.ndarray, "batch 2"]) -> Float32[np.ndarray, "batch 2"]:
    return xs / np.float32(len(xs))


def called(function: Any) -> str:
    """The name of a test's parameter, the same in every process."""
    return str(function.address) if hasattr(function, "address") else function.function.__name__
