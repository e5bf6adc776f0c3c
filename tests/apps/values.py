"""Functions that give back what they were given, one for each kind of value."""

# ruff: noqa: F722, F821, UP037 - jaxtyping reads these strings

from __future__ import annotations

import numpy as np
from jaxtyping import BFloat16, Float32, Float64, Int64
from torch import Tensor

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def ints(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def floats(xs: list[float]) -> list[float]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def bools(xs: list[bool]) -> list[bool]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def arrays(xs: Float32[np.ndarray, "batch 2 3"]) -> Float32[np.ndarray, "batch 2 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def tensors(xs: Float64[Tensor, "batch 2 3"]) -> Float64[Tensor, "batch 2 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def halves(xs: BFloat16[Tensor, "batch 4"]) -> BFloat16[Tensor, "batch 4"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def empties(xs: Float32[np.ndarray, "batch 0 3"]) -> Float32[np.ndarray, "batch 0 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def points(xs: Int64[np.ndarray, "batch"], ys: list[int]) -> Int64[np.ndarray, "batch"]:
    return xs + np.array(ys)
