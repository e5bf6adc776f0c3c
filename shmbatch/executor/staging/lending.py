"""Which inputs a function sees where they stand, in a producer's slots, without a copy.

A function that is `read_only` is lent the slots of its own user's producers. Then the inputs of a
batch that is one run of neighbouring slots of one ring are slices of these arrays, and only other
batches are gathered: the core decides it for each.

The slots are the executor's until the batch has its outcomes, so nothing is reused meanwhile. An
array keeps the segment mapped that it looks into: one that a function has kept is of no use once
the batch is over, and harms nobody, whoever has gone.

Slots of another user's producers are not lent. Their bytes change when the producer likes, also
between a function's look at an index and its use; our own user could do worse to us anyhow.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from ...contract.columns import Column
from ...contract.signature import Signature
from ...protocol._core import ExecutorRing
from ...protocol.layout import Layout
from .devices import as_seen


def lend(ring: ExecutorRing, memory: mmap.mmap, signature: Signature, where: Layout) -> None:
    """Have batches that are one run of *ring* see its slots, before it is attached.

    Args:
        memory: the ring's segment.
    """
    ring.lend(
        tuple(
            _slots(memory, column, offset, where.capacity) if _is_lent(column) else None
            for column, offset in zip(signature.parameters, where.columns[:-1], strict=True)
        )
    )


def protected(column: Column, stack: Any) -> Any:
    """Return *stack* such that the function cannot write to it, as far as its library can that."""
    if column.library == "numpy":
        stack = stack.view()
        stack.flags.writeable = False
    return stack


def _is_lent(column: Column) -> bool:
    return column.kind == "array" and column.nbytes > 0


def _slots(memory: mmap.mmap, column: Column, offset: int, capacity: int) -> Any:
    """Return all slots of a column as one stack."""
    shape = (capacity, *column.shape)
    array = np.ndarray(shape, column.wire_dtype, memory, offset)
    return protected(column, as_seen(column, array))
