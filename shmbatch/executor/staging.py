"""Where a batch's inputs are gathered and its results come back from; torch's home.

A `Staging` has one set of host buffers for each batch in flight, and one more, so that gathering
never waits for a copy that is under way. Between host and function stands a `Device`:

::

    slots --gather--> host buffer --to_device--> f(...) --to_host--> host result --scatter--> slots
                      one a column   H2D stream  compute   D2H stream

A device's copies may be asynchronous; an `Event` says when the results of a batch are on the
host, and nothing of the batch may be reused or read before. `Cpu` has null streams: its copies
are the buffers themselves.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..contract.columns import Column
from ..contract.exceptions import pack_exception
from ..contract.packing import Packing, packing
from ..contract.ragged import Padded
from ..contract.signature import Signature
from ..protocol._core import Batch


class Event(Protocol):
    """When a batch's results are on the host."""

    def wait(self) -> None:
        """Block until then, asleep."""


ToHost = Callable[[Any], tuple[Any, Event]]


class Device(Protocol):
    """Where functions run."""

    name: str  # for people
    depth: int  # batches in flight
    # Start copying gathered rows to the device; return what the function gets. None: it gets
    # the host's memory.
    to_device: Callable[[Any], Any] | None
    # Start copying a result back; return it as it will be on the host, and when. None: it is.
    to_host: ToHost | None

    def host_buffer(self, column: Column, rows: int) -> tuple[Any, Any]:
        """Return (writable buffer to gather into, the same memory as `to_device` takes it)."""

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function* as it is to be called: after all of `to_device`'s copies."""


class Cpu:
    """Functions on the CPU: null streams, and everything has always happened."""

    name = "cpu"
    depth = 1
    to_device: Callable[[Any], Any] | None = None
    to_host: ToHost | None = None

    def host_buffer(self, column: Column, rows: int) -> tuple[Any, Any]:
        # Of a ragged column as long as its longest rows could ever be.
        array = np.zeros((rows, *map(abs, column.shape)), column.wire_dtype)
        return array, _native(column, array)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def _native(column: Column, array: Any) -> Any:
    """Return an array, of the column's wire dtype, as the function is to see it."""
    if column.library == "numpy":
        return array
    torch = importlib.import_module("torch")
    # numpy lacks some of torch's dtypes; torch has all of numpy's, and views the rest.
    return torch.from_numpy(array).view(getattr(torch, column.dtype))


class Staging:
    """Gathers the inputs of one function's batches.

    Args:
        rows: most calls in a batch.
        address: of the function, for messages.
        module: that of the user's function.
        record_nbytes: room for an error record in a slot.
        note: told of each rejected row's error, that it is one call's, and how loudly to say so.
    """

    def __init__(
        self,
        signature: Signature,
        rows: int,
        device: Device,
        *,
        address: str,
        module: str | None,
        record_nbytes: int,
        note: Callable[[BaseException, int, int], None] = lambda error, calls, level: None,
    ) -> None:
        self._note = note
        self._to_device = device.to_device
        self._record_nbytes = record_nbytes
        # One set for each batch in flight, and one to gather into meanwhile; of each column what
        # the core gathers into, and what `Device.host_buffer` returned second; None for lists.
        self._sets: list[tuple[list[tuple[Any, Any] | None], list[Any]]] = []
        for _ in range(1 if device.depth == 1 else device.depth + 1):
            pairs = [_host_buffers(column, rows, device) for column in signature.parameters]
            self._sets.append(([pair for pair, _ in pairs], [staged for _, staged in pairs]))
        self._turn = 0
        # What Python has still to do with a gathered column, by its number.
        self._packed: list[tuple[int, Packing, str]] = []
        self._tensors: list[tuple[int, Column]] = []  # lists of them
        self._padded: list[tuple[int, Column]] = []
        for number, column in enumerate(signature.parameters):
            subject = f"parameter {column.name!r} of {address}"
            packed = packing(column, subject, module)
            if packed is not None:
                self._packed.append((number, packed, subject))
            elif column.padded:
                self._padded.append((number, column))
            elif column.kind == "ragged" and column.library == "torch":
                self._tensors.append((number, column))

    def gather(self, batch: Batch) -> list[Any]:
        """Return the batch's inputs on the device, one list or stack a parameter.

        The stacks belong to the staging: they stay valid until the batch is complete. Rows whose
        bytes are no value are rejected: they get that error, and the others are as if they had
        never been there. There may be none left.
        """
        buffers, staged = self._sets[self._turn]
        inputs = batch.gather(buffers)
        while self._packed and not self._unpack(batch, inputs):
            if not batch.count:
                return inputs
            inputs = batch.gather(buffers)
        for number, column in self._tensors:
            inputs[number] = [_native(column, array) for array in inputs[number]]
        for number, column in self._padded:
            inputs[number] = _padded(column, inputs[number], staged[number])
        if self._to_device is not None:
            self._turn = (self._turn + 1) % len(self._sets)
            for number, pair in enumerate(buffers):
                if pair is not None:
                    inputs[number] = self._moved(inputs[number], self._to_device)
        return inputs

    def _moved(self, staged: Any, to_device: Callable[[Any], Any]) -> Any:
        if isinstance(staged, Padded):
            return Padded(to_device(staged.rows), to_device(staged.lengths))
        return to_device(staged)

    def _unpack(self, batch: Batch, inputs: list[Any]) -> bool:
        """Put values in the place of what they were packed into; False if rows were rejected."""
        errors: dict[int, BaseException] = {}
        for number, packed, subject in self._packed:
            unpack = packed.unpack
            payloads = inputs[number]
            try:
                inputs[number] = [unpack(payload, subject) for payload in payloads]
            except BaseException:  # one of them; which ones, costs only those who have to know
                inputs[number] = values = []
                for row, payload in enumerate(payloads):
                    try:
                        values.append(unpack(payload, subject))
                    except BaseException as error:
                        errors.setdefault(row, error)
                        values.append(None)
        for row in sorted(errors, reverse=True):  # those behind a rejected row move up
            batch.reject(row, pack_exception(errors[row], self._record_nbytes))
            self._note(errors[row], 1, logging.WARNING)
        rejected = bool(errors)
        errors.clear()  # their tracebacks hold this frame, and with it every payload
        return not rejected


def _host_buffers(column: Column, rows: int, device: Device) -> tuple[tuple[Any, Any] | None, Any]:
    """Return what the core gathers a column into, and that memory as the device takes it."""
    if column.kind == "array":
        pair = device.host_buffer(column, rows)
        return pair, pair[1]
    if column.padded:
        room, staged = device.host_buffer(column, rows)
        count = len(column.variable)
        lengths = np.zeros((rows, count) if count > 1 else rows, np.int64)
        return (room, lengths), (staged, lengths)
    return None, None


def _padded(column: Column, shape: tuple[int, ...], staged: tuple[Any, Any]) -> Padded:
    """Return the rows that the core has written to the start of a buffer, and their lengths."""
    room, lengths = staged
    rows = room.reshape(-1)[: math.prod(shape)].reshape(shape)
    lengths = lengths[: shape[0]]
    if column.library == "torch":
        lengths = importlib.import_module("torch").from_numpy(lengths)
    return Padded(rows, lengths)
