"""A simulated GPU that does everything as late, and in as bad an order, as CUDA allows.

Streams are queues. Nothing queued runs before the host waits for something; then it runs as the
policy says, bound by nothing but the order within a stream and the events that streams wait for:

::

    lazy      only what is needed for what the host waits for
    random    whatever may run, in a random order, until that has happened
    eager     everything at once, when it is queued

So whoever forgot to wait reads poison or another batch's rows, under lazy or under random; whoever
writes after the fact does, under eager. See `fake_gpu_memory` for tensors.

There are no threads and no clock. What the host may rely on, and what a stream may, are vector
clocks (`Clock`): by them memory that is freed, or unmapped, too early is known whatever ran.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from shmbatch.contract.columns import WIRE_DTYPES
from tests.executor import fake_gpu_streams as streams
from tests.executor.fake_gpu_memory import Access, Block, Storage, Tensor, poison, poisoned
from tests.executor.fake_gpu_streams import Clock, Graph, Operation

Policy = Literal["lazy", "random", "eager"]

PAGE_NBYTES = 4096
ILLEGAL = "CUDA error: an illegal memory access was encountered"
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate {} bytes. The fake GPU was told so."


class FakeGpu:
    """The `Runtime` of a device that is not there.

    Args:
        policy: when what is queued runs.
        chance: chooses what runs under ``random``; a seed, or what draws from hypothesis.
        ignore_wait: ignore the nth `Stream.wait_event`, as if it had been forgotten. As all
            that follow, counted from 1, and 0 for none.
        ignore_synchronize: the same for `synchronize` of events and of the device.
        no_memory_at: refuse the nth allocation on the device.
        no_pinned_at: refuse the nth allocation of pinned memory.
        illegal_at: let the nth operation that runs lose the context.
        refuses: whether to register no memory.
    """

    def __init__(
        self,
        policy: Policy = "lazy",
        chance: random.Random | int = 0,
        *,
        ignore_wait: int = 0,
        ignore_synchronize: int = 0,
        no_memory_at: int = 0,
        no_pinned_at: int = 0,
        illegal_at: int = 0,
        refuses: bool = False,
    ) -> None:
        self.name = "cuda:0"
        self.policy = policy
        self.ignore_wait = ignore_wait
        self.ignore_synchronize = ignore_synchronize
        self.no_memory_at = no_memory_at
        self.no_pinned_at = no_pinned_at
        self.illegal_at = illegal_at
        self.refuses = refuses
        # What has been counted so far; a test may set it back to 0.
        self.waits = self.synchronizes = self.allocations = self.pins = self.operations = 0
        self.lost = False
        self.log: list[tuple[str, str]] = []  # (stream, operation) as they ran
        self.calls: list[tuple[str, str]] = []  # as they were queued; and what ("host", ...) did
        self.violations: list[str] = []  # of rules that a real device would not have noticed
        self.registered: dict[int, int] = {}  # bytes, by address
        self._pinned: list[Any] = []
        self._chance = random.Random(chance) if isinstance(chance, int) else chance
        self._streams: list[streams.Stream] = []
        self._current = self.Stream("default")
        self._host = Clock()
        self._capturing: Graph | None = None
        self._transfers: list[tuple[Operation, Any]] = []  # with memory of the host

    def check(self) -> None:
        """Fail if a rule was violated: somebody may have caught the error."""
        assert not self.violations, self.violations

    def is_news(self, event: streams.Event | None, waiter: streams.Stream | None = None) -> bool:
        """Whether a stream learns anything when it waits for an event; None is the host.

        For everything, where there is no event.
        """
        known = self._host if waiter is None else waiter.clock
        if event is None:
            return not all(known.includes(stream.clock) for stream in self._streams)
        return event.recorded is not None and not known.includes(event.recorded.clock)

    # ---- streams and events ----

    def Stream(self, name: str = "") -> streams.Stream:
        self._called()
        stream = streams.Stream(self, name or f"stream {len(self._streams)}")
        self._streams.append(stream)
        return stream

    def Event(self) -> streams.Event:
        self._called()
        return streams.Event(self)

    def current_stream(self) -> streams.Stream:
        return self._current

    def set_stream(self, stream: streams.Stream) -> None:
        self._current = stream

    @contextmanager
    def stream(self, stream: streams.Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def wait(self, stream: streams.Stream, event: streams.Event) -> None:
        self._called()
        self.waits += 1
        if self.waits == self.ignore_wait:
            return
        if event.recorded is None:
            return
        graph = self._captured(stream)
        if event.graph is not graph:
            self._refuse("CUDA error: dependency created on uncaptured work in another stream")
        if graph is None:
            stream.clock.join(event.recorded.clock)
            self._queue(Operation(stream, "wait", after=event.recorded))

    def record(self, event: streams.Event, stream: streams.Stream) -> None:
        self._called()
        event.graph = self._captured(stream)
        event.recorded = Operation(stream, "record")
        if event.graph is None:
            self._queue(event.recorded)

    def wait_on_host(self, event: streams.Event) -> None:
        self._waiting_on_host(event)
        self.synchronizes += 1
        if self.synchronizes != self.ignore_synchronize and event.recorded is not None:
            self.calls.append(("host", f"synchronize {event.recorded.stream.name}"))
            self._finish(event.recorded)

    def ask(self, event: streams.Event) -> bool:
        self._waiting_on_host(event)
        operation = event.recorded
        if operation is None:
            return True
        if not operation.done:
            self._step_towards(operation)
            self._called()
        if operation.done:
            self._host.join(operation.clock)
        return operation.done

    def synchronize(self) -> None:
        """Wait for everything."""
        self._called()
        self._not_capturing()
        self.synchronizes += 1
        if self.synchronizes != self.ignore_synchronize:
            self.calls.append(("host", "synchronize"))
            self._finish_all()

    # ---- memory ----

    def empty(self, dtype: Any, shape: Sequence[int]) -> Any:
        """Allocate on the device, for the current stream."""
        self._called()
        self.allocations += 1
        data = poisoned(tuple(shape), _torch_dtype(dtype))
        if self.allocations == self.no_memory_at:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY.format(data.nbytes))
        block = Block(self._current, self._captured(self._current))
        return Tensor(self, Storage(self, block), data)

    def zeros(self, dtype: Any, shape: Sequence[int]) -> Any:
        return self.empty(dtype, shape).fill_(0)

    def pinned(self, dtype: str, shape: Sequence[int]) -> tuple[Any, Any]:
        self._called()
        self._not_capturing()
        self.pins += 1
        if self.pins == self.no_pinned_at:
            raise torch.AcceleratorError("CUDA error: out of memory")
        array = np.zeros(shape, WIRE_DTYPES[dtype])
        tensor = self.tensor(array, dtype)
        self._pinned.append(tensor)  # for ever: another array must not get the address
        return array, tensor

    def tensor(self, array: Any, dtype: str) -> Any:
        return torch.from_numpy(array).view(_torch_dtype(dtype))

    def to_device(self, tensor: Any) -> Any:
        return self.empty(tensor.dtype, tensor.shape).copy_(tensor)

    def set_device(self) -> None:
        pass

    def prepare_copies(self, stream: Any) -> None:
        pass

    def plain(self, tensor: Any) -> Any:
        return tensor.detach()

    def is_ours(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.gpu is self

    def free(self, block: Block) -> None:
        """Take a block back, for whatever its stream does next.

        Operations of other streams that may come after that find it in another's hands, unless
        torch was told of these streams.
        """
        block.freed = True
        if block.graph is not None:
            return
        reuse = Clock(block.stream.clock)
        reuse.join(self._host)
        for stream in self._streams:
            if stream is block.stream or stream in block.recorded:
                continue
            for operation in stream.queue:
                uses = any(each.block is block for each in operation.accesses)
                if uses and not reuse.knows(operation):
                    self._lack(operation, block)

    def is_locked(self, tensor: Any) -> bool:
        """Whether memory of the host is pinned or registered, so that copies are asynchronous.

        Raises:
            AcceleratorError: part of it is.
        """
        first, last = _bounds(tensor)
        if any(first >= at and last <= end for at, end in map(_bounds, self._pinned)):
            return True
        for at, nbytes in self.registered.items():
            if at <= first and last <= at + nbytes:
                return True
            if first < at + nbytes and at < last:
                raise torch.AcceleratorError("CUDA error: invalid argument")
        return False

    def register(self, address: int, nbytes: int) -> bool:
        self._not_capturing()
        if nbytes <= 0:
            self._violated(f"{nbytes} bytes were registered")
        pages = _pages(address, nbytes)
        for other, length in self.registered.items():
            theirs = _pages(other, length)
            if pages.start < theirs.stop and theirs.start < pages.stop:
                self._violated(f"{nbytes} bytes at {address:#x} were registered, partly again")
        if self.refuses or self.lost:
            return False
        self.registered[address] = nbytes
        return True

    def unregister(self, address: int) -> None:
        self._not_capturing()
        if address not in self.registered:
            self._violated(f"what was never registered, {address:#x}, was unregistered")
        end = address + self.registered.pop(address)
        for operation, tensor in self._transfers:
            first, last = _bounds(tensor)
            under_way = not self.lost and not self._host.knows(operation)
            if first < end and address < last and under_way:
                self._violated(
                    f"memory at {address:#x} was unregistered, and may be unmapped, while "
                    f"{operation.name} on {operation.stream.name} may be under way"
                )

    def copy_runs(self, pairs: Sequence[tuple[Tensor, Any]], stream: streams.Stream) -> None:
        with self.stream(stream):
            for into, source in pairs:
                into.copy_(source, non_blocking=True)

    # ---- graphs ----

    def capture(self, body: Callable[[], Any], stream: streams.Stream) -> tuple[Graph, Any]:
        self._called()
        self._not_capturing()
        self._finish_all()  # torch.cuda.graph does
        self._capturing = graph = Graph(self, stream)
        try:
            with self.stream(stream):
                value = body()
        finally:
            self._capturing = None
        if graph.broken:
            raise torch.AcceleratorError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        return graph, value

    # ---- errors ----

    def is_lost(self, error: BaseException) -> bool:
        return self.lost and str(error).startswith("CUDA error")

    def _called(self) -> None:
        if self.lost:
            raise torch.AcceleratorError(ILLEGAL)

    def _not_capturing(self) -> None:
        if self._capturing is not None:
            self._refuse(CAPTURING)

    def _refuse(self, message: str) -> None:
        if self._capturing is not None:
            self._capturing.broken = True
        raise torch.AcceleratorError(message)

    def _violated(self, rule: str) -> None:
        self.violations.append(rule)
        raise AssertionError(rule)

    # ---- queues ----

    def enqueue(
        self,
        name: str,
        function: Callable[..., Any],
        into: Access,
        sources: tuple[Access, ...],
        *,
        at_once: bool = False,
    ) -> None:
        """Queue writing what *function* makes of the sources on the current stream."""
        self._called()
        if at_once:
            self._not_capturing()
        graph = self._captured(self._current)
        if graph is not None:
            graph.recorded.append((name, function, into, sources))
            return
        operation = Operation(self._current, name, function, into, sources)
        for access in operation.accesses:
            if access.block is None:
                self._transfers.append((operation, access.data))
            elif access.block.freed and access.block.graph is None:  # a graph reads it
                self._lack(operation, access.block)
        if into.block is None:
            into.data.copy_(poison(into.data.dtype))
        self._queue(operation)
        if at_once:
            self._finish(operation)

    def _queue(self, operation: Operation) -> None:
        stream = operation.stream
        # What waits or records is over when what is before it is.
        operation.number = stream.clock.get(stream, 0) + (operation.function is not None)
        stream.clock.join(self._host)
        stream.clock[stream] = operation.number
        operation.clock = Clock(stream.clock)
        stream.queue.append(operation)
        if operation.function is not None:
            self.calls.append((stream.name, operation.name))
        if self.policy == "eager":
            self._step(stream)

    def _finish(self, operation: Operation) -> None:
        """Let happen what must for an operation to be over, and what else the policy wants."""
        while not operation.done:
            self._called()
            self._step_towards(operation)
        self._called()
        self._host.join(operation.clock)
        self._transfers = [each for each in self._transfers if not self._host.knows(each[0])]

    def _finish_all(self) -> None:
        for stream in self._streams:
            if stream.queue:
                self._finish(stream.queue[-1])
            self._host.join(stream.clock)

    def _step_towards(self, operation: Operation) -> None:
        if self.policy == "random":
            ready = [each for each in self._streams if each.queue and _is_ready(each.queue[0])]
            self._step(self._chance.choice(ready))
            return
        head = operation.stream.queue[0]
        while not _is_ready(head):
            assert head.after is not None
            head = head.after.stream.queue[0]
        self._step(head.stream)

    def _step(self, stream: streams.Stream) -> None:
        operation = stream.queue.popleft()
        if operation.function is not None:
            self.operations += 1
            self.log.append((stream.name, operation.name))
            if self.operations == self.illegal_at:
                self.lost = True
                return
        operation.run()

    def _lack(self, operation: Operation, block: Block) -> None:
        operation.lacks.add(block)
        if operation.into is not None and operation.into.block is block:
            self.violations.append(
                f"{operation.name} on {operation.stream.name} writes to memory that was freed"
            )

    def _captured(self, stream: streams.Stream) -> Graph | None:
        graph = self._capturing
        return graph if graph is not None and graph.stream is stream else None

    def _waiting_on_host(self, event: streams.Event) -> None:
        self._called()
        self._not_capturing()
        if event.graph is not None:
            self._refuse(
                "CUDA error: operation not permitted on an event last recorded in a "
                "capturing stream"
            )


def _is_ready(operation: Operation) -> bool:
    return operation.after is None or operation.after.done


def _torch_dtype(dtype: Any) -> Any:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _bounds(tensor: Any) -> tuple[int, int]:
    """Return first address and end of a contiguous tensor on the host."""
    first = tensor.data_ptr()
    return first, first + tensor.nbytes


def _pages(address: int, nbytes: int) -> range:
    return range(address // PAGE_NBYTES, -(-(address + nbytes) // PAGE_NBYTES))
