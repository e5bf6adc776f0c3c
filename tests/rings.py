"""Both ends of connections in one process, over anonymous memory: no second process, no waiting.

A `Wire` is one connection: the producer's ring, the executor's ring, and the memory between
them, which a test may read and overwrite word by word as a hostile producer could.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import numpy as np

from shmbatch.contract.columns import Column
from shmbatch.contract.signature import Signature
from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.protocol import layout
from shmbatch.protocol._core import PENDING, Batch, Bell, ExecutorRing, Inbox, Phases, ProducerRing

Scalar = Literal["int", "float", "bool"]

_SCALAR_DTYPES = {"int": "int64", "float": "float64", "bool": "bool"}


def scalar(kind: Scalar, name: str = "result") -> Column:
    """Return a scalar column."""
    return Column(name, kind, "", _SCALAR_DTYPES[kind], ())


def array(
    dtype: str,
    *shape: int,
    library: Literal["numpy", "torch"] = "numpy",
    name: str = "result",
) -> Column:
    """Return an array column."""
    return Column(name, "array", library, dtype, shape)


def signature(*parameters: Scalar | Column, result: Scalar | Column = "int") -> Signature:
    """Return a signature; parameters are named x0, x1, ..."""
    columns = tuple(
        Column(f"x{i}", each.kind, each.library, each.dtype, each.shape)
        if isinstance(each, Column)
        else scalar(each, f"x{i}")
        for i, each in enumerate(parameters)
    )
    return Signature(columns, result if isinstance(result, Column) else scalar(result))


ADD = signature("int", "int")


@dataclass(frozen=True)
class Raw:
    """A column as the core itself describes it, with no contract above."""

    kind: int
    nbytes: int
    carrier: Any
    format: str = ""
    shape: tuple[int, ...] = ()
    allocate: Callable[..., Any] | None = None
    itemsize: int = 0

    def __repr__(self) -> str:
        return f"<kind {self.kind}, {self.nbytes} bytes, {self.shape}>"

    def at(self, offset: int) -> tuple[Any, ...]:
        """Return the description that ProducerRing and ExecutorRing take."""
        return (
            *(self.kind, offset, self.nbytes, self.carrier),
            *(self.format, self.shape, self.allocate, self.itemsize),
        )


def _align(nbytes: int) -> int:
    return -(-nbytes // 16) * 16


INT = Raw(0, 8, int)
FLOAT = Raw(1, 8, float)


def text(max_bytes: int) -> Raw:
    """Return a column of str, at most so many bytes of UTF-8."""
    return Raw(4, 16 + _align(max_bytes), str, itemsize=max_bytes)


def binary(max_bytes: int) -> Raw:
    """Return a column of bytes, at most so many."""
    return Raw(5, 16 + _align(max_bytes), bytes, itemsize=max_bytes)


class Pieces(tuple[Any, ...]):
    """What the core takes for buffers end to end, or for a shape and a buffer."""

    __slots__ = ()


def packed(max_bytes: int, allocate: Callable[[int], Any] | None = None) -> Raw:
    """Return a column of buffers end to end; room for so many bytes, rounded up to 16."""
    return Raw(6, 16 + _align(max_bytes), Pieces, allocate=allocate)


def ragged(dtype: str, *shape: int, carrier: type = np.ndarray) -> Raw:
    """Return a column of arrays; an axis of 0 to n is given as -n."""
    itemsize = np.dtype(dtype).itemsize
    largest = prod(abs(axis) for axis in shape) * itemsize
    return Raw(
        7,
        _align(8 * len(shape)) + _align(largest),
        carrier,
        memoryview(np.empty(0, dtype)).format,
        shape,
        partial(np.empty, dtype=dtype),
        itemsize,
    )


class Wire:
    """One connection with both its ends in this process.

    Args:
        contract: a signature, or raw columns of the core, of which the last is the result's.
        bell: memory of the executor's bell, to be shared by several wires; None for one's own.
        wake: called with the bell's bits where the executor must be woken.
    """

    def __init__(
        self,
        contract: Signature | tuple[Raw, ...] = ADD,
        capacity: int = 4,
        *,
        bell: mmap.mmap | None = None,
        wake: Callable[[int], object] = lambda sleeping: None,
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self.signature = contract
        if isinstance(contract, Signature):
            self.where = segment_layout(contract, capacity)
        else:
            self.where = layout.layout(capacity, [column.nbytes for column in contract])
        self.memory = mmap.mmap(-1, self.where.nbytes)
        self.bell_memory = bell if bell is not None else mmap.mmap(-1, layout.BELL_NBYTES)
        self.bell = Bell(self.bell_memory)
        shared = self.arguments()
        self.executor = ExecutorRing(*shared, layout.LAYOUT_VERSION)
        self.producer = ProducerRing(*shared, self.bell_memory, wake, finish)

    def arguments(self) -> tuple[Any, ...]:
        """Return what ProducerRing and ExecutorRing have in common."""
        if isinstance(self.signature, Signature):
            return ring_arguments(self.memory, self.signature, self.where)
        where, columns = self.where, zip(self.signature, self.where.columns, strict=True)
        return (
            *(self.memory, where.capacity, layout.INDICES, where.controls),
            *(where.errors, where.error_nbytes),
            tuple(column.at(offset) for column, offset in columns),
        )

    def submit(self, *values: Any, flags: int = 0, deadline_ns: int = 0) -> int:
        """Publish one call that the core takes as it is; return its ticket."""
        ticket = self.producer.submit(values, flags, deadline_ns)
        assert ticket >= 0, ticket
        return ticket

    def read(self, offset: int) -> int:
        """Return the 32-bit word at *offset* of the segment."""
        return int(struct.unpack_from("=I", self.memory, offset)[0])

    def write(self, offset: int, word: int) -> None:
        """Overwrite the 32-bit word at *offset*."""
        struct.pack_into("=I", self.memory, offset, word)

    def value_offset(self, column: int, slot: int) -> int:
        """Return where the value of a slot stands in a raw column; -1 is the result's."""
        assert not isinstance(self.signature, Signature)
        return self.where.columns[column] + slot * self.signature[column].nbytes

    def state_offset(self, slot: int) -> int:
        return self.where.controls + layout.CONTROL_NBYTES * slot + layout.CONTROL_STATE

    def stamp(self, ticket: int, at_ns: int) -> None:
        """Date the publication of a call that has not been drained yet."""
        control = self.where.controls + layout.CONTROL_NBYTES * slot_of(ticket)
        struct.pack_into("=Q", self.memory, control + layout.CONTROL_PUBLISHED_NS, at_ns)


