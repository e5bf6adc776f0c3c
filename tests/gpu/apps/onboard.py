# ruff: noqa: F722, F821, UP037 - jaxtyping's shapes are strings that are no Python expressions
"""Functions for tests on a real device."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import shmbatch

app = shmbatch.App()

Rows = Float32[Tensor, "batch 4"]
Large = Float32[Tensor, "batch 65536"]  # 256 KiB


def sleep(xs: Tensor, cycles: int) -> None:
    if xs.is_cuda:
        torch.cuda._sleep(cycles)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def device(xs: Rows) -> list[str]:
    return [str(x.device) for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def double(xs: Rows) -> Rows:
    return xs * 2


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def stream(xs: Rows) -> list[bool]:
    """Say whether what the function starts goes to a stream of the executor's."""
    return [torch.cuda.current_stream() != torch.cuda.default_stream()] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def mixed(xs: Rows, keys: list[int], ids: Int64[Tensor, "batch"]) -> Rows:
    """Take tensors beside a list, and a scalar a row."""
    return xs + torch.tensor(keys, device=xs.device)[:, None] + ids[:, None]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def transposed(xs: Float32[Tensor, "batch 3 4"]) -> Float32[Tensor, "batch 4 3"]:
    """Return what is not contiguous."""
    return xs.transpose(1, 2)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def rows(xs: Rows) -> Rows:
    """Return a list of rows on the device."""
    return [x + 1 for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def on_host(xs: Rows) -> Rows:
    return xs.cpu() + 1


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
async def awaiting(xs: Rows) -> Rows:
    doubled = xs * 2
    await asyncio.sleep(0.001)
    return doubled + 1


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, max_lengths={"seq": 16})
def ragged(xs: Float32[Tensor, "batch seq"]) -> list[float]:
    assert all(x.is_cuda == torch.cuda.is_initialized() for x in xs)
    return [float(x.sum()) for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, max_lengths={"seq": 16}, ragged="pad")
def padded(xs: Float32[Tensor, "batch seq"]) -> list[float]:
    stack, lengths = xs
    assert stack.is_cuda == lengths.is_cuda == torch.cuda.is_initialized()
    mask = torch.arange(stack.shape[1], device=stack.device) < lengths[:, None]
    return (stack * mask).sum(1).tolist()


# ---- results that do not fit ----


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def narrow(xs: Rows) -> Rows:
    return xs[:, :3]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def wide(xs: Rows) -> Rows:
    """Return another dtype."""
    return xs.double()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def short(xs: Rows) -> Rows:
    """Return one row too few."""
    return xs[1:]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def some_fail(xs: Rows) -> Rows:
    """Refuse negative rows alone, the others are on the device."""
    return [ValueError("negative") if bool(x[0] < 0) else x for x in xs]


# ---- allowed sizes, and graphs ----

_sizes: set[int] = set()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=20, batch_sizes=(1, 4, 8))
def sized(xs: Rows) -> Rows:
    """Have each row say how long the batch was that the function saw."""
    return xs * 0 + len(xs)


_weights: dict[str, Tensor] = {}


def _network(xs: Tensor) -> Tensor:
    key = str(xs.device)
    if key not in _weights:
        _weights[key] = torch.linspace(-1, 1, 16, device=xs.device).reshape(4, 4)
    return torch.relu(xs @ _weights[key]) @ _weights[key]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, batch_sizes=(1, 4, 8))
def eager(xs: Rows) -> Rows:
    return _network(xs)


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, batch_sizes=(1, 4, 8), cuda_graphs=True)
def graphed(xs: Rows) -> Rows:
    return _network(xs)


_runs = 0


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, batch_sizes=(1, 8), cuda_graphs=True)
def runs(xs: Rows) -> Rows:
    """Say how often Python has run this: a replay does not."""
    global _runs
    _runs += 1
    return xs * 0 + _runs


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, batch_sizes=(1, 8), cuda_graphs=True)
def uncapturable(xs: Rows) -> Rows:
    """Ask the device for a number, which cannot be captured; and for random ones."""
    noise = torch.rand_like(xs)
    return xs * 2 if noise.sum().item() >= 0 else xs


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def noise(xs: Rows) -> Rows:
    """Draw random numbers, whatever became of a capture before."""
    return xs + torch.rand_like(xs)


# ---- large rows ----


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, direct_dma=True)
def direct(xs: Large) -> Large:
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, direct_dma=False)
def gathered(xs: Large) -> Large:
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, direct_dma=True, batch_sizes=(1, 8))
def direct_padded(xs: Large) -> Large:
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0, direct_dma=True)
def slow_direct(xs: Large) -> Large:
    """Keep the device busy for some 20 ms, so that the next batch is in flight meanwhile."""
    sleep(xs, 40_000_000)
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def memory(xs: list[int]) -> list[int]:
    """Return the bytes of the device that are in use, by whomever."""
    if not torch.cuda.is_initialized():
        return [0]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return [total - free]


# ---- two batches in flight ----

_begun = 0


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def begun(xs: Rows) -> Rows:
    """Keep the device busy for some 50 ms; say in the result how many had been started before."""
    global _begun
    sleep(xs, 100_000_000)
    _begun += 1
    return xs * 0 + _begun


# ---- memory that is not there ----


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def greedy(xs: Rows) -> Rows:
    """Ask for an exabyte."""
    return xs + torch.empty(1 << 60, dtype=torch.uint8, device=xs.device)[0]
