"""One function as the executor serves it: launch a batch, complete a batch."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from typing import TYPE_CHECKING

from ..contract.batching import slot_capacity
from ..contract.definition import Definition
from ..contract.wire import column_nbytes, segment_layout
from ..protocol import layout
from ..protocol._core import Batch, Inbox
from .batcher import Batcher, SealReason
from .delivery import Delivery
from .runner import Run, Runner
from .staging import Device, Event, Staging
from .statistics import Statistics

if TYPE_CHECKING:
    from ..protocol._core import Wake

# What one producer's segment for one function may take, unless slots= says otherwise.
SEGMENT_LIMIT_NBYTES = 256 << 20


class Flight:
    """A batch that has been launched and not completed."""

    __slots__ = ("batch", "event", "result", "run")

    def __init__(self, batch: Batch, run: Run) -> None:
        self.batch = batch
        self.run = run
        self.result: object = None
        self.event: Event | None = None


class ServedFunction:
    """A definition together with everything that runs it.

    Args:
        address: for messages, ``app.function``.
        loop: makes the event loop that async functions suspend on.
    """

    def __init__(
        self,
        definition: Definition,
        address: str,
        device: Device,
        loop: asyncio.AbstractEventLoop | None,
        max_capacity: int,
    ) -> None:
        signature, parameters = definition.signature, definition.parameters
        self.definition = definition
        self.address = address
        self.inbox = Inbox()
        self.batcher = Batcher(parameters.max_batch_size, parameters.wait_ns)
        self.statistics = Statistics()
        self.flights: deque[Flight] = deque()
        self.capacity = min(
            max_capacity,
            slot_capacity(
                parameters.max_batch_size,
                definition.slots,
                layout.slot_nbytes(column_nbytes(signature)),
                SEGMENT_LIMIT_NBYTES,
            ),
        )
        self.layout = segment_layout(signature, self.capacity)
        self.is_async = inspect.iscoroutinefunction(definition.function)
        self._device = device
        self._depth = 1 if self.is_async else device.depth
        self._staging = Staging(signature, parameters.max_batch_size, device)
        self._runner = Runner(definition.function, loop if self.is_async else None)
        self._delivery = Delivery(address, signature.result, self.layout.error_nbytes)
        self._batches = [Batch(parameters.max_batch_size) for _ in range(self._depth)]

    def can_launch(self) -> bool:
        """Whether fewer batches than the device takes are in flight."""
        return len(self.flights) < self._depth

    def launch(self) -> bool:
        """Seal a batch and start it; False if all its calls were cancelled just now.

        A synchronous function on the CPU has run when this returns.
        """
        reason = self.batcher.reason
        assert reason is not None, "only what is due is launched"
        batch = self._batches.pop()
        if not self.inbox.take(batch, self.batcher.max_batch_size):
            self._batches.append(batch)
            return False
        self.batcher.sealed()
        self._count(batch.count, reason)
        flight = Flight(batch, self._run(batch))
        self.flights.append(flight)
        if flight.run.done:
            self._fetch(flight)
        return True

    def complete(self) -> list[Wake] | None:
        """Publish the outcomes of the oldest flight, which must be done; return whom to wake."""
        flight = self.flights.popleft()
        batch, run = flight.batch, flight.run
        if flight.event is None:
            self._fetch(flight)
        if run.error is None:
            try:
                assert flight.event is not None
                flight.event.wait()
                failed = self._delivery.returned(batch, flight.result)
            except Exception as error:
                failed = self._delivery.raised(batch, error)
        else:
            failed = self._delivery.raised(batch, run.error)
        self.statistics.calls_done += batch.count
        self.statistics.calls_failed += failed
        try:
            return batch.complete()
        finally:
            self._batches.append(batch)

    def close(self) -> None:
        """End what the runner still awaits. Idempotent."""
        self._runner.close()

    def _run(self, batch: Batch) -> Run:
        try:
            inputs = self._staging.gather(batch)
            with self._device.compute():
                return self._runner.start(inputs)
        except Exception as error:
            run = Run()
            run.raised(error)
            return run

    def _fetch(self, flight: Flight) -> None:
        """Start copying results back, and note when they will be there."""
        if flight.run.error is None:
            try:
                flight.result = self._device.to_host(flight.run.value)
                flight.event = self._device.record()
            except Exception as error:
                flight.run.raised(error)

    def _count(self, size: int, reason: SealReason) -> None:
        self.statistics.batch_sizes[size] += 1
        self.statistics.sealed[reason] += 1
