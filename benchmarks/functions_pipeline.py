# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The functions that shmbatch serves in bench_pipeline: some that compute, some that sleep.

A function that computes multiplies its batch by one and the same matrix again and again, so many
times as bench_pipeline has found to take the time that is in its name. The matrix is a
permutation: whatever the batch, the result is exact, and known.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

import shmbatch

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = Float32[np.ndarray, "batch 64"]

app = shmbatch.App("pipeline")

WIDTH = 64
SIZE = 32  # of a batch at most
TIMES_US = (100, 300, 1000, 3000, 10_000, 50_000)
TIMER_SLACK_NS = 1_000  # of whoever sleeps in place of the executor, as that has it
REPETITIONS = "SHMBATCH_BENCH_REPETITIONS"  # in the environment: for each time, as JSON

_ORDER = np.random.default_rng(7).permutation(WIDTH)
# Contiguous, and multiplied into the same arrays below: else the time depends on the process.
_MATRIX = np.ascontiguousarray(np.eye(WIDTH, dtype=np.float32)[:, _ORDER])


def multiplied(xs: Array, repetitions: int) -> Array:
    """Return the rows, permuted so many times, which takes that many multiplications."""
    product = xs @ _MATRIX
    other = np.empty_like(product)
    for _ in range(repetitions - 1):
        np.matmul(product, _MATRIX, out=other)
        product, other = other, product
    return product


def permuted(x: Array, repetitions: int) -> Array:
    """Return the same of one row, or of a batch, without a multiplication."""
    for _ in range(repetitions):
        x = x[..., _ORDER]
    return x


def repetitions(us: int) -> int:
    return int(json.loads(os.environ[REPETITIONS])[str(us)])


def _serve(name: str, function: Callable[[Rows], Rows]) -> None:
    function.__name__ = function.__qualname__ = name
    decorated: Any = shmbatch.batched(max_batch_size=SIZE, wait_ms=1)(function)
    app.function()(decorated)


def _computing(us: int) -> Callable[[Rows], Rows]:
    count: list[int] = []

    def compute(xs: Rows) -> Rows:
        if not count:
            count.append(repetitions(us))
        return multiplied(xs, count[0])

    return compute


def _sleeping(us: int) -> Callable[[Rows], Rows]:
    def sleep(xs: Rows) -> Rows:
        time.sleep(us / 1e6)
        return xs + np.float32(1)

    return sleep


for _us in TIMES_US:
    _serve(f"compute_{_us}", _computing(_us))
    _serve(f"sleep_{_us}", _sleeping(_us))
