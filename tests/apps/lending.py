# ruff: noqa: F722 - jaxtyping reads these strings
"""Functions on arrays, for callers that want no copies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

import shmbatch
from tests import processes

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, slots=8)
def scaled(
    frames: Float32[np.ndarray, "batch 2 3"], by: list[float], notes: list[dict[str, int]]
) -> Float32[np.ndarray, "batch 2 3"]:
    if by[0] < 0:
        raise ValueError(f"by {by[0]}")
    return frames * np.array(by, np.float32)[:, None, None]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, slots=8)
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=2)
def held(xs: Float32[np.ndarray, "batch 2"]) -> Float32[np.ndarray, "batch 2"]:
    """Runs while the gate is closed, if the first number is not 0."""
    if xs[0][0] != 0:
        processes.pass_through([])
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=1)
def alone(rows: list[float]) -> list[float]:
    return rows
