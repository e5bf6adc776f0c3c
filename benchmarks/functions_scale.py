"""The functions that shmbatch serves in bench_scale: one for each size of anything.

All return the first byte of their first parameter, and one: what is measured is the way there
and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

import shmbatch

Array: TypeAlias = NDArray[Any]

app = shmbatch.App("scale")

NBYTES = 16  # of each parameter, where that is not what varies
SIZE = 32  # of a batch at most
INPUTS = (1, 16, 256, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PARAMETERS = (1, 2, 4, 8, 16, 32, 64)
INPUT_SIZE, INPUT_SLOTS = 4, 8  # of batches, and slots of a producer, where inputs vary


def _serve(
    name: str, parameters: int, nbytes: int, size: int, slots: int | None = None, wait_ms: int = 1
) -> None:
    """Have a function served that takes so many arrays of so many bytes each."""

    def first(*columns: Array) -> Array:
        return columns[0][:, :1] + np.uint8(1)

    annotation = UInt8[np.ndarray, f"batch {nbytes}"]
    names = [f"x{number}" for number in range(parameters)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    made: Any = first
    made.__signature__ = inspect.Signature([inspect.Parameter(each, kind) for each in names])
    made.__annotations__ = {
        **dict.fromkeys(names, annotation),
        "return": UInt8[np.ndarray, "batch 1"],
    }
    made.__name__ = made.__qualname__ = name
    decorate: Callable[[Any], Any] = shmbatch.batched(
        max_batch_size=size, wait_ms=wait_ms, slots=slots
    )
    app.function()(decorate(made))


_serve("rest", 1, NBYTES, SIZE)
for _nbytes in INPUTS:
    _serve(f"input_{_nbytes}", 1, _nbytes, INPUT_SIZE, INPUT_SLOTS)
for _size in SIZES:
    _serve(f"size_{_size}", 1, NBYTES, _size, wait_ms=100)  # full, however long that takes
for _parameters in PARAMETERS:
    _serve(f"parameters_{_parameters}", _parameters, NBYTES, SIZE)