def slot_of(ticket: int) -> int:
    """Return the slot in which a ticket's call lives."""
    return ticket & 0x1FFFF


class Served:
    """The executor's side of one function without any Python above the core."""

    def __init__(self, *wires: Wire, room: int = 16, phases: Phases | None = None) -> None:
        self.inbox = Inbox()
        self.batch = Batch(room, phases)
        self.now_ns = 1 << 62  # later than any publication
        for wire in wires:
            self.inbox.attach(wire.executor, 0)

    def drain(self) -> int:
        return self.inbox.drain(self.now_ns)

    def take(self, limit: int | None = None) -> int:
        """Drain, then seal; return how many calls the batch has."""
        self.drain()
        limit = self.batch.capacity if limit is None else limit
        return self.inbox.take(self.batch, limit, self.now_ns)

    def answer(self, *results: Any) -> list[tuple[ExecutorRing, int, int, list[int]]]:
        """Complete the batch with these results; return whom to wake."""
        assert len(results) == self.batch.count
        for row, result in enumerate(results):
            assert self.batch.put(row, result)
        return self.batch.complete() or []

    def inputs(self, columns: int = 2) -> list[Any]:
        """Return the columns of the batch, all of them scalars."""
        return self.batch.gather([None] * columns)


def outcome(wire: Wire, ticket: int) -> Any:
    """Return the value of a call that is done."""
    value = wire.producer.poll(ticket, 0)
    assert value is not PENDING
    return value


def shown(value: object) -> str:
    """Name a parameter of a test, alike in every process that collects it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:80]
