"""Functions in lockstep whose wait no test would survive."""

from __future__ import annotations

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=600_000, lockstep=True)
def step(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=600_000, lockstep=True)
async def step_later(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=20, lockstep=True)
def step_or_wait(xs: list[int]) -> list[int]:
    return [3 * x for x in xs]
