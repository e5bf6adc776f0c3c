"""What a device offers to the staging; the CPU, where nothing has to move."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...contract.columns import Column

if TYPE_CHECKING:
    from ...contract.definition import DirectDma
    from ...contract.signature import Signature
    from ...protocol.layout import Layout
    from .direct import Direct
    from .graphs import Graphs


class Landing(Protocol):
    """When all that a batch started on its device is over, and its results are on the host."""

    def wait(self) -> None:
        """Block until then, asleep. Raises what the device reports. Idempotent."""

    def landed(self) -> bool:
        """Say whether `wait` would not block. Raises what the device reports."""

    def wait_elsewhere(self) -> None:
        """As `wait`, for another thread, which has no part in it."""


class Buffer(Protocol):
    """Room for one column of a batch, on the host and where the function finds it."""

    room: Any  # writable memory that the core gathers into; as long as the longest batch
    host: Any  # the same memory as the array or tensor that the function would see on the CPU

    def moved(self, shape: tuple[int, ...], size: int) -> Any:
        """Start moving the rows at the start of the room; return *size* rows for the function.

        Those behind the first ``shape[0]`` are padding: they repeat the last of these.
        """


class Results(Protocol):
    """Room on the host for the results of a batch."""

    def fetched(self, value: Any, count: int) -> Any:
        """Start copying what the function returned for *count* calls; return it as it will stand
        on the host. What is no result as the column declares it is copied at once."""


class Device(Protocol):
    """Where functions run. Its copies may be asynchronous."""

    name: str  # for people
    depth: int  # batches in flight

    def buffer(self, column: Column, rows: int) -> Buffer: ...

    def results(self, column: Column, rows: int) -> Results | None:
        """None: what functions return is on the host, and a batch is over when they return."""

    def copying(self) -> AbstractContextManager[object]:
        """What a function does after this block waits for the moves started inside it."""

    def fetching(self) -> AbstractContextManager[object]:
        """What is fetched inside this block waits for all that functions have started."""

    def landing(self, kept: object = None) -> Landing:
        """Return when all is over that was started until now, keeping *kept* alive until then."""

    def copied(self, tensor: Any) -> Any:
        """Return a tensor of a list on the device, for good. May block."""

    def direct(
        self, signature: Signature, where: Layout, mode: DirectDma, address: str
    ) -> Direct | None:
        """Return what copies rows straight out of slots; None if all are to be gathered."""

    def graphs(
        self, function: Callable[..., Any], signature: Signature, address: str
    ) -> Graphs | None:
        """Return what calls *function* through graphs of the device, which has none if None."""

    def adopt_thread(self) -> None:
        """Prepare another thread, which is the one that calls this, to wait for landings."""

    def is_lost(self, error: BaseException) -> bool:
        """Say whether *error* means that this process can use the device no more."""


class HostBuffer:
    """Rows that a function on the CPU finds where the core gathered them."""

    def __init__(self, column: Column, rows: int) -> None:
        # Of a ragged column as long as its longest rows could ever be.
        self.room = np.zeros((rows, *map(abs, column.shape)), column.wire_dtype)
        self.host = as_seen(column, self.room)

    def moved(self, shape: tuple[int, ...], size: int) -> Any:
        count = shape[0]
        rows = leading(self.host, (size, *shape[1:]))
        if size > count:
            rows[count:] = rows[count - 1]
        return rows


class Cpu:
    """Functions on the CPU: null streams, and everything has always happened."""

    name = "cpu"
    depth = 1

    def buffer(self, column: Column, rows: int) -> Buffer:
        return HostBuffer(column, rows)

    def results(self, column: Column, rows: int) -> Results | None:
        return None

    def copying(self) -> AbstractContextManager[object]:
        return nullcontext()

    def fetching(self) -> AbstractContextManager[object]:
        return nullcontext()

    def landing(self, kept: object = None) -> Landing:
        return Landed()

    def copied(self, tensor: Any) -> Any:
        return tensor

    def direct(
        self, signature: Signature, where: Layout, mode: DirectDma, address: str
    ) -> Direct | None:
        return None

    def graphs(
        self, function: Callable[..., Any], signature: Signature, address: str
    ) -> Graphs | None:
        return None

    def adopt_thread(self) -> None:
        pass

    def is_lost(self, error: BaseException) -> bool:
        return False


class Landed:
    """Nothing was started."""

    def wait(self) -> None:
        pass

    def landed(self) -> bool:
        return True

    def wait_elsewhere(self) -> None:
        pass


def as_seen(column: Column, array: Any) -> Any:
    """Return an array, of the column's wire dtype, as the function is to see it."""
    if column.library == "numpy":
        return array
    torch = importlib.import_module("torch")
    # numpy lacks some of torch's dtypes; torch has all of numpy's, and views the rest.
    return torch.from_numpy(array).view(getattr(torch, column.dtype))


def leading(stack: Any, shape: tuple[int, ...]) -> Any:
    """Return the start of a stack's memory as one of *shape*."""
    if tuple(stack.shape[1:]) == shape[1:]:
        return stack[: shape[0]]
    return stack.reshape(-1)[: math.prod(shape)].reshape(shape)
