"""How long an executor takes for a batch: its own code, with both ends of a ring in one process.

What is timed is all that the executor does for a batch but for waiting and waking: it looks at
the ring, gathers, moves, runs the function, and publishes the results. When others have its CPU,
that does not count.
"""

from __future__ import annotations

import asyncio
import mmap
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ..contract.definition import Definition
from ..contract.exceptions import unpack_exception
from ..contract.wire import ring_arguments
from ..errors import ConfigError
from ..executor.served import ServedFunction
from ..executor.staging.devices import Device
from ..protocol import layout
from ..protocol._core import FAILED, RUNNING, Bell, ExecutorRing, ProducerRing
from ..protocol.clock import now_ns
from ..protocol.memory import check_memory
from .disturbance import Disturbance
from .examples import Examples
from .variants import Parameters, variant

_WARM_UPS = 2
_LEAST = 5  # runs that are timed, however long they take
_MOST = 300


class TooLarge(Exception):
    """There is no memory for a batch of that size."""


@dataclass
class Samples:
    """Runs of batches of one size, in nanoseconds."""

    total_ns: list[int] = field(default_factory=list)  # all that the executor does
    function_ns: list[int] = field(default_factory=list)  # of it, from the function's call on


class Bench:
    """One function on its device, and calls for it.

    Args:
        definition: of a function that takes lists or stacks, and nothing else.
        events: where async functions suspend; None if it is not one.
    """

    def __init__(
        self,
        definition: Definition,
        device: Device,
        events: asyncio.AbstractEventLoop | None,
        examples: Examples,
    ) -> None:
        self._definition = definition
        self._device = device
        self._events = events
        self._examples = examples
        self._disturbance = Disturbance()
        self._seen = Counter[int]()  # calls that were made in batches of a size: all see the same

    def timed(self, size: int, seconds: float) -> Samples:
        """Run batches of *size* calls for some seconds, at least 5 of them, after 2 to warm up.

        Raises:
            TooLarge: there is no memory for that.
            ConfigError: the function raises, or does not return what it declares.
        """
        definition = replace(variant(self._definition, Parameters(size, 0)), slots=size)
        served: ServedFunction | None = None
        try:
            served = ServedFunction(definition, definition.name, self._device, self._events, size)
            ring = self._attached(served)
            samples = Samples()
            for _ in range(_WARM_UPS):
                self._run(served, ring, size, Samples())
            until_ns = now_ns() + int(seconds * 1e9)
            while len(samples.total_ns) < _LEAST or (
                now_ns() < until_ns and len(samples.total_ns) < _MOST
            ):
                self._run(served, ring, size, samples)
            return samples
        except (MemoryError, OSError) as error:
            raise TooLarge(f"no memory for {size} calls: {error}") from error
        finally:
            if served is not None:
                served.close()

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        self._disturbance.close()

    def _attached(self, served: ServedFunction) -> ProducerRing:
        check_memory(served.layout.nbytes)
        memory = mmap.mmap(-1, served.layout.nbytes)
        bell = mmap.mmap(-1, layout.BELL_NBYTES)
        Bell(bell)
        shared = ring_arguments(memory, served.definition.signature, served.layout)
        served.inbox.attach(ExecutorRing(*(*shared, layout.LAYOUT_VERSION)), 0)
        return ProducerRing(*(*shared, bell, _nobody_sleeps, None))

    def _run(self, served: ServedFunction, ring: ProducerRing, size: int, into: Samples) -> None:
        """Have one batch run, from the first look at the ring to the last result."""
        calls = self._examples.calls
        tickets = []
        for _ in range(size):
            tickets.append(ring.submit(calls[self._seen[size] % len(calls)], 0))
            self._seen[size] += 1
        before_ns = served.statistics.phases.read(RUNNING)[0]
        waited_ns = self._disturbance.waited_ns()
        began_ns = now_ns()
        waiting = served.inbox.drain(began_ns)
        served.batcher.observe(waiting, served.inbox.oldest_ns, began_ns, False)
        served.launch(began_ns)
        while not served.flights[0].done:
            assert self._events is not None, "what has no loop has run"
            self._events.run_forever()  # the runner stops it
        served.complete()
        total_ns = now_ns() - began_ns
        waited_ns = self._disturbance.waited_ns() - waited_ns
        # Every call of a batch counts as long as the batch ran.
        function_ns = (served.statistics.phases.read(RUNNING)[0] - before_ns) // size
        ran_ns = max(1, total_ns - waited_ns)
        into.total_ns.append(ran_ns)
        # In which part of the time others had the CPU is not told.
        into.function_ns.append(max(1, function_ns * ran_ns // total_ns))
        for ticket in tickets:
            if ring.poll(ticket, 0) is FAILED:
                raise self._failure(ring.error(ticket), size)

    def _failure(self, record: bytes | None, size: int) -> Exception:
        assert record is not None, "no call had a deadline"
        error = unpack_exception(record)
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError | _torch_memory_error()):
            return TooLarge(f"no memory for {size} calls: {told}")
        where = f"a batch of {size}, {self._examples.described}"
        return ConfigError(f"{self._definition.name} fails on {where}: {told}")


def _nobody_sleeps(sleeping: int) -> None:
    pass


def _torch_memory_error() -> Any:
    """Return torch's class of that error if torch is loaded, else a class that nothing is of."""
    return getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
