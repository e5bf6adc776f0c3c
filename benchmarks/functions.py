# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The functions that shmbatch serves in the benchmarks.

The executor imports this file by its path, as a module named `functions`: it imports nothing
of this package. What the rivals compute is in _load.py; answers are checked against that.
"""

import time

import numpy as np
from jaxtyping import Float32, Float64

import shmbatch

app = shmbatch.App("bench")


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def lone(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Answer each call at once, on its own, with its input."""
    return xs


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
def tiny(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Cost nothing, so that only the way there and back counts."""
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1, lockstep=True)
def tiny_in_lockstep(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """The same, for producers that all wait for each other."""
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=2)
def image(
    xs: Float32[np.ndarray, "batch 3 224 224"],
) -> Float32[np.ndarray, "batch 1000"]:
    """Cost next to nothing, on inputs of 602 KB."""
    return xs.reshape(len(xs), -1)[:, :1000] * 2


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def millisecond(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Take a millisecond a batch, and no CPU, as a function on a GPU does."""
    time.sleep(0.001)
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=1024, wait_ms=600_000)
def never(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Not be due within ten minutes: its calls wait until the executor is killed."""
    return xs
