"""Where a batch's inputs are gathered and its results come back from; torch's home.

A `Staging` has one set of host buffers for each batch in flight, and one more, so that gathering
never waits for a copy that is under way. Between host and function stands a `Device`:

::

    slots --gather--> host buffer --to_device--> f(...) --to_host--> host result --scatter--> slots
                      one a column   H2D stream  compute   D2H stream

A device's copies may be asynchronous; `Event` says when the results of a batch are on the host,
and nothing of the batch may be reused or read before. `Cpu` has null streams: its copies are the
buffers themselves, and its events have always happened.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from ..contract.columns import Column
from ..contract.signature import Signature
from ..protocol._core import Batch


class Event(Protocol):
    """When a batch's results are on the host."""

    def wait(self) -> None:
        """Block until then, asleep."""


class Device(Protocol):
    """Where a function runs."""

    depth: int  # batches in flight

    def host_buffer(self, column: Column, rows: int) -> tuple[Any, Any]:
        """Return (writable buffer to gather into, the same memory as `to_device` takes it)."""

    def to_device(self, staged: Any) -> Any:
        """Start copying gathered rows to the device; return what the function gets."""

    def compute(self) -> AbstractContextManager[Any]:
        """What the function runs under; it must see all of `to_device`'s copies."""

    def to_host(self, result: Any) -> Any:
        """Start copying the function's result back; return what it will be on the host."""

    def record(self) -> Event:
        """Return the event after everything started so far."""


class _Happened:
    def wait(self) -> None:
        pass


class Cpu:
    """Functions on the CPU: null streams."""

    depth = 1

    def __init__(self) -> None:
        self._now = _Happened()
        self._nothing = nullcontext()

    def host_buffer(self, column: Column, rows: int) -> tuple[Any, Any]:
        shape = (rows, *column.shape)
        if column.library == "numpy":
            array = np.zeros(shape, column.wire_dtype)
            return array, array
        torch = importlib.import_module("torch")
        # Made as bytes: numpy lacks some of torch's dtypes, torch has all of numpy's.
        array = np.zeros(shape, column.wire_dtype)
        return array, torch.from_numpy(array).view(getattr(torch, column.dtype))

    def to_device(self, staged: Any) -> Any:
        return staged

    def compute(self) -> AbstractContextManager[Any]:
        return self._nothing

    def to_host(self, result: Any) -> Any:
        return result

    def record(self) -> Event:
        return self._now


class Staging:
    """Gathers the inputs of one function's batches.

    Args:
        rows: most calls in a batch.
    """

    def __init__(self, signature: Signature, rows: int, device: Device) -> None:
        self._device = device
        self._sets = [
            [
                None if column.kind != "array" else device.host_buffer(column, rows)
                for column in signature.parameters
            ]
            for _ in range(device.depth + 1 if device.depth > 1 else 1)
        ]
        self._turn = 0

    def gather(self, batch: Batch) -> tuple[Any, ...]:
        """Return the batch's inputs on the device, one list or stack a parameter.

        The stacks belong to the staging: they stay valid until the batch is complete.
        """
        buffers = self._sets[self._turn]
        self._turn = (self._turn + 1) % len(self._sets)
        inputs = []
        for number, pair in enumerate(buffers):
            if pair is None:
                inputs.append(batch.gather_list(number))
            else:
                host, staged = pair
                batch.gather(number, host)
                inputs.append(self._device.to_device(staged[: batch.count]))
        return tuple(inputs)
