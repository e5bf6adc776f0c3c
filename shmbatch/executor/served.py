"""What one function is served with: its slots, its other queues, its device, and who watches."""

from __future__ import annotations

import asyncio
import logging
import mmap
from dataclasses import replace
from typing import TYPE_CHECKING

from ..contract.batching import BatchParameters, slot_capacity
from ..contract.definition import Definition
from ..contract.sizes import padded_size
from ..contract.wire import column_nbytes, segment_layout
from ..errors import HandshakeError
from ..protocol import _core, layout
from ..protocol._core import ExecutorRing
from ..protocol.snapshot import FunctionCounts
from .dying import DeviceLost
from .executing import Executing
from .room import PRODUCER_NBYTES, check_segment
from .staging import lending
from .staging.devices import Device
from .turns import Turns

if TYPE_CHECKING:
    from .staging.direct import Registration
    from .staging.graphs import Graphs
    from .watchdog import Watchdog

log = logging.getLogger("shmbatch.executor")

QUEUES_MAX = 16  # of one function, beside its own


class ServedFunction(Executing):
    """A definition together with everything that runs it.

    Args:
        address: for messages, ``app.function``.
        loop: makes the event loop that async functions suspend on.
        queue_of: the function of which this is another queue, with batching of its own.
        producer_nbytes: what one producer's segment may take; None for what `room` says,
            unless slots= says otherwise.

    Raises:
        ConfigError: a segment takes more than *producer_nbytes*, because of slots= or because
            one call does; or the device has no room.
    """

    def __init__(
        self,
        definition: Definition,
        address: str,
        device: Device,
        loop: asyncio.AbstractEventLoop | None,
        max_capacity: int,
        queue_of: ServedFunction | None = None,
        producer_nbytes: int | None = None,
    ) -> None:
        signature, parameters = definition.signature, definition.parameters
        self.device = device.name
        self.is_plain = signature.plain
        self.turns: Turns | None = None  # with whom it must not run at the same time
        self.queues: dict[BatchParameters, ServedFunction] = {}  # others of the same function
        self._watchdog: Watchdog | None = None
        self._loop = loop
        self._max_capacity = max_capacity
        self.capacity = min(
            max_capacity,
            slot_capacity(
                parameters.max_batch_size,
                definition.slots,
                layout.slot_nbytes(column_nbytes(signature)),
                PRODUCER_NBYTES if producer_nbytes is None else producer_nbytes,
            ),
        )
        self.layout = segment_layout(signature, self.capacity)
        self._producer_nbytes = producer_nbytes
        if producer_nbytes is not None:
            # The capacity above is of slots alone; a segment has headers and padding beside them.
            while definition.slots is None and self.layout.nbytes > producer_nbytes:
                fewer = self.capacity * producer_nbytes // self.layout.nbytes
                if not fewer:
                    break
                self.capacity = fewer
                self.layout = segment_layout(signature, self.capacity)
            check_segment(self.layout.nbytes, self.capacity, producer_nbytes, address)
        self._direct = device.direct(signature, self.layout, definition.direct_dma, address)
        self._graphs: Graphs | None = None
        if queue_of is not None:
            self._graphs = queue_of._graphs
        elif definition.cuda_graphs:
            self._graphs = device.graphs(definition.function, signature, address)
            if self._graphs is None:
                log.warning("%s runs without CUDA graphs: %s has none", address, device.name)
        super().__init__(
            definition,
            address,
            device,
            loop,
            function=self._graphs or definition.function,
            direct=self._direct,
            record_nbytes=self.layout.error_nbytes,
        )

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
            producer_nbytes=self._producer_nbytes,
        )
        if self.turns is None:
            self.turns = Turns()
            self.turns.members.append(self)
        made.turns = self.turns
        self.turns.members.append(made)
        self.queues[parameters] = made
        if self._watchdog is not None:
            self._watchdog.watch(made)
        return made

    def be_watched(self, watchdog: Watchdog, core: _core.Watchdog, number: int) -> None:
        """Tell *core* when executions begin and end; have *watchdog* watch other queues, too."""
        self._watchdog = watchdog
        self.be_clocked(core, number)

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

    def counts(self, producers: int) -> FunctionCounts:
        """Return what was counted, for whoever asks; for any thread.

        Args:
            producers: attached now.
        """
        return {
            "max_batch_size": self.definition.parameters.max_batch_size,
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
            **self.retries.counts(),
            "latencies": self.statistics.latencies(),
        }

    def register(self, ring: ExecutorRing, memory: mmap.mmap) -> Registration | None:
        """Let the device copy straight out of a producer's segment, until that is closed.

        None if it is not to, or cannot. For the control thread, before the ring is attached.
        """
        return None if self._direct is None else self._direct.register(ring, memory)

    def lend(self, ring: ExecutorRing, memory: mmap.mmap) -> None:
        """Have the function see a producer's slots where its batches can be, if it is read-only.

        Only for a producer of this process's user. Before the ring is attached.
        """
        if self._staging.lends:
            lending.lend(ring, memory, self.definition.signature, self.layout)

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
