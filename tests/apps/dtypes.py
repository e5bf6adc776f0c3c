"""For every dtype a function on arrays and one on tensors that give back what they were given."""

# mypy: ignore-errors
# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

import jaxtyping
import numpy as np
from torch import Tensor

import shmbatch
from shmbatch.contract.columns import RAW_DTYPES, WIRE_DTYPES

app = shmbatch.App()

_JAXTYPINGS = {name.lower().replace("_", ""): name for name in dir(jaxtyping)}


def _serve(name: str, container: type, dtype: str) -> None:
    def same(xs):
        return xs

    scalar = getattr(jaxtyping, _JAXTYPINGS[dtype.replace("_", "")])
    annotation = scalar[container, "batch 5"]
    same.__name__ = same.__qualname__ = name
    same.__annotations__ = {"xs": annotation, "return": annotation}
    globals()[name] = app.function()(shmbatch.batched(max_batch_size=4, wait_ms=0)(same))


for _dtype in WIRE_DTYPES:
    _serve(f"tensor_{_dtype}", Tensor, _dtype)
    if _dtype not in RAW_DTYPES:
        _serve(f"array_{_dtype}", np.ndarray, _dtype)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def added(
    xs: jaxtyping.Float32[Tensor, "batch 4"],
    ys: jaxtyping.BFloat16[Tensor, "batch 4"],
    names: list[str],
) -> jaxtyping.BFloat16[Tensor, "batch 4"]:
    return xs.to(ys.dtype) + ys
