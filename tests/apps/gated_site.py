"""Endpoints that call what waits at a gate, and what does not."""

import asyncio
import os

import shmbatch
from tests.processes import pass_through

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
async def held(xs: list[int]) -> list[int]:
    await asyncio.to_thread(pass_through, xs)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=64, wait_ms=1)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.fastapi_endpoint()
async def hold(x: int) -> int:
    return await held.remote.aio(x)


@app.function()
@shmbatch.fastapi_endpoint()
def hold_in_thread(x: int) -> int:
    return held.remote(x)


@app.function()
@shmbatch.fastapi_endpoint(method="POST")
async def twice(x: int) -> list[int]:
    return [await double.remote.aio(x), os.getpid()]
