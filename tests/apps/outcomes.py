"""Functions that go wrong in every way that docs/explanation/guarantees.md lists."""

# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

import shmbatch
from tests import processes

app = shmbatch.App()


class Spoiled(Exception):
    """A class that a producer has only if it imports this file."""


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def raises(xs: list[int]) -> list[int]:
    """Raises for a full batch of four, in the way that its first input names."""
    if xs[0] == 0:
        raise ValueError("all are bad", sorted(xs))
    if xs[0] == 1:
        raise Spoiled("went off")
    if xs[0] == 2:
        raise SystemExit(3)
    if xs[0] == 3:
        raise KeyError("k")
    raise RuntimeError("\N{GREEK SMALL LETTER LAMDA}" * 100_000)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def picky(xs: list[int]) -> list[int]:
    """Returns an exception object for each negative input."""
    return [x if x >= 0 else ValueError(f"{x} is negative") for x in xs]  # type: ignore[misc]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def misshapen(xs: list[int]) -> list[int]:
    """Returns something else than a list of four, in the way that its first input names."""
    ways: list[Any] = [
        xs[:3],
        [*xs, 5],
        tuple(xs),
        None,
        7,
        {x: x for x in xs},
        (x for x in xs),
        "four",
        [],
        np.array(xs),
    ]
    return ways[xs[0]]  # type: ignore[no-any-return]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def misfits(xs: list[int]) -> list[int]:
    """Returns one value that is no int in int64, in the way that each input names."""
    ways: list[Any] = [0, "one", None, 2.5, 2**63, True, np.int32(6), -(2**63)]
    return [ways[x] for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=600_000)
def stacks(xs: list[int]) -> Float32[np.ndarray, "batch 3"]:
    """Returns a stack for two inputs, or what is none, in the way that its first input names."""
    ways: list[Any] = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((2, 3)),
        np.zeros((2, 4), np.float32),
        np.zeros((3, 3), np.float32),
        np.float32(1),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        [np.zeros(3, np.float32), np.zeros(4, np.float32)],
        [np.zeros(3, np.float32), ValueError("second")],
        np.zeros(3, np.float32),
    ]
    return ways[xs[0]]  # type: ignore[no-any-return]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def held(xs: list[int]) -> list[int]:
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def total(rows: Int64[np.ndarray, "batch 3"]) -> list[int]:
    return [int(row.sum()) for row in rows]
