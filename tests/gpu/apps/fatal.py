"""A function that loses the device, and one that waits for its batch to fill."""

# mypy: ignore-errors

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

import shmbatch

app = shmbatch.App()

Rows = Float32[Tensor, "batch 4"]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def double(xs: Rows) -> Rows:
    return xs * 2


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=600_000)
def never(xs: Rows) -> Rows:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def out_of_range(xs: Rows) -> Rows:
    """Read beyond the end of a tensor, which a kernel finds out, not the host."""
    index = torch.full((len(xs), 4), 10**6, device=xs.device)
    return torch.zeros(1, device=xs.device)[index]
