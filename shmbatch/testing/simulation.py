"""A simulated executor: the real loop, rings and batcher, under a clock that a test moves.

Everything is in this process: no thread, no second process, no socket, and nobody sleeps. What
runs is what an executor runs; only the clock, the waiting and the producers are put in its place.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from ..contract.definition import Definition
from ..contract.device import device_name
from ..errors import ConfigError
from ..executor.instances import Instances, needs_loop
from ..executor.loop import Loop
from ..executor.served import ServedFunction
from ..executor.staging.choosing import devices_for
from ..executor.staging.devices import Device
from ..executor.turns import share_instances
from ..protocol._core import MAX_CAPACITY, ExecutorRing
from .attachment import Attachment
from .clock import START_NS, VirtualClock, nanoseconds
from .events import VirtualEvents
from .poller import Paused, VirtualPoller, Watcher
from .producer import Call, Producer, rows_of
from .promising import Promise
from .records import Batches, BatchRecord
from .targets import Meant, Target, all_meant

# What a function raises for its callers. Whatever else there is means the test, which it happened
# to interrupt: a Ctrl-C, a time limit.
_OF_FUNCTIONS = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)


@dataclass
class Flight:
    """One execution of a batch."""

    function: int
    calls: list[Call]
    record: BatchRecord
    rejected: int  # calls that left the batch before it ran
    promise: Promise


class Simulation:
    """An executor in this process, whose time passes only when it is told to.

    A context manager; see `close`. The objects of classes are made and entered now.

    Args:
        targets: handles of functions or of methods, what `shmbatch.batched` returns, or an `App`.
        duration: how long a batch takes, virtual seconds; or a function of its `BatchRecord` that
            returns that. What an async function awaits comes on top. May be changed at any time.
        device: ``"cpu"``, or what `App.run` takes.

    Raises:
        ConfigError: a target is no batched function or is given twice, an option is wrong, the
            device is not to be had, or a function is async and an event loop runs here.
        LoadError: a class, or a hook of one, raises.
    """

    def __init__(
        self,
        *targets: Target,
        duration: float | Callable[[BatchRecord], float] = 0.0,
        device: str = "cpu",
    ) -> None:
        meant = [each for target in targets for each in all_meant(target)]
        if not meant:
            raise ConfigError("a simulation needs a function; give one, or an App")
        addresses = [each.address for each in meant]
        for address in addresses:
            if addresses.count(address) > 1:
                raise ConfigError(f"a simulation has '{address}' twice; give each function once")
        self._begin(meant, duration, device, Watcher())

    @classmethod
    def of(cls, *meant: Meant, watcher: Watcher | None = None, device: str = "cpu") -> Simulation:
        """Return a simulation of functions that are known already, and somebody watches."""
        simulation = cls.__new__(cls)
        simulation._begin(list(meant), 0.0, device, watcher or Watcher())
        return simulation

    def _begin(
        self,
        meant: list[Meant],
        duration: float | Callable[[BatchRecord], float],
        device: str,
        watcher: Watcher,
    ) -> None:
        self.duration = duration
        self.batches = Batches()
        self.calls: list[Call] = []  # in the order in which they were made
        self.producers: list[Producer] = []
        self.clock = VirtualClock()
        self.draining = False
        self._watcher = watcher
        self._ended = self._closed = False
        self._attached: dict[ExecutorRing, Producer] = {}
        definitions = [each.definition for each in meant]
        is_async = any(map(needs_loop, definitions))
        self._events = VirtualEvents(self.clock) if is_async else None
        self._instances = Instances(self._events)
        definitions = self._instances.bound(definitions)
        self.poller = VirtualPoller(self.clock, watcher, self._finished)
        devices = devices_for(definitions, device_name(device))
        self.functions: list[ServedFunction] = [
            _Simulated(self, number, each.address, definitions[number], devices[number])
            for number, each in enumerate(meant)
        ]
        share_instances(self.functions)
        self._loop = Loop(
            self.functions,
            self.poller,  # type: ignore[arg-type]
            self._events,
            self.detach,  # type: ignore[arg-type]
            clock=self.clock.read,
        )

    # ---- what a test does ----------------------------------------------------------------

    @property
    def now(self) -> float:
        """What time it is: virtual seconds since the simulation began."""
        return (self.clock.now_ns - START_NS) / 1e9

    def producer(
        self, function: Target | str | None = None, *, deadline_ms: float | None = None
    ) -> Producer:
        """Return another producer, attached now.

        Args:
            function: which one it calls, by its handle or its name; None where there is one only.
            deadline_ms: as of `Function.with_options`, for all its calls.

        Raises:
            ConfigError: there is no such function, or several and none was named; or the
                simulation is closed.
        """
        self.check_open()
        number = self._number(function)
        served = self.functions[number]
        attachment = Attachment(served, self.poller, lambda: producer.waiting.clear())
        producer = Producer(self, len(self.producers) + 1, number, attachment, deadline_ms)
        self.producers.append(producer)
        self._attached[attachment.ring] = producer
        self._loop.post(lambda: self._loop.attach(attachment))  # type: ignore[arg-type]
        return producer

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Have *action* happen at a virtual time, even while a batch runs.

        What it raises ends the `advance`, `run` or `drain` in which that is.
        """
        self.clock.at(START_NS + nanoseconds("seconds", seconds), action)

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and everything happen that happens until then.

        A synchronous function that runs then ends first, however long it takes.
        """
        self._go(self.clock.now_ns + nanoseconds("seconds", seconds))

    def run(self) -> None:
        """Let time pass until nothing is left to happen.

        Actions have happened, and calls have their outcomes; but for those of async functions
        that await what does not come. It may be a little later then: an executor looks for calls
        once more, within ``wait_ms`` of a batch.
        """
        self._go(None)

    def drain(self) -> None:
        """Have the executor drain: it runs what was called, at once, and takes no more calls.

        Actions that are scheduled for later than that never happen.

        Raises:
            ConfigError: an async function awaits what does not come.
        """

        def drain() -> None:
            self.draining = True
            self._loop.drain()

        self._loop.post(drain)
        self._go(None)
        if not self._ended:
            running = next(each for each in self.functions if each.flights)
            raise ConfigError(
                f"'{running.address}' awaits something that nothing in the simulation brings; "
                "schedule it with at(), or have the function await less"
            )

    def close(self) -> None:
        """End what async functions still await, and exit the objects of classes. Idempotent."""
        if self._closed:
            return
        self._closed = self._ended = True
        for function in self.functions:
            function.close()
        self._instances.__exit__(None, None, None)
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(each.address for each in self.functions)
        return f"<Simulation of {names} at {self.now:g} s: {len(self.calls)} calls>"

    # ---- what its parts do ---------------------------------------------------------------

    def detach(self, attachment: Attachment) -> None:
        """Have the loop let go of a producer; it hears of it as of any command."""
        self._loop.post(lambda: self._loop.detach(attachment))  # type: ignore[arg-type]

    def attached(self, function: int) -> list[Producer]:
        """Return the producers of a function that the loop has not let go of."""
        return [
            each
            for each in self.producers
            if each.function_number == function and each.attachment.attached
        ]

    def flown(
        self, function: int, runs: list[tuple[ExecutorRing, int, int]], again: bool
    ) -> list[Call]:
        """Return the calls of a batch that has just been taken, or runs *again*."""
        return rows_of(runs, self._attached, again=again)

    def takes_ns(self, record: BatchRecord) -> int:
        """Return how long a batch is to take."""
        seconds = self.duration(record) if callable(self.duration) else self.duration
        return nanoseconds("duration", seconds)

    def check_open(self) -> None:
        """Raise `ConfigError` if the simulation is closed."""
        if self._closed:
            raise ConfigError("the simulation is closed; make another one")

    def watch(self) -> Watcher:
        """Return who is told."""
        return self._watcher

    def _number(self, function: Target | str | None) -> int:
        if function is None:
            if len(self.functions) == 1:
                return 0
            known = ", ".join(each.definition.name for each in self.functions)
            raise ConfigError(f"the simulation has several functions, {known}; name one")
        wanted = function if isinstance(function, str) else None
        if wanted is None:
            (meant,) = all_meant(function)  # type: ignore[arg-type]
            wanted = meant.address
        for number, each in enumerate(self.functions):
            if wanted in (each.address, each.definition.name):
                return number
        known = ", ".join(each.address for each in self.functions)
        raise ConfigError(f"the simulation has no function {wanted!r}; it has {known}")

    def _go(self, until_ns: int | None) -> None:
        if self._ended:
            raise ConfigError("the simulation has ended; make another one")
        self.poller.until_ns = until_ns
        try:
            with suppress(Paused):
                self._loop.run()
                self._ended = True
        finally:
            if self.clock.troubles:
                self._ended = True
                raise self.clock.troubles[0]

    def _finished(self) -> bool:
        return any(each.flights and each.flights[0].done for each in self.functions)


class _Simulated(ServedFunction):
    """A function whose batches are recorded, and take virtual time."""

    def __init__(
        self,
        simulation: Simulation,
        number: int,
        address: str,
        definition: Definition,
        device: Device,
    ) -> None:
        self.simulation = simulation
        self.number = number
        self.running: deque[Flight] = deque()  # launched and not completed
        definition = replace(definition, function=self._recorded(definition))
        if device.name == "cpu":  # where there are none, and it would be logged
            definition = replace(definition, cuda_graphs=False)
        events, capacity = simulation._events, MAX_CAPACITY
        super().__init__(definition, address, device, events, capacity)

    @property
    def runs_at_once(self) -> bool:
        """It does not: here a batch takes time, and is looked at before it is completed."""
        return False

    def launch(self, at_ns: int) -> int:
        if troubles := self.simulation.clock.troubles:
            raise troubles[0]  # the test has ended; another batch would be for nothing
        self.simulation.watch().launching(self.number)
        return super().launch(at_ns)

    def relaunch(self) -> None:
        if troubles := self.simulation.clock.troubles:
            raise troubles[0]
        super().relaunch()

    def complete(self) -> Any:
        halved = self.retries.halved
        wakes = super().complete()
        if self.running:  # else nobody waited for the calls of a part any more
            self.running.popleft()
            self.simulation.watch().completed(self.number, self.retries.halved > halved)
        return wakes

    def _recorded(self, definition: Definition) -> Callable[..., Any]:
        function, clock = definition.function, self.simulation.clock

        @functools.wraps(function)
        def simulated(*inputs: Any) -> Any:
            flight = self._began(inputs)
            try:
                return function(*inputs)
            except BaseException as error:
                self._raised(flight, error)
                raise
            finally:
                clock.move(clock.now_ns + self._takes_ns(flight))
                self._ended(flight)

        @functools.wraps(function)
        async def simulated_async(*inputs: Any) -> Any:
            flight = self._began(inputs)
            try:
                value = function(*inputs)
                return await value if inspect.isawaitable(value) else value
            except BaseException as error:
                self._raised(flight, error)
                raise
            finally:
                if takes_ns := self._takes_ns(flight):
                    await asyncio.sleep(takes_ns / 1e9)
                self._ended(flight)

        return simulated_async if definition.is_async else simulated

    def _began(self, inputs: tuple[Any, ...]) -> Flight:
        simulation, run = self.simulation, self.flights[-1]
        retried = run.parts is not None
        calls = simulation.flown(self.number, run.batch.runs(), retried)
        record = BatchRecord(
            self.address,
            tuple(call.number for call in calls),
            run.size,
            run.reason,
            simulation.now,
            retried=retried,
        )
        simulation.batches.append(record)
        for call in calls:
            call.batch = record
        promise = Promise(self.definition, self.address, inputs)
        flight = Flight(self.number, calls, record, run.batch.rejected, promise)
        self.running.append(flight)
        simulation.clock.noting(lambda: simulation.watch().launched(flight, inputs))
        return flight

    def _raised(self, flight: Flight, error: BaseException) -> None:
        flight.record.raised = True
        if not isinstance(error, _OF_FUNCTIONS):
            self.simulation.clock.troubles.append(error)

    def _takes_ns(self, flight: Flight) -> int:
        taken_ns: list[int] = []
        clock = self.simulation.clock
        clock.noting(lambda: taken_ns.append(self.simulation.takes_ns(flight.record)))
        return taken_ns[0]

    def _ended(self, flight: Flight) -> None:
        flight.record.end = self.simulation.now
        self.simulation.clock.noting(flight.promise.check)
