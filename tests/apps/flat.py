"""Functions for the tests that nothing grows: one a kind of value."""

# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def shout(xs: list[str]) -> list[str]:
    return [x.upper() for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def double(
    xs: Float32[np.ndarray, "batch 64"],
) -> Float32[np.ndarray, "batch 64"]:
    return 2 * xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, slots=4)
def triple(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]
