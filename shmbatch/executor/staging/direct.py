"""Rows that the device copies straight out of the producers' slots, without a gather before.

A segment is registered with CUDA once, when its producer attaches, and then its pages are as good
as pinned memory. Worth it for large rows only: each run of neighbouring slots is a copy of its
own, and starting many of them takes time, even in one call; gathered rows all go in one. Where
that begins to pay is measured when the executor starts (`measured`).

Slots stay the executor's until their batch has landed, so nothing is reused under a copy. A
segment is unregistered when its producer is gone, behind all copies that were started until then:
its pages may be the source of one, whoever has died.
"""

from __future__ import annotations

import logging
import mmap
import statistics
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from ...contract.columns import Column
from ...contract.definition import DirectDma
from ...contract.signature import Signature
from ...protocol._core import Batch, ExecutorRing
from ...protocol.clock import now_ns
from ...protocol.layout import Layout
from .runtime import Runtime

log = logging.getLogger("shmbatch.executor")

# (ring, first slot, number of slots): neighbours in one ring, which are rows behind each other.
Run = tuple[ExecutorRing, int, int]

NEVER = 1 << 62  # bytes of a row; no row is as large
_ROWS_NBYTES = (1 << 14, 1 << 16, 1 << 18, 1 << 20)  # what is measured
_BATCH = 16
_ROUNDS = 5


class Fillable(Protocol):
    """A buffer on the device; see `CudaBuffer`."""

    def filled(self, count: int, size: int, fill: Callable[[Any], None]) -> Any: ...


class Registration:
    """A producer's segment, registered from here until `close`."""

    def __init__(self, direct: Direct, ring: ExecutorRing, address: int, keep: Any) -> None:
        self._direct = direct
        self._ring = ring
        self._address = address
        self._keep = keep  # the mapping must outlive it

    def close(self) -> None:
        """Wait for the copies out of it, then unregister. Idempotent; for any thread."""
        if self._keep is not None:
            self._direct.forget(self._ring, self._address)
            self._keep = None


class Direct:
    """The large columns of one function, where segments can be registered.

    Args:
        stream: where the copies are started.
        columns: the numbers of the parameters that are copied so.
    """

    def __init__(
        self,
        runtime: Runtime,
        stream: Any,
        signature: Signature,
        where: Layout,
        columns: frozenset[int],
        address: str,
    ) -> None:
        self.columns = columns
        self._runtime = runtime
        self._stream = stream
        self._parameters = signature.parameters
        self._where = where
        self._address = address
        self._refused = False
        # By ring, of each column of `columns`, the slots as one tensor. Filled by the control
        # thread and read by the loop's.
        self._slots: dict[ExecutorRing, dict[int, Any]] = {}

    def register(self, ring: ExecutorRing, memory: mmap.mmap) -> Registration | None:
        """Register a producer's segment; None where CUDA refuses, which is logged once."""
        array = np.frombuffer(memory, np.uint8)
        address = array.ctypes.data
        slots = {
            number: self._column(memory, self._parameters[number], number)
            for number in self.columns
        }
        if not self._runtime.register(address, array.nbytes):
            if not self._refused:
                self._refused = True
                log.warning(
                    "%s gathers all rows: CUDA does not register the %d bytes of a segment",
                    self._address,
                    array.nbytes,
                )
            return None
        self._slots[ring] = slots
        return Registration(self, ring, address, array)

    def forget(self, ring: ExecutorRing, address: int) -> None:
        """Unregister a segment, out of which nothing more will be started."""
        self._slots.pop(ring, None)
        with suppress(RuntimeError):  # the device is lost; whoever waits for it hears of it
            self._runtime.set_device()  # of this thread, which may be any
            started = self._runtime.Event()
            started.record(self._stream)
            started.synchronize()
        with suppress(RuntimeError):
            self._runtime.unregister(address)

    def runs(self, batch: Batch) -> list[Run] | None:
        """Return where a batch's rows stand; None if not all of that is registered."""
        runs: list[Run] = batch.runs()
        return runs if all(ring in self._slots for ring, _, _ in runs) else None

    def without(self, rooms: list[tuple[Any, Any] | None]) -> list[tuple[Any, Any] | None]:
        """Return *rooms* for `Batch.gather` such that it leaves these columns where they are."""
        return [
            (None, room[1]) if room is not None and number in self.columns else room
            for number, room in enumerate(rooms)
        ]

    def fill(
        self, buffers: list[Any], inputs: list[Any], runs: list[Run], count: int, size: int
    ) -> None:
        """Start copying the rows of these columns, and put them in their places in *inputs*."""
        for number in self.columns:

            def fill(rows: Any, number: int = number) -> None:
                pairs = []
                at = 0
                for ring, slot, length in runs:
                    source = self._slots[ring][number][slot : slot + length]
                    pairs.append((rows[at : at + length], source))
                    at += length
                self._runtime.copy_runs(pairs, self._stream)

            inputs[number] = buffers[number].filled(count, size, fill)

    def _column(self, memory: mmap.mmap, column: Column, number: int) -> Any:
        shape = (self._where.capacity, *column.shape)
        offset = self._where.columns[number]
        length = int(np.prod(shape))
        array = np.frombuffer(memory, column.wire_dtype, length, offset).reshape(shape)
        return self._runtime.tensor(array, column.dtype)


