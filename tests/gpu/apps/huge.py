# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""A function whose batches take a little more memory than there is free; see HUGE_BYTES."""

# mypy: ignore-errors

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

import shmbatch

app = shmbatch.App()

# Taken when the executor loads this file; what is left holds no batch.
_free, _ = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
_taken = [torch.empty(_free - (192 << 20), dtype=torch.uint8, device="cuda")] if _free else []


@app.function()
@shmbatch.batched(max_batch_size=64, wait_ms=0, slots=1)
def infer(xs: UInt8[Tensor, "batch 4194304"]) -> UInt8[Tensor, "batch 1"]:
    return xs[:, :1]
