# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The functions that shmbatch serves while its instructions are counted.

Those that hold run until the producer lets them go on, which it does when the calls of the next
batch are published: so the executor never waits, and never finds fewer calls than it should.
Those for a call alone run until a referee lets them go on, who has seen that the producer sleeps.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float64

import shmbatch

app = shmbatch.App("instructions")

GATES = "SHMBATCH_BENCH_GATES"  # the folder of all gates
HOLD, ALONE, TURN = "hold", "alone", "turn"  # the last is the producer's own
GO, MARK = b".", b"|"


class Gate:
    """Two pipes, over which a batch says that it runs, and hears that it may end."""

    def __init__(self, gates: Path, name: str) -> None:
        pipes = [gates / f"{name}.{what}" for what in ("begun", "go")]
        for pipe in pipes:
            try:
                os.mkfifo(pipe)
            except FileExistsError:
                pass  # made by the other side
        # For both directions, so that opening waits for nobody.
        self._begun, self._go = (os.open(pipe, os.O_RDWR) for pipe in pipes)

    def hold(self) -> None:
        """Block the batch until the producer lets it end; `os.getppid` is the counter's mark."""
        self.begin()
        if os.read(self._go, 1) == MARK:
            os.getppid()

    def begin(self) -> None:
        os.write(self._begun, GO)

    def await_batch(self) -> None:
        """Block the producer until a batch runs."""
        os.read(self._begun, 1)

    def open(self, word: bytes = GO) -> None:
        """Let the batch that runs, or the next one, end."""
        os.write(self._go, word)

    def close(self) -> None:
        os.close(self._begun)
        os.close(self._go)


_opened: dict[str, Gate] = {}


def _pass(name: str) -> None:
    """Hold the batch at that gate, which is opened when it is first used."""
    if name not in _opened:
        gc.disable()  # a collection comes whenever it comes, and counts as much as many calls
        _opened[name] = Gate(Path(os.environ[GATES]), name)
    _opened[name].hold()


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def hold_int(xs: list[int]) -> list[int]:
    _pass(HOLD)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def hold_small(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    _pass(HOLD)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=0)
def hold_large(xs: Float64[np.ndarray, "batch 8192"]) -> Float64[np.ndarray, "batch 8192"]:
    _pass(HOLD)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def alone_int(xs: list[int]) -> list[int]:
    _pass(ALONE)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def alone_small(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    _pass(ALONE)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def alone_large(xs: Float64[np.ndarray, "batch 8192"]) -> Float64[np.ndarray, "batch 8192"]:
    _pass(ALONE)
    return xs