def direct_columns(
    signature: Signature, mode: DirectDma, least: Callable[[], int]
) -> frozenset[int]:
    """Return the numbers of the parameters to copy straight from the slots.

    Args:
        least: returns from how many bytes a row on that pays; asked only by ``"auto"``, and only
            if there is a row that it may be worth for.
    """
    if mode is False:
        return frozenset()
    rows_nbytes = {
        number: column.nbytes
        for number, column in enumerate(signature.parameters)
        if column.kind == "array" and column.library == "torch" and column.nbytes
    }
    if mode == "auto":
        if max(rows_nbytes.values(), default=0) < _ROWS_NBYTES[0]:
            return frozenset()
        from_nbytes = least()
        rows_nbytes = {at: nbytes for at, nbytes in rows_nbytes.items() if nbytes >= from_nbytes}
    return frozenset(rows_nbytes)


def measured(runtime: Runtime, stream: Any) -> int:
    """Return from how many bytes a row on direct copies are sooner over; `NEVER` if none are,
    or if there is no room to measure it.

    Of each size a batch of rows in scattered slots is gathered and copied, and copied directly.
    Takes a quarter of a second and 80 MiB.
    """
    table: list[tuple[int, float, float]] = []
    memory = mmap.mmap(-1, 2 * _BATCH * _ROWS_NBYTES[-1])
    slots = np.frombuffer(memory, np.uint8)
    slots[:] = 1
    if not runtime.register(slots.ctypes.data, slots.nbytes):
        return NEVER
    try:
        for nbytes in _ROWS_NBYTES:
            array = slots[: 2 * _BATCH * nbytes].reshape(2 * _BATCH, nbytes)
            table.append((nbytes, *_compared(runtime, stream, array)))
    except RuntimeError as error:
        log.warning("no row is copied directly, for that cannot be measured: %s", error)
        return NEVER
    finally:
        runtime.synchronize()
        runtime.unregister(slots.ctypes.data)
    log.debug("bytes a row, ns gathered, ns direct for %d rows: %s", _BATCH, table)
    least = NEVER
    for nbytes, gathered_ns, direct_ns in reversed(table):
        if direct_ns >= gathered_ns:
            break
        least = nbytes
    return least


def _compared(runtime: Runtime, stream: Any, slots: Any) -> tuple[float, float]:
    """Return how long every other of *slots* takes to the device, gathered before and directly."""
    shape = (_BATCH, slots.shape[1])
    room, host = runtime.pinned("uint8", shape)
    rows, tensor = runtime.zeros("uint8", shape), runtime.tensor(slots, "uint8")

    def gathered() -> None:
        np.copyto(room, slots[::2])
        runtime.copy_runs([(rows, host)], stream)

    def direct() -> None:
        apart = [(rows[at : at + 1], tensor[2 * at : 2 * at + 1]) for at in range(_BATCH)]
        runtime.copy_runs(apart, stream)

    return _median_ns(runtime, gathered), _median_ns(runtime, direct)


def _median_ns(runtime: Runtime, copy: Callable[[], None]) -> float:
    times_ns = []
    for _ in range(_ROUNDS + 1):
        since_ns = now_ns()
        copy()
        runtime.synchronize()
        times_ns.append(now_ns() - since_ns)
    return statistics.median(times_ns[1:])  # the first one warms up
