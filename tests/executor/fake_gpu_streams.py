"""What is queued on the fake GPU, and who knows when of it that it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.executor.fake_gpu_memory import Access, Block, poisoned

if TYPE_CHECKING:
    from tests.executor.fake_gpu import FakeGpu


class Clock(dict["Stream", int]):
    """How many operations of each stream are over, as somebody knows."""

    def join(self, other: Clock) -> None:
        for stream, count in other.items():
            self[stream] = max(count, self.get(stream, 0))

    def knows(self, operation: Operation) -> bool:
        """Whether the operation is over."""
        return self.get(operation.stream, 0) >= operation.number

    def includes(self, other: Clock) -> bool:
        return all(count <= self.get(stream, 0) for stream, count in other.items())


class Operation:
    """One thing in a stream's queue."""

    def __init__(
        self,
        stream: Stream,
        name: str,
        function: Callable[..., Any] | None = None,
        into: Access | None = None,
        sources: Sequence[Access] = (),
        after: Operation | None = None,
    ) -> None:
        self.stream = stream
        self.name = name
        self.function = function  # None: what waits or records does nothing
        self.into = into
        self.sources = sources
        self.after = after  # may not run before this
        self.number = 0  # in its stream, of those that do something
        self.clock = Clock()  # what is over when this is
        self.lacks: set[Block] = set()  # blocks that somebody else may have by then
        self.done = False

    @property
    def accesses(self) -> list[Access]:
        return [*self.sources, *([self.into] if self.into is not None else [])]

    def run(self) -> None:
        if self.function is not None and self.into is not None:
            data = [
                poisoned(each.data.shape, each.data.dtype)
                if each.block in self.lacks
                # A copy: what is computed may be a view, and written to where it is read.
                else each.data.clone()
                for each in self.sources
            ]
            if self.into.block not in self.lacks:
                self.into.data.copy_(self.function(*data))
        self.done = True


class Stream:
    """A queue of operations."""

    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu = gpu
        self.name = name
        self.queue: deque[Operation] = deque()
        self.clock = Clock()  # what is over when all that is queued is

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def wait_event(self, event: Event) -> None:
        """Have what is queued from now on run after the event, as it was recorded last."""
        self.gpu.wait(self, event)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or self.gpu.Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self.record_event().synchronize()


class Event:
    """A point in a stream."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.recorded: Operation | None = None
        self.graph: Graph | None = None  # in whose capture it was recorded

    def record(self, stream: Stream | None = None) -> None:
        self.gpu.record(self, stream or self.gpu.current_stream())

    def synchronize(self) -> None:
        """Wait until it has happened; at once if it was never recorded."""
        self.gpu.wait_on_host(self)

    def query(self) -> bool:
        """Whether it has happened. Whoever asks again and again lets it happen."""
        return self.gpu.ask(self)


class Graph:
    """What was captured: operations on memory that stays the same."""

    def __init__(self, gpu: FakeGpu, stream: Stream) -> None:
        self.stream = stream  # that was captured
        self.broken = False
        self.recorded: list[tuple[str, Callable[..., Any], Access, tuple[Access, ...]]] = []
        self._gpu = gpu

    def replay(self) -> None:
        """Queue all of it on the current stream."""
        for each in self.recorded:
            self._gpu.enqueue(*each)
