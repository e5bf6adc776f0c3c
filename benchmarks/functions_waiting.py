# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The function that shmbatch serves in bench_waiting."""

import numpy as np
from jaxtyping import Float64

import shmbatch

app = shmbatch.App("waiting")


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def echo(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Answer whoever calls at once, and nothing else."""
    return xs
