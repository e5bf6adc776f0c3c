"""A CUDA device: three streams, and events that order what happens on them.

::

    slots --gather--> pinned room --h2d stream--> device buffer
                                                    | event: compute waits for the copies
                                                    v
                                        f(...) on the compute stream --> result on the device
                                                                           | event: d2h waits
                                                                           v
    slots <--scatter-- pinned results <---------------d2h stream-----------+
                          ^ event: the landing, for which the executor sleeps

Everything of a batch happens before its landing: the copies, since compute waits for them; the
function, since d2h waits for compute. So what waits for the landing, and for nothing else, may use
the batch's buffers and slots again. `Staging` has a set of buffers more than there are batches in
flight, and the executor waits for every landing, also for that of a batch which failed.

Nothing here blocks but waiting for a landing, fetching what is no result column, and copying the
tensors of a list, which are not pinned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...contract.columns import RAW_DTYPES, Column
from ...contract.definition import DirectDma
from ...contract.signature import Signature
from ...errors import ConfigError
from ...protocol.layout import Layout
from .devices import Buffer, HostBuffer, Landing, Results, leading
from .direct import Direct, direct_columns, measured
from .graphs import Graphs
from .runtime import Event, Runtime, first_line

_EVENTS_MIN = 8  # an event rests for some batches before it is used again


class Cuda:
    """Batches on one CUDA device, for the executor's loop, whose thread it prepares.

    Of other threads the control thread waits for h2d, and the lander for landings.
    """

    depth = 2

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.name = runtime.name
        self.h2d, self.compute, self.d2h = (runtime.Stream() for _ in range(3))
        # Whatever functions do, async ones too, goes to the compute stream.
        runtime.set_stream(self.compute)
        self._events = deque(runtime.Event() for _ in range(_EVENTS_MIN))
        self._fetched = False  # since the last landing: d2h is behind compute already
        self._measured_nbytes: int | None = None

    def buffer(self, column: Column, rows: int) -> Buffer:
        if column.library != "torch":
            return HostBuffer(column, rows)
        shape = (rows, *map(abs, column.shape))
        with self._allocating(column, shape):
            buffer = CudaBuffer(self.runtime, column.dtype, shape)
        self.runtime.synchronize()  # its zeros come on another stream than the first rows
        return buffer

    def results(self, column: Column, rows: int) -> Results:
        ours = column.kind == "array" and column.library == "torch"
        shape = (rows, *column.shape) if ours else None
        with self._allocating(column, shape):
            return CudaResults(self.runtime, column.dtype, shape)

    @contextmanager
    def _allocating(self, column: Column, shape: tuple[int, ...] | None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            what = f"there is no room for {column.name!r}, {column.dtype} of shape {shape}, on"
            remedy = "lower max_batch_size or the lengths, or use device cpu"
            if "out of memory" not in str(error).lower():
                what = f"{column.name!r}, {column.dtype} of shape {shape}, cannot be staged for"
                remedy = "use another dtype, or device cpu"
            raise ConfigError(
                f"{what} {self.name}: {first_line(error).rstrip('.')}; {remedy}"
            ) from error

    @contextmanager
    def copying(self) -> Iterator[None]:
        copied = self._event()
        try:
            with self.runtime.stream(self.h2d):
                yield
        finally:
            copied.record(self.h2d)
            self.compute.wait_event(copied)
            self._events.append(copied)
            # A function that awaits inside of `torch.cuda.stream` leaves another one behind.
            self.runtime.set_stream(self.compute)

    @contextmanager
    def fetching(self) -> Iterator[None]:
        self._behind_compute()
        with self.runtime.stream(self.d2h):
            yield
        self._fetched = True

    def landing(self, kept: object = None) -> Landing:
        if not self._fetched:
            self._behind_compute()
        self._fetched = False
        event = self._event()
        event.record(self.d2h)
        return CudaLanding(event, self._events, kept)

    def copied(self, tensor: Any) -> Any:
        return self.runtime.to_device(tensor)

    def direct(
        self, signature: Signature, where: Layout, mode: DirectDma, address: str
    ) -> Direct | None:
        columns = direct_columns(signature, mode, self._least_direct_nbytes)
        if not columns:
            return None
        self.runtime.prepare_copies(self.h2d)
        return Direct(self.runtime, self.h2d, signature, where, columns, address)

    def graphs(
        self, function: Callable[..., Any], signature: Signature, address: str
    ) -> Graphs | None:
        return Graphs(function, signature, self.runtime, self.compute, address)

    def _least_direct_nbytes(self) -> int:
        """From how many bytes a row on `direct_dma="auto"` copies directly; measured once."""
        if self._measured_nbytes is None:
            self.runtime.prepare_copies(self.h2d)
            self._measured_nbytes = measured(self.runtime, self.h2d)
        return self._measured_nbytes

    def adopt_thread(self) -> None:
        self.runtime.set_device()

    def is_lost(self, error: BaseException) -> bool:
        return self.runtime.is_lost(error)

    def _behind_compute(self) -> None:
        computed = self._event()
        computed.record(self.compute)
        self.d2h.wait_event(computed)
        self._events.append(computed)

    def _event(self) -> Event:
        """Take the event that has rested for longest."""
        return self._events.popleft() if self._events else self.runtime.Event()


class CudaLanding:
    """See `Landing`; gives its event back."""

    def __init__(self, event: Event, pool: deque[Event], kept: object) -> None:
        self._event: Event | None = event
        self._pool = pool
        self._kept = kept  # or the allocator would give a result's memory away during its copy

    def wait(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.synchronize()
            self._kept = None
            self._pool.append(event)

    def landed(self) -> bool:
        return self._event is None or self._event.query()

    def wait_elsewhere(self) -> None:
        event = self._event
        if event is not None:
            event.synchronize()


class CudaBuffer:
    """Rows in pinned memory, and on the device."""

    def __init__(self, runtime: Runtime, dtype: str, shape: tuple[int, ...]) -> None:
        self.room, self.host = runtime.pinned(dtype, shape)
        self._device = runtime.zeros(dtype, shape)

    def moved(self, shape: tuple[int, ...], size: int) -> Any:
        rows = leading(self._device, (size, *shape[1:]))
        rows[: shape[0]].copy_(leading(self.host, shape), non_blocking=True)
        return _padded(rows, shape[0]).detach()  # no gradient of the function's gets into ours

    def filled(self, count: int, size: int, fill: Callable[[Any], None]) -> Any:
        """As `moved`, from somewhere else: *fill* starts copies into the first *count* rows."""
        rows = self._device[:size]
        fill(rows)
        return _padded(rows, count).detach()


def _padded(rows: Any, count: int) -> Any:
    """Have the rows behind the first *count* repeat the last of these."""
    if len(rows) > count:
        rows[count:].copy_(rows[count - 1 : count], non_blocking=True)
    return rows


class CudaResults:
    """Pinned memory for the results of one batch; none if *shape* is None."""

    def __init__(self, runtime: Runtime, dtype: str, shape: tuple[int, ...] | None) -> None:
        self._runtime = runtime
        self._room = self._host = None
        if shape is not None:
            self._room, self._host = runtime.pinned(dtype, shape)
            # Of dtypes that numpy lacks the raw memory would say too little.
            self._seen = self._host if dtype in RAW_DTYPES else self._room

    def fetched(self, value: Any, count: int) -> Any:
        if self._fits(value, count):
            assert self._host is not None
            self._host[:count].copy_(self._runtime.plain(value), non_blocking=True)
            return self._seen[:count]
        if isinstance(value, list):
            return [self._row(row, item) for row, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(map(self._on_host, value))
        return self._on_host(value)

    def _fits(self, value: Any, count: int) -> bool:
        host = self._host
        return (
            host is not None
            and self._runtime.is_ours(value)
            and value.dtype == host.dtype
            and tuple(value.shape) == (count, *host.shape[1:])
        )

    def _row(self, row: int, item: Any) -> Any:
        host = self._host
        if (
            host is None
            or row >= len(host)
            or not self._runtime.is_ours(item)
            or item.dtype != host.dtype
            or item.shape != host.shape[1:]
        ):
            return self._on_host(item)
        host[row].copy_(self._runtime.plain(item), non_blocking=True)
        return self._seen[row, ...]  # a view, of a scalar too: the copy has yet to happen

    def _on_host(self, value: Any) -> Any:
        return value.detach().cpu() if self._runtime.is_ours(value) else value
