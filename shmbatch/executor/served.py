"""One function as the executor serves it: launch a batch, complete a batch."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from ..contract.batching import slot_capacity
from ..contract.definition import Definition
from ..contract.wire import column_nbytes, segment_layout
from ..protocol import layout
from ..protocol._core import Batch, Inbox
from .batcher import Batcher
from .delivery import Delivery
from .runner import AsyncRunner, Run
from .staging import Device, Staging, ToHost
from .statistics import Statistics

if TYPE_CHECKING:
    from ..protocol._core import Wake

log = logging.getLogger("shmbatch.executor")

# What one producer's segment for one function may take, unless slots= says otherwise.
SEGMENT_LIMIT_NBYTES = 256 << 20


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
        self.expects_calls = False  # a batch was completed, and since then no call has come
        self.batcher = Batcher(parameters.max_batch_size, parameters.wait_ns)
        self.statistics = Statistics(parameters.max_batch_size)
        self.flights: deque[Run] = deque()  # launched and not completed, oldest first
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
        is_async = definition.is_async
        self._staging = Staging(signature, parameters.max_batch_size, device)
        self._to_host = device.to_host
        self._function = device.wrap(definition.function)
        self._runner: AsyncRunner | None = None
        if is_async:
            assert loop is not None, "async functions need an event loop"
            self._runner = AsyncRunner(self._function, loop)
        self._delivery = Delivery(address, signature.result, self.layout.error_nbytes)
        # As many as can be in flight; a function with none left cannot launch.
        self.idle = [
            Run(Batch(parameters.max_batch_size)) for _ in range(1 if is_async else device.depth)
        ]

    def warn_of_few_slots(self) -> None:
        """Log it where a single producer cannot fill a batch."""
        if self.capacity < self.batcher.max_batch_size:
            log.warning(
                "one producer gets %d slots for %s, fewer than max_batch_size %d; "
                "slots= says how many",
                self.capacity,
                self.address,
                self.batcher.max_batch_size,
            )

    def launch(self) -> int:
        """Seal a batch and start it; return its size, 0 if all its calls were cancelled just now.

        A synchronous function on the CPU has run when this returns.
        """
        run = self.idle.pop()
        batcher = self.batcher
        size = self.inbox.take(run.batch, batcher.max_batch_size)
        if not size:
            self.idle.append(run)
            return 0
        run.reason = batcher.sealed()
        self.flights.append(run)
        try:
            inputs = self._staging.gather(run.batch)
            if self._runner is None:
                run.value = self._function(*inputs)
                run.done = True
            else:
                self._runner.start(run, inputs)
            if run.done and self._to_host is not None:
                run.value, run.event = self._to_host(run.value)
        except BaseException as error:  # whatever it is, even SystemExit, the callers get it
            run.raised(error)
        return size

    def complete(self) -> list[Wake] | None:
        """Publish the outcomes of the oldest flight, which must be done; return whom to wake."""
        run = self.flights.popleft()
        batch = run.batch
        count = batch.count
        if self._to_host is not None:
            self._fetch(run, self._to_host)
        if run.error is None:
            try:
                failed = self._delivery.returned(batch, run.value)
            except BaseException as error:  # an object of the user's did, when looked at
                failed = self._delivery.raised(batch, error)
        else:
            failed = self._delivery.raised(batch, run.error)
        wakes = batch.complete()
        # The callers have their results; now what can wait.
        self.statistics.count(count, failed, run.reason)
        run.value = run.error = run.event = None
        run.done = False
        self.expects_calls = True
        self.idle.append(run)
        return wakes

    def close(self) -> None:
        """End what the runner still awaits. Idempotent."""
        if self._runner is not None:
            self._runner.close()

    def _fetch(self, run: Run, to_host: ToHost) -> None:
        """Wait until the results are on the host."""
        try:
            if run.event is None and run.error is None:  # an async function, which suspended
                run.value, run.event = to_host(run.value)
            if run.event is not None:
                run.event.wait()
        except Exception as error:
            run.raised(error)
