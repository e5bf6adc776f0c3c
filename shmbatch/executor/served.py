"""One function as the executor serves it: launch a batch, complete a batch."""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..contract.batching import BatchParameters, slot_capacity
from ..contract.definition import Definition
from ..contract.sizes import padded_size
from ..contract.wire import column_nbytes, segment_layout
from ..errors import HandshakeError
from ..protocol import layout
from ..protocol._core import Batch, ExecutorRing, Inbox
from ..protocol.snapshot import FunctionCounts
from .batcher import Batcher, SealReason
from .delivery import Delivery
from .dying import DeviceLost
from .failures import Failures
from .runner import AsyncRunner, Run
from .staging.devices import Device
from .staging.staging import Staging
from .statistics import Statistics
from .turns import Turns

if TYPE_CHECKING:
    from ..protocol._core import Wake
    from .staging.direct import Registration
    from .staging.graphs import Graphs

log = logging.getLogger("shmbatch.executor")

_DEADLINE = SealReason.DEADLINE

# What one producer's segment for one function may take, unless slots= says otherwise.
SEGMENT_LIMIT_NBYTES = 256 << 20

QUEUES_MAX = 16  # of one function, beside its own


class ServedFunction:
    """A definition together with everything that runs it.

    Args:
        address: for messages, ``app.function``.
        loop: makes the event loop that async functions suspend on.
        queue_of: the function of which this is another queue, with batching of its own.
    """

    def __init__(
        self,
        definition: Definition,
        address: str,
        device: Device,
        loop: asyncio.AbstractEventLoop | None,
        max_capacity: int,
        queue_of: ServedFunction | None = None,
    ) -> None:
        signature, parameters = definition.signature, definition.parameters
        self.definition = definition
        self.address = address
        self.inbox = Inbox()
        self.expects_calls = False  # a batch was completed, and since then no call has come
        self.batcher = Batcher(parameters.max_batch_size, parameters.wait_ns, definition.lockstep)
        self.device = device.name
        self.statistics = Statistics()
        self.failures = Failures(address)
        self.flights: deque[Run] = deque()  # launched and not completed, oldest first
        self.is_plain = signature.plain
        self.turns: Turns | None = None  # with whom it must not run at the same time
        self.queues: dict[BatchParameters, ServedFunction] = {}  # others of the same function
        self._loop = loop
        self._max_capacity = max_capacity
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
        self._device = device
        self._direct = device.direct(signature, self.layout, definition.direct_dma, address)
        sizes = definition.batch_sizes
        self._staging = Staging(
            signature,
            parameters.max_batch_size if sizes is None else sizes[-1],
            device,
            sizes=sizes,
            direct=self._direct,
            address=address,
            module=definition.function.__module__,
            record_nbytes=self.layout.error_nbytes,
            note=self.failures.note,
        )
        self.fetches = self._staging.fetches  # what the function returns
        self._function: Callable[..., Any] = definition.function
        self._graphs: Graphs | None = None
        self._runner: AsyncRunner | None = None
        self.depth = device.depth  # as many batches can be in flight
        if definition.is_async:
            assert loop is not None, "async functions need an event loop"
            self._runner = AsyncRunner(self._function, loop)
        if definition.is_async or self.is_plain:
            self.depth = 1
        if queue_of is not None:
            self._function, self._graphs = queue_of._function, queue_of._graphs
        elif definition.cuda_graphs:
            self._graphs = device.graphs(definition.function, signature, address)
            if self._graphs is None:
                log.warning("%s runs without CUDA graphs: %s has none", address, device.name)
            else:
                self._function = self._graphs
        self._delivery = Delivery(
            address,
            signature.result,
            self.layout.error_nbytes,
            self.failures.note,
            definition.function.__module__,
        )
        # A function with none left cannot launch.
        self.idle = [
            Run(Batch(parameters.max_batch_size, self.statistics.phases))
            for _ in range(self.depth)
        ]

    def queue(self, parameters: BatchParameters) -> ServedFunction:
        """Return the queue of this function with these parameters; makes it if need be.

        For the control thread. A new one is `queues`' last, and nobody serves it yet.

        Raises:
            HandshakeError: there are too many already.
            ConfigError: the device has no room for it.
        """
        if parameters == self.definition.parameters:
            return self
        if parameters in self.queues:
            return self.queues[parameters]
        if len(self.queues) == QUEUES_MAX:
            raise HandshakeError(
                f"'{self.address}' has {QUEUES_MAX} queues beside its own, made by with_batching; "
                f"use one of those, or restart the executor"
            )
        sizes = self.definition.batch_sizes
        if sizes is not None:
            largest = padded_size(sizes, parameters.max_batch_size)
            sizes = (*(size for size in sizes if size < largest), largest)
        made = ServedFunction(
            replace(self.definition, parameters=parameters, batch_sizes=sizes),
            self.address,
            self._device,
            self._loop,
            self._max_capacity,
            queue_of=self,
        )
        if self.turns is None:
            self.turns = Turns()
            self.turns.members.append(self)
        made.turns = self.turns
        self.turns.members.append(made)
        self.queues[parameters] = made
        return made

    def is_due_before(self, other: ServedFunction) -> bool:
        """Say whether calls of this function became due before those of *other*, or with them."""
        batcher = self.batcher
        is_due = batcher.reason is not None and self.inbox.pending() > 0
        return is_due and batcher.due_ns <= other.batcher.due_ns

    def warn_of_few_slots(self) -> None:
        """Log it where a producer gets fewer slots than slots= asks for, or than fill a batch."""
        size, asked = self.batcher.max_batch_size, self.definition.slots
        if asked is not None and asked > self.capacity:
            wanted = f"slots={asked}"
        elif self.capacity < size:
            wanted = f"max_batch_size {size}"
        else:
            return
        limited = self.capacity == self._max_capacity
        log.warning(
            "one producer gets %d slots for %s, fewer than %s; %s",
            self.capacity,
            self.address,
            wanted,
            "this transport has no more, linux has" if limited else "slots= says how many",
        )

    def launch(self, at_ns: int) -> int:
        """Seal a batch and start it; return its size, 0 if all its calls were cancelled just now,
        or had expired by *at_ns*.

        A synchronous function on the CPU has run when this returns.
        """
        run = self.idle.pop()
        batcher = self.batcher
        size = self.inbox.take(run.batch, batcher.max_batch_size, at_ns)
        if batcher.lockstep and batcher.reason is _DEADLINE:
            # Whoever was waited for in vain is not waited for again until it calls.
            self.inbox.forget_absent()
        if not size:
            self.idle.append(run)
            return 0
        run.reason = batcher.sealed()
        self.flights.append(run)
        try:
            inputs, run.size = self._staging.gather(run.batch)
            if not run.size:  # none of the rows could be read
                run.done = True
            elif self._runner is None:
                run.value = self._function(*inputs)
                run.done = True
            else:
                self._runner.start(run, inputs)
        except BaseException as error:  # whatever it is, even SystemExit, the callers get it
            run.raised(error)
        if run.done and self.fetches:
            self._begin_landing(run)
        return size

    def is_under_way(self) -> bool:
        """Say whether the oldest flight, whose function has run, is still on its device."""
        run = self.flights[0]
        if not self.fetches:
            return False
        if run.landing is None:
            self._begin_landing(run)  # of an async function, which suspended
        try:
            return run.landing is not None and not run.landing.landed()
        except Exception as error:
            run.raised(error)
            return False

    def complete(self) -> list[Wake] | None:
        """Publish the outcomes of the oldest flight, which must be done; return whom to wake."""
        run = self.flights.popleft()
        batch = run.batch
        count, rejected = batch.count, batch.rejected
        if self.fetches:
            self._land(run)
        if not count:
            pass  # all rows were rejected, and have their errors
        elif run.error is None:
            try:
                if run.size != count and not self.fetches:
                    run.value = self._delivery.without_padding(run.value, count, run.size)
                self._delivery.returned(batch, run.value)
            except BaseException as error:  # an object of the user's did, when looked at
                self._delivery.raised(batch, error)
        else:
            self._delivery.raised(batch, run.error)
        wakes = batch.complete()
        # The callers have their results; now what can wait.
        self.statistics.count(count, rejected, run.reason)
        if self.failures.noted:
            self.failures.settle()
        run.value = run.error = run.landing = None
        run.done = run.watched = False
        self.expects_calls = True
        self.idle.append(run)
        return wakes

    def counts(self, producers: int) -> FunctionCounts:
        """Return what was counted, for whoever asks; for any thread.

        Args:
            producers: attached now.
        """
        return {
            "max_batch_size": self.batcher.max_batch_size,
            "wait_ns": self.batcher.wait_ns,
            "slots": self.capacity,
            "segment_nbytes": self.layout.nbytes,
            "producers": producers,
            "waiting": self.inbox.pending(),
            "in_flight": self.inbox.running,
            "expired": self.inbox.expired,
            "cancelled": self.inbox.cancelled,
            "rejected": self.statistics.rejected,
            "failed": self.failures.by_kind(),
            "batch_sizes": self.statistics.batch_sizes(),
            "latencies": self.statistics.latencies(),
        }

    def register(self, ring: ExecutorRing, memory: mmap.mmap) -> Registration | None:
        """Let the device copy straight out of a producer's segment, until that is closed.

        None if it is not to, or cannot. For the control thread, before the ring is attached.
        """
        return None if self._direct is None else self._direct.register(ring, memory)

    def warm_up(self) -> None:
        """Run the function once for each allowed size, on zeros, and capture its graphs.

        Only where a person has chosen sizes, and every parameter is an array of fixed shape. A
        function that fails on zeros is served all the same; its failure is logged.
        """
        sizes, signature = self.definition.batch_sizes, self.definition.signature
        arrays = all(column.kind == "array" for column in signature.parameters)
        if sizes is None or not arrays or self._runner is not None:
            return
        try:
            if self._graphs is not None:
                self._graphs.capture(sizes)
            for size in sizes:
                self._staging.warm_up(self._function, size)
        except Exception as error:
            if self._device.is_lost(error):
                raise DeviceLost.because(error, self.address) from error
            log.warning("%s fails on zeros, to warm up", self.address, exc_info=True)

    def adopt_thread(self) -> None:
        """Prepare another thread to wait for this function's device; it is the one that calls."""
        self._device.adopt_thread()

    def close(self) -> None:
        """End what the runner still awaits, and those of other queues. Idempotent."""
        for queue in self.queues.values():
            queue.close()
        if self._runner is not None:
            self._runner.close()

    def _begin_landing(self, run: Run) -> None:
        """Start copying to the host what the function returned; note when all that is over."""
        try:
            if run.error is None and run.size:
                count = run.batch.count
                value = self._delivery.without_padding(run.value, count, run.size)
                run.value, run.landing = self._staging.fetch(value, count)
        except BaseException as error:  # an object of the user's did, when looked at
            run.raised(error)
        try:
            if run.landing is None:
                run.landing = self._device.landing()
        except Exception as error:
            run.raised(error)

    def _land(self, run: Run) -> None:
        """Wait until all is over that the batch has started on the device, come what may."""
        if run.landing is None:
            self._begin_landing(run)
        try:
            if run.landing is not None:
                run.landing.wait()
        except Exception as error:
            run.raised(error)
        if run.error is not None and self._device.is_lost(run.error):
            raise DeviceLost.because(run.error, self.address) from run.error
