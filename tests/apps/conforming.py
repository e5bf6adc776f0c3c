# ruff: noqa: F722 - jaxtyping reads these strings
"""Functions that tell their callers which batch they were in, and some that misbehave."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

import shmbatch
from tests import processes

app = shmbatch.App()

TEN_MINUTES_MS = 600_000

_numbers = itertools.count(1)

# The number of a batch among all of this executor, and all inputs in it.
Told = tuple[int, list[int]]


def told(xs: list[int]) -> list[Told]:
    return [(next(_numbers), xs)] * len(xs)


# ---- triggers --------------------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=TEN_MINUTES_MS)
def full(xs: list[int]) -> list[Told]:
    """Runs four at a time or not at all."""
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=20)
def pairs(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=40)
def timed(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=30)
def hasty(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=5)
def pacing(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def eager(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=1024, wait_ms=TEN_MINUTES_MS)
def thousand(xs: list[int]) -> list[int]:
    return [len(xs)] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=TEN_MINUTES_MS, lockstep=True)
def stepping(xs: list[int]) -> list[Told]:
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def gated(xs: list[int]) -> list[Told]:
    """Holds the executor up until a test opens the gate."""
    processes.pass_through(xs)
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=1)
async def awaiting(xs: list[int]) -> list[Told]:
    """Awaits the gate, so that other functions are served meanwhile."""
    await asyncio.to_thread(processes.pass_through, xs)
    return told(xs)


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=2)
async def narrow(xs: list[int]) -> list[Told]:
    """Has two slots for each producer."""
    await asyncio.to_thread(processes.pass_through, xs)
    return told(xs)


_at_the_gate = set[int]()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
async def overlapping(xs: list[int]) -> list[int]:
    """Tells how many batches were running when it began, itself among them."""
    _at_the_gate.add(xs[0])
    count = len(_at_the_gate)
    await asyncio.to_thread(processes.pass_through, xs)
    _at_the_gate.discard(xs[0])
    return [count] * len(xs)


# ---- arguments -------------------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=TEN_MINUTES_MS)
def columns(
    xs: list[int], names: list[str], rows: Int64[np.ndarray, "batch 2"]
) -> list[tuple[list[int], list[str], list[list[int]]]]:
    """Tells every caller all columns."""
    return [(xs, names, rows.tolist())] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=TEN_MINUTES_MS)
def subtract(xs: list[int], ys: list[int]) -> list[int]:
    return [x - y for x, y in zip(xs, ys, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def anything(values):  # type: ignore[no-untyped-def]
    return [[type(value).__name__, value] for value in values]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=TEN_MINUTES_MS, max_bytes=100_000)
def texts(values: list[str]) -> list[list[int]]:
    return [[len(value) for value in values]] * len(values)


# ---- results ---------------------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
async def double_later(xs: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [2 * x for x in xs]


async def _later(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=TEN_MINUTES_MS)
def returns(xs: list[int]) -> list[int]:
    """Returns something that is no list of three, as its first input says."""
    ways: list[Callable[[], Any]] = [
        lambda: tuple(xs),
        lambda: None,
        lambda: (x for x in xs),
        lambda: dict.fromkeys(xs, 1),
        lambda: "abc",
        lambda: 3,
        lambda: np.array(xs),
        lambda: _later(xs),
        lambda: xs[:2],
        lambda: [*xs, 1],
        list,
    ]
    return ways[xs[0]]()  # type: ignore[no-any-return]


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=TEN_MINUTES_MS)
async def returns_later(xs: list[int]) -> list[int]:
    return tuple(xs)  # type: ignore[return-value]


def _at_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that returns a list pass for one that returns a coroutine."""

    @functools.wraps(function)
    def wrapper(xs: list[int]) -> list[int]:
        return [-x for x in xs]

    return wrapper


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=0)
@_at_once
async def hardly_async(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=0)
def stacked(xs: list[int]) -> Int64[np.ndarray, "batch 2"]:
    return np.array([[x, x * x] for x in xs])


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=TEN_MINUTES_MS)
def lengths(arrays: list[np.ndarray]) -> list[list[int]]:
    return [[len(array) for array in arrays]] * len(arrays)


@app.function()
@shmbatch.batched(
    max_batch_size=3, wait_ms=TEN_MINUTES_MS, max_lengths={"length": 8}, ragged="pad"
)
def padded(rows: Int64[np.ndarray, "batch length"]) -> list[tuple[list[list[int]], list[int]]]:
    stack, counts = rows
    return [(stack.tolist(), [int(count) for count in counts])] * len(stack)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=1, batch_sizes=(1, 4))
def sized(xs: list[int]) -> list[list[int]]:
    return [[x, len(xs)] for x in xs]


# ---- errors ----------------------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=TEN_MINUTES_MS)
def raises(xs: list[int]) -> list[int]:
    """Raises what its first input says."""
    ways: list[Callable[[], BaseException]] = [
        lambda: ValueError("bad batch", xs[0]),
        lambda: type("Strange", (Exception,), {})("of no module"),
        lambda: SystemExit(3),
        KeyboardInterrupt,
        GeneratorExit,
    ]
    raise ways[xs[0]]()


@app.function()
@shmbatch.batched(max_batch_size=3, wait_ms=0)
def odd(xs: list[int]) -> list[int]:
    """Has an error of its own for each even input, and one result that is no int for 5."""
    answers: list[Any] = [ValueError(x) if x % 2 == 0 else "five" if x == 5 else x for x in xs]
    return answers
