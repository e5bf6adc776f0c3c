"""The real loop, functions and rings in one process, under a clock that a test moves.

The clock, the poller and the contract are those of `shmbatch.testing`. What is added is what only
tests of the executor want: functions whose inputs are the numbers of their calls, producers that
do what no client does, devices, and the parts of the loop to look at.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.contract.exceptions import unpack_exception
from shmbatch.contract.signature import Signature
from shmbatch.executor.batcher import SealReason
from shmbatch.executor.loop import Loop
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.devices import Cpu, Device
from shmbatch.protocol._core import (
    ABANDONED,
    CANCELLED,
    FAILED,
    PENDING,
    Batch,
    Inbox,
)
from shmbatch.testing.clock import START_NS as START_NS
from shmbatch.testing.clock import VirtualClock
from shmbatch.testing.events import VirtualEvents
from shmbatch.testing.invariants import Contract
from shmbatch.testing.poller import Paused, VirtualPoller
from tests.rings import ADD, Wire

MS = 1_000_000
EXPIRED = object()  # the outcome of a call that was not launched by its deadline


@dataclass
class Call:
    """One call, as the test knows it."""

    number: int
    producer: Producer
    at_ns: int
    ticket: int
    values: tuple[Any, ...]
    batch: Execution | None = None
    withdrawn: int | None = None
    outcome: Any = PENDING

    @property
    def cancelled(self) -> bool:
        return self.withdrawn in (CANCELLED, ABANDONED)


@dataclass
class Execution:
    """One batch, as the function saw it."""

    function: int
    at_ns: int
    calls: list[Call]
    left_waiting: int
    reason: SealReason
    rejected: int = 0
    retried = False
    start = 0.0
    until_ns: int = 0
    error: Exception | None = None

    @property
    def record(self) -> Execution:
        return self


@dataclass
class Producer:
    """One producer of one function; also its connection, as the loop uses it."""

    world: World
    wire: Wire
    function: Any
    function_number: int
    waiting: deque[Call] = field(default_factory=deque)  # published and not launched
    outstanding: list[Call] = field(default_factory=list)  # not yet collected
    gone: bool = False
    closed: bool = False
    violated: bool = False
    since_ns: int = 0
    name = "a producer"
    woken: int = 0
    heard: int = 0

    @property
    def ring(self) -> Any:
        return self.wire.executor

    @property
    def segment(self) -> Any:
        return self

    @property
    def sock(self) -> Any:
        return self

    def wake(self, ring: object, threads: int, slots: Sequence[int]) -> None:
        self.woken += 1

    def send(self, data: bytes, flags: int) -> None:
        self.heard += 1

    def close(self) -> None:
        self.closed = True

    def submit(
        self, flags: int = 0, values: tuple[Any, ...] | None = None, deadline_ns: int = 0
    ) -> Call | None:
        """Publish a call now; None if every slot is in use."""
        number = next(self.world.numbers)
        values = (number, -number) if values is None else values
        ticket = self.wire.producer.submit(values, flags, deadline_ns)
        if ticket < 0:
            return None
        self.wire.stamp(ticket, self.world.now_ns)  # the core took the real time
        call = Call(number, self, self.world.now_ns, ticket, values)
        self.waiting.append(call)
        self.outstanding.append(call)
        self.world.calls[number] = call
        return call

    def withdraw(self, call: Call) -> None:
        """Give a call up."""
        self.outstanding.remove(call)
        call.withdrawn = self.wire.producer.withdraw(call.ticket)
        if call.withdrawn == CANCELLED:
            self.waiting.remove(call)  # ValueError: it had been launched
        elif call.withdrawn == ABANDONED:
            assert call.batch is not None

    def collect(self) -> None:
        """Take the outcomes that are there."""
        for call in list(self.outstanding):
            outcome = self.wire.producer.poll(call.ticket, 0)
            if outcome is FAILED:
                record = self.wire.producer.error(call.ticket)
                outcome = EXPIRED if record is None else unpack_exception(record)
            if outcome is not PENDING:
                call.outcome = outcome
                self.outstanding.remove(call)


@dataclass
class Plan:
    """What a function of a world is like."""

    max_batch_size: int = 4
    wait_ns: int = 5 * MS
    duration_ns: int = 0
    is_async: bool = False
    producers: int = 1
    slots: int = 16
    lockstep: bool = False


class Watched:
    """An inbox of the core that says when a batch is taken."""

    def __init__(self, inbox: Inbox, world: World, function: int) -> None:
        self._inbox = inbox
        self._world = world
        self._function = function

    def take(self, batch: Batch, limit: int, now_ns: int) -> int:
        self._world.contract.launching(self._function)
        return self._inbox.take(batch, limit, now_ns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inbox, name)


class Strict(Contract):
    """The contract, where the world knows what its producers have called."""

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.simulation = world

    def launching(self, function: int) -> None:
        if self.simulation.strict:
            super().launching(function)

    def waits(self, until_ns: int) -> None:
        assert not self.simulation.finished(), "it waits while results wait to be delivered"
        if self.simulation.strict:
            super().waits(until_ns)


class World:
    """Functions, producers, an executor and the time; see `run`."""

    def __init__(
        self,
        *plans: Plan,
        device: Device | Sequence[Device] | None = None,
        signature: Signature = ADD,
        body: Callable[..., Any] | None = None,
        watch: Callable[[Any], None] | None = None,
    ) -> None:
        self.virtual = VirtualClock()
        self._last_ns = START_NS
        self.numbers = count(1)
        self.calls: dict[int, Call] = {}
        self.executions: list[Execution] = []
        self.fails: Callable[[Execution], Exception | None] = lambda execution: None
        self.item_fails: Callable[[int], bool] = lambda number: False
        self.strict = True  # False: a producer's calls are not what the world believes
        self.plans = plans
        self._body = body
        self.draining = False
        self.disconnected: list[Any] = []
        self.contract = Strict(self)
        self.poller = VirtualPoller(self.virtual, self.contract, self.finished)
        self.bell = self.poller.bell
        is_async = any(plan.is_async for plan in plans)
        self.events = VirtualEvents(self.virtual) if is_async else None
        devices = device if isinstance(device, Sequence) else [device or Cpu()] * len(plans)
        self.functions = [
            ServedFunction(
                Definition(
                    f"f{number}",
                    self._function(number, plan),
                    signature,
                    BatchParameters(plan.max_batch_size, plan.wait_ns),
                    plan.slots,
                    plan.lockstep,
                ),
                f"world.f{number}",
                devices[number],
                self.events,
                1 << 17,
            )
            for number, plan in enumerate(plans)
        ]
        self._running: list[deque[Execution]] = [deque() for _ in plans]
        # Called with each batch whose outcomes have just been published.
        self.completed: Callable[[Execution], None] = lambda execution: None
        self.inboxes: list[Watched] = []
        for number, served in enumerate(self.functions):
            self.inboxes.append(Watched(served.inbox, self, number))
            served.inbox = self.inboxes[number]  # type: ignore[assignment]
            served.complete = partial(self._complete, number, served.complete)  # type: ignore[method-assign]
            served.serve = partial(self._serve, number, served.serve)  # type: ignore[method-assign]
        self.loop = Loop(
            self.functions,
            self.poller,  # type: ignore[arg-type]
            self.events,
            self._disconnect,
            watch,
            self.virtual.read,
        )
        self.producers = [
            self.attach(number) for number, plan in enumerate(plans) for _ in range(plan.producers)
        ]

    def _disconnect(self, connection: Any) -> None:
        """As the control thread does: forget it, then have the loop detach it."""
        self.disconnected.append(connection)
        self.loop.post(lambda: self.loop.detach(connection))

    # ---- producers and actions ----

    def attach(self, function: int) -> Producer:
        """Attach a producer to a function, at once."""
        wire = Wire(
            self.functions[function].definition.signature,
            self.functions[function].capacity,
            bell=self.poller.memory,
            wake=self.poller.woken,
        )
        producer = Producer(self, wire, self.functions[function], function)
        self.loop.attach(producer)
        return producer

    def join(self, function: int) -> None:
        """Let another producer come; the loop hears of it as of any command."""
        self.loop.post(lambda: self.producers.append(self.attach(function)))

    def leave(self, producer: Producer) -> None:
        """Let a producer die; the loop hears of it as of any command."""
        producer.gone = True

        def detach() -> None:
            producer.waiting.clear()
            self.loop.detach(producer)

        self.loop.post(detach)

    def at(self, at_ns: int, action: Callable[[], object]) -> None:
        """Have *action* happen at a time."""
        self.virtual.at(at_ns, action)
        self._last_ns = max(self._last_ns, at_ns)

    # ---- running ----

    def run(self, *, drain: bool = True) -> None:
        """Let everything happen, then drain and check that everybody has his outcome.

        Args:
            drain: after the last action known now; else whoever makes more calls `drain`.
        """
        if drain:
            self.at(self._last_ns, self.drain)
        try:
            self.loop.run()
        except Paused:
            raise AssertionError("nothing is left to happen, and it has not drained") from None
        finally:
            for function in self.functions:
                function.close()
            if self.events is not None:
                self.events.close()
            if self.virtual.troubles:
                raise self.virtual.troubles[0]
        for producer in self.producers:
            if not producer.gone:
                producer.collect()
                assert producer.outstanding == [], "a call has no outcome"
                assert not producer.waiting or not self.strict
                assert producer.wire.producer.free_slots == producer.function.capacity

    def wake(self) -> None:
        self.poller.wake()

    @property
    def clock(self) -> VirtualClock:
        return self.virtual

    @property
    def now_ns(self) -> int:
        return self.virtual.now_ns

    @property
    def spin_ns(self) -> int:
        return self.poller.spin_ns

    @spin_ns.setter
    def spin_ns(self, spin_ns: int) -> None:
        self.poller.spin_ns = spin_ns

    @property
    def batches(self) -> list[Execution]:
        return self.executions

    def drain(self) -> None:
        """Have the executor drain; it hears of it as of any command."""

        def drain() -> None:
            self.draining = True
            self.loop.drain()

        self.loop.post(drain)

    def sleep(self, duration_ns: int) -> None:
        """Keep the executor from doing anything else for so long."""
        self._advance(self.now_ns + duration_ns)

    def _advance(self, to_ns: int) -> None:
        self.virtual.move(to_ns)

    def finished(self) -> bool:
        return any(
            each.flights and each.flights[0].done and not each.flights[0].watched
            for each in self.functions
        )

    # ---- the function ----

    def _function(self, number: int, plan: Plan) -> Callable[..., Any]:
        def function(xs: list[int], ys: list[int]) -> list[Any]:
            execution = self._began(number, xs, ys)
            self._advance(self.now_ns + plan.duration_ns)
            return self._end(execution)

        async def coroutine(xs: list[int], ys: list[int]) -> list[Any]:
            execution = self._began(number, xs, ys)
            if plan.duration_ns:
                over = asyncio.get_running_loop().create_future()
                self.at(self.now_ns + plan.duration_ns, lambda: over.set_result(None))
                await over
            return self._end(execution)

        if self._body is not None:
            return self._body
        return coroutine if plan.is_async else function

    def waiting(self, function: int) -> list[Call]:
        """The calls of a function that could be launched now."""
        return [
            call
            for producer in self.producers
            if producer.function_number == function
            for call in producer.waiting
        ]

    def attached(self, function: int) -> list[Producer]:
        """The producers of a function that the executor has not yet been told to forget."""
        return [
            producer
            for producer in self.producers
            if producer.function_number == function and not producer.closed
        ]

    def _began(self, function: int, xs: list[int], ys: list[int]) -> Execution:
        """Note a batch, whose errors the executor would give to the callers."""
        begun: list[Execution] = []
        self.virtual.noting(lambda: begun.append(self._begin(function, xs, ys)))
        return begun[0]

    def _begin(self, function: int, xs: list[int], ys: list[int]) -> Execution:
        assert ys == [-x for x in xs], f"I6: {xs} {ys}"
        if not self.strict:
            calls = [self.calls[x] for x in xs]
            execution = Execution(function, self.now_ns, calls, 0, SealReason.DRAIN)
            for call in calls:
                call.batch = execution
                if not call.producer.gone:
                    call.producer.waiting.remove(call)
            self._running[function].append(execution)
            return execution
        calls = [self.calls[x] for x in xs]
        served = self.functions[function]
        reason = (served.flights or served.idle)[
            -1
        ].reason  # idle: while it launches and completes
        left_waiting = len(self.waiting(function)) - len(calls)
        execution = Execution(function, self.now_ns, calls, left_waiting, reason)
        self.executions.append(execution)
        self._running[function].append(execution)
        self.contract.launched(execution, (xs, ys))  # type: ignore[arg-type]
        for call in calls:
            call.batch = execution
            call.producer.waiting.remove(call)
        return execution

    def _complete(self, function: int, complete: Callable[[], Any]) -> Any:
        """Complete the oldest batch of a function as its `ServedFunction` does."""
        wakes = complete()
        self._completed(function)
        return wakes

    def _serve(self, function: int, serve: Callable[[int], Any], at_ns: int) -> Any:
        """The same where launching and completing are one."""
        served = serve(at_ns)
        self._completed(function)
        return served

    def _completed(self, function: int) -> None:
        if self._running[function]:  # else the function was not the world's own, or is noted
            execution = self._running[function].popleft()
            if self.strict:
                self.contract.completed(function, halved=False)
            self.virtual.noting(lambda: self.completed(execution))

    def _end(self, execution: Execution) -> list[Any]:
        execution.until_ns = self.now_ns
        execution.error = self.fails(execution)
        if execution.error is not None:
            raise execution.error
        return [
            ValueError(call.number) if self.item_fails(call.number) else 10 * call.number
            for call in execution.calls
        ]
