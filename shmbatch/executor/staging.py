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
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..contract.columns import Column
from ..contract.signature import Signature
from ..protocol._core import Batch


class Event(Protocol):
    """When a batch's results are on the host."""

    def wait(self) -> None:
        """Block until then, asleep."""


ToHost = Callable[[Any], tuple[Any, Event]]


class Device(Protocol):
    """Where functions run."""

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

    depth = 1
    to_device: Callable[[Any], Any] | None = None
    to_host: ToHost | None = None

    def host_buffer(self, column: Column, rows: int) -> tuple[Any, Any]:
        array = np.zeros((rows, *column.shape), column.wire_dtype)
        if column.library == "numpy":
            return array, array
        torch = importlib.import_module("torch")
        # numpy lacks some of torch's dtypes; torch has all of numpy's, and views the rest.
        return array, torch.from_numpy(array).view(getattr(torch, column.dtype))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


class Staging:
    """Gathers the inputs of one function's batches.

    Args:
        rows: most calls in a batch.
    """

    def __init__(self, signature: Signature, rows: int, device: Device) -> None:
        self._to_device = device.to_device
        # One set for each batch in flight, and one to gather into meanwhile; of each column what
        # `Device.host_buffer` returned, None for scalars.
        self._sets: list[list[tuple[Any, Any] | None]] = [
            [
                device.host_buffer(column, rows) if column.kind == "array" else None
                for column in signature.parameters
            ]
            for _ in range(1 if device.depth == 1 else device.depth + 1)
        ]
        self._turn = 0

    def gather(self, batch: Batch) -> list[Any]:
        """Return the batch's inputs on the device, one list or stack a parameter.

        The stacks belong to the staging: they stay valid until the batch is complete.
        """
        buffers = self._sets[self._turn]
        inputs = batch.gather(buffers)
        if self._to_device is not None:
            self._turn = (self._turn + 1) % len(self._sets)
            for number, pair in enumerate(buffers):
                if pair is not None:
                    inputs[number] = self._to_device(inputs[number])
        return inputs
