"""Functions that write down what they execute, so that a test can count after a kill."""

from __future__ import annotations

import os

import shmbatch
from tests import processes

app = shmbatch.App()

LEDGER = os.open(os.environ["SHMBATCH_TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(xs: list[int]) -> None:
    os.write(LEDGER, "".join(f"{x}\n" for x in xs).encode())


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def once(xs: list[int]) -> list[int]:
    note(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, idempotent=True)
async def often(xs: list[int]) -> list[int]:
    note(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def held(xs: list[int]) -> list[int]:
    """Runs while the gate is closed, and nothing else does meanwhile."""
    note(xs)
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, idempotent=True)
def held_often(xs: list[int]) -> list[int]:
    note(xs)
    processes.pass_through(xs)
    return [10 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, slots=2)
def narrow(xs: list[int]) -> list[int]:
    note(xs)
    return [10 * x for x in xs]
