"""How a signature looks to the native core: the layout of its segments and its columns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..protocol.layout import INDICES, Layout, layout
from .columns import Column
from .pieces import Pieces
from .ragged import shared_axes
from .signature import Signature

_KINDS = {  # KIND_... in core.h
    "int": 0,
    "float": 1,
    "bool": 2,
    "array": 3,
    "str": 4,
    "bytes": 5,
    "ndarray": 6,
    "msgpack": 6,
    "pickle": 6,
    "ragged": 7,
}


def column_nbytes(signature: Signature) -> list[int]:
    """Bytes of one value of each parameter, then of the result."""
    return [column.nbytes for column in (*signature.parameters, signature.result)]


def segment_layout(signature: Signature, capacity: int) -> Layout:
    """Lay out the segment that carries this signature in *capacity* slots."""
    return layout(capacity, column_nbytes(signature))


def ring_arguments(memory: Any, signature: Signature, where: Layout) -> tuple[Any, ...]:
    """The arguments that `ProducerRing` and `ExecutorRing` have in common."""
    columns = (*signature.parameters, signature.result)
    shared = shared_axes(signature.parameters)
    looked_at = (*(shared for _ in signature.parameters), frozenset[str]())  # none of a result's
    return (
        memory,
        where.capacity,
        INDICES,
        where.controls,
        where.errors,
        where.error_nbytes,
        tuple(
            _native_column(column, offset, axes)
            for column, offset, axes in zip(columns, where.columns, looked_at, strict=True)
        ),
    )


def _native_column(column: Column, offset: int, shared: frozenset[str]) -> tuple[Any, ...]:
    """(kind, offset, nbytes, carrier, format, shape, allocate, itemsize) as core.c reads them."""
    kind, nbytes, carrier = _KINDS[column.kind], column.nbytes, column.carrier
    if column.kind in ("ndarray", "pickle"):
        return (kind, offset, nbytes, Pieces, "", (), partial(np.empty, dtype=np.uint8), 0)
    if column.kind not in ("array", "ragged"):
        # How long a str or bytes may be, which is a little less than the slot has room for.
        return (kind, offset, nbytes, carrier, "", (), None, column.max_bytes)
    dtype = column.wire_dtype
    # The format that numpy itself gives to a buffer of this dtype.
    text = np.empty(0, dtype).data.format
    if column.kind == "ragged":
        # Whether lengths agree across arguments is for Python to see, at every call.
        if not shared.isdisjoint(column.axes):
            carrier = Pieces
        allocate = partial(np.empty, dtype=dtype)
        return (kind, offset, nbytes, carrier, text, column.shape, allocate, dtype.itemsize)
    if carrier is memoryview:
        allocate = partial(np.empty, column.shape, dtype)
        return (kind, offset, nbytes, memoryview, "c", (nbytes,), allocate, dtype.itemsize)
    return (kind, offset, nbytes, np.ndarray, text, column.shape, dtype, dtype.itemsize)
