"""How a signature looks to the native core: the layout of its segments and its columns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..protocol.layout import INDICES, Layout, layout
from .columns import Column
from .signature import Signature

_KINDS = {"int": 0, "float": 1, "bool": 2, "array": 3}  # KIND_... in core.c


def column_nbytes(signature: Signature) -> list[int]:
    """Bytes of one value of each parameter, then of the result."""
    return [column.nbytes for column in (*signature.parameters, signature.result)]


def segment_layout(signature: Signature, capacity: int) -> Layout:
    """Lay out the segment that carries this signature in *capacity* slots."""
    return layout(capacity, column_nbytes(signature))


def ring_arguments(memory: Any, signature: Signature, where: Layout) -> tuple[Any, ...]:
    """The arguments that `ProducerRing` and `ExecutorRing` have in common."""
    columns = (*signature.parameters, signature.result)
    return (
        memory,
        where.capacity,
        INDICES,
        where.controls,
        where.errors,
        where.error_nbytes,
        tuple(
            _native_column(column, offset)
            for column, offset in zip(columns, where.columns, strict=True)
        ),
    )


def _native_column(column: Column, offset: int) -> tuple[Any, ...]:
    """(kind, offset, nbytes, carrier, format, shape, allocate) as core.c reads them."""
    kind = _KINDS[column.kind]
    if column.kind != "array":
        return (kind, offset, column.nbytes, column.carrier, "", (), None)
    allocate = partial(np.empty, column.shape, column.wire_dtype)
    if column.carrier is memoryview:
        return (kind, offset, column.nbytes, memoryview, "c", (column.nbytes,), allocate)
    # The format that numpy itself gives to a buffer of this dtype.
    text = np.empty(0, column.wire_dtype).data.format
    return (kind, offset, column.nbytes, np.ndarray, text, column.shape, allocate)
