# ruff: noqa: F722 - jaxtyping reads these strings
"""Functions that between them take every path of the core: all kinds of values and of outcomes."""

from __future__ import annotations

import os
import signal

import numpy as np
from jaxtyping import Float32, Int64

import shmbatch

app = shmbatch.App()


def note(xs: list[int]) -> list[int]:
    """Write down what is executed, so that a kill does not undo it; return it."""
    if path := os.environ.get("SHMBATCH_TEST_LEDGER"):
        ledger = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(ledger, "".join(f"{x}\n" for x in xs).encode())
        os.close(ledger)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
async def triple(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    """Is not due for ten minutes, but for a full batch of four."""
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=0, slots=2)
def narrow(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=10, slots=2)
def patient(xs: list[int]) -> list[int]:
    """Leaves a third caller the time to find both slots taken."""
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000, slots=2)
def stuck(xs: list[int]) -> list[int]:
    """Is due when the executor drains: its two slots are never enough for a batch."""
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def refuses(xs: list[int]) -> list[int]:
    raise ValueError("no")


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, max_bytes=64)
def spells(
    words: list[str], values: list[dict[str, int]], times: list[float], whole: list[bool]
) -> list[str]:
    rows = zip(words, values, times, whole, strict=True)
    return [f"{word} {value['x']} {time} {each}" for word, value, time, each in rows]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def halves(xs: list[int]) -> list[float]:
    return [x / 2 for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=0, slots=2, max_bytes=100_000)
def echoes(blobs: list[bytes]) -> list[bytes]:
    return blobs


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=0, slots=2, max_lengths={"n": 4}, ragged="pad")
def sums(
    fixed: Float32[np.ndarray, "batch 4"], ragged: Float32[np.ndarray, "batch n"]
) -> Float32[np.ndarray, "batch 20000"]:
    """Return rows of more than 64 KiB, which are copied without the GIL."""
    rows, _ = ragged
    return np.broadcast_to((fixed.sum(1) + rows.sum(1))[:, None], (len(fixed), 20_000)).copy()


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=0)
def sorts(rows: Int64[np.ndarray, "batch 3"]) -> Int64[np.ndarray, "batch 3"]:
    return np.sort(rows)


# ---- under a supervisor ------------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def once(xs: list[int]) -> list[int]:
    return [2 * x for x in note(xs)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, idempotent=True)
async def often(xs: list[int]) -> list[int]:
    return [2 * x for x in note(xs)]


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=1, slots=2)
def few(xs: list[int]) -> list[int]:
    return [2 * x for x in note(xs)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def kills(xs: list[int]) -> list[int]:
    """Takes the executor down, in the middle of a batch."""
    os.kill(os.getpid(), signal.SIGKILL)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=10, on_error="isolate")
def picky(xs: list[int]) -> list[int]:
    if 0 in xs:
        raise ValueError("no")
    return [2 * x for x in xs]
