"""The real loop, functions and rings in one process, under a clock that a test moves.

Nothing here sleeps. The executor's own `Loop.run` is driven by a poller whose waits move the
clock to the next thing that happens: an action of the test, or the time the loop asked for. A
function that runs moves the clock as well, and producers go on meanwhile. The bell is the real
one, so a wake-up that the protocol does not send does not come here either.
"""

from __future__ import annotations

import asyncio
import heapq
import mmap
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.contract.exceptions import unpack_exception
from shmbatch.contract.signature import Signature
from shmbatch.executor import loop as loop_module
from shmbatch.executor.batcher import SealReason
from shmbatch.executor.loop import IDLE_NS, Loop
from shmbatch.executor.poller import SLICE_NS
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.devices import Cpu, Device
from shmbatch.protocol import layout
from shmbatch.protocol._core import (
    ABANDONED,
    CANCELLED,
    FAILED,
    PARKED,
    PENDING,
    Batch,
    Bell,
    Inbox,
)
from tests.rings import ADD, Wire

MS = 1_000_000
START_NS = 1_000_000 * MS
EXPIRED = object()  # the outcome of a call that was not launched by its deadline


@dataclass
class Call:
    """One call, as the test knows it."""

    number: int
    producer: Producer
    at_ns: int
    ticket: int
    batch: Execution | None = None
    withdrawn: int | None = None
    outcome: Any = PENDING


@dataclass
class Execution:
    """One batch, as the function saw it."""

    function: int
    at_ns: int
    calls: list[Call]
    left_waiting: int
    reason: SealReason
    until_ns: int = 0
    error: Exception | None = None


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
    peak: int = 0  # most calls outstanding when a batch was taken
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
        call = Call(number, self, self.world.now_ns, ticket)
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
    """An inbox of the core, and what it should know and do by the contract's words."""

    def __init__(self, inbox: Inbox, world: World, function: int) -> None:
        self.decision: tuple[SealReason | None, int] = (None, 0)  # of the last batch: `due`
        self._inbox = inbox
        self._world = world
        self._function = function

    def take(self, batch: Batch, limit: int, now_ns: int) -> int:
        self.decision = self._world.due(self._function)
        for producer in self._world.attached(self._function):
            producer.peak = max(producer.peak, self._world.outstanding(producer))
        return self._inbox.take(batch, limit, now_ns)

    def forget_absent(self) -> None:
        for producer in self._world.attached(self._function):
            producer.peak = self._world.outstanding(producer)
        self._inbox.forget_absent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inbox, name)


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
        self.now_ns = START_NS
        self.numbers = count(1)
        self.calls: dict[int, Call] = {}
        self.executions: list[Execution] = []
        self.checks: list[Callable[[Execution, list[Call]], None]] = [check_batch]
        self.fails: Callable[[Execution], Exception | None] = lambda execution: None
        self.item_fails: Callable[[int], bool] = lambda number: False
        self.spin_ns = 0
        self.strict = True  # False: a producer's calls are not what the world believes
        self.plans = plans
        self._body = body
        self._actions: list[tuple[int, int, Callable[[], object]]] = []
        self._order = count()
        self._troubles: list[BaseException] = []
        self._draining = False
        self._woken = False
        self.disconnected: list[Any] = []
        self.bell_memory = mmap.mmap(-1, layout.BELL_NBYTES)
        self.bell = Bell(self.bell_memory)
        self.active = 0  # the loop's poller has this
        is_async = any(plan.is_async for plan in plans)
        self.events = asyncio.new_event_loop() if is_async else None
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
        self.loop = Loop(self.functions, self, self.events, self._disconnect, watch)  # type: ignore[arg-type]
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
            bell=self.bell_memory,
            wake=self._wake,
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
        heapq.heappush(self._actions, (at_ns, next(self._order), action))

    # ---- running ----

    def run(self, *, drain: bool = True) -> None:
        """Let everything happen, then drain and check that everybody has his outcome.

        Args:
            drain: after the last action known now; else whoever makes more calls `drain`.
        """
        last_ns = max((at_ns for at_ns, _, _ in self._actions), default=self.now_ns)
        if drain:
            self.at(last_ns, self.drain)
        try:
            with mock.patch.object(loop_module, "now_ns", self.clock):
                self.loop.run()
        finally:
            for function in self.functions:
                function.close()
            if self.events is not None:
                self.events.close()
            if self._troubles:
                raise self._troubles[0]
        for producer in self.producers:
            if not producer.gone:
                producer.collect()
                assert producer.outstanding == [], "a call has no outcome"
                assert not producer.waiting or not self.strict
                assert producer.wire.producer.free_slots == producer.function.capacity

    def clock(self) -> int:
        return self.now_ns

    def drain(self) -> None:
        """Have the executor drain; it hears of it as of any command."""

        def drain() -> None:
            self._draining = True
            self.loop.drain()

        self.loop.post(drain)

    def sleep(self, duration_ns: int) -> None:
        """Keep the executor from doing anything else for so long."""
        self._advance(self.now_ns + duration_ns)

    def _advance(self, to_ns: int) -> None:
        """Move the clock, and let happen what happens until then."""
        while self._actions and self._actions[0][0] <= to_ns:
            at_ns, _, action = heapq.heappop(self._actions)
            self.now_ns = max(self.now_ns, at_ns)
            self._noting(action)
        self.now_ns = max(self.now_ns, to_ns)

    def _noting(self, step: Callable[[], Any]) -> Any:
        """Take a step inside of a function, whose errors the executor gives to the callers."""
        try:
            return step()
        except BaseException as error:
            self._troubles.append(error)
            raise

    # ---- the poller ----

    def wake(self) -> None:
        if self.bell.ring():
            self._woken = True

    def _wake(self, sleeping: int) -> None:
        self._woken = True

    def spin(self, seen: int, until_ns: int) -> int:
        """Spin as the poller does, on the real bell."""
        end_ns = min(until_ns, self.now_ns + self.spin_ns)
        while self.bell.look() == seen and self.now_ns < end_ns:
            assert not self._finished(), "it spins while results wait to be delivered"
            late = self.strict and self._launchable_and_due()
            assert not late, "I4: the executor spins though a batch is due"
            next_ns = min(end_ns, self._actions[0][0]) if self._actions else end_ns
            self._advance(max(next_ns, self.now_ns))
        return self.bell.look()

    def park(self, seen: int, until_ns: int, calls: int) -> int:
        """Sleep as the poller does, on the real bell."""
        if until_ns <= self.now_ns:
            return self.bell.look()
        assert not self._finished(), "it sleeps while results wait to be delivered"
        late = self.strict and self._launchable_and_due()
        assert not late, "I4: the executor sleeps though a batch is due"
        end_ns = min(until_ns, self.now_ns + SLICE_NS)
        if self.bell.arm(seen, PARKED, calls):
            self._woken = False
            while not self._woken and self.now_ns < end_ns:
                next_ns = min(end_ns, self._actions[0][0]) if self._actions else end_ns
                deadline_ns = min(self._deadlines(), default=next_ns)
                assert not self.strict or next_ns <= deadline_ns, (
                    "I4: the executor sleeps beyond a deadline"
                )
                self._advance(max(next_ns, self.now_ns))
                late = self.strict and self._launchable_and_due()
                assert not late or self._woken or self.now_ns >= end_ns, "I4: nobody woke it"
            self.bell.disarm()
        return self.bell.look()

    def wait_in_loop(
        self, events: asyncio.AbstractEventLoop, seen: int, until_ns: int, calls: int
    ) -> int:
        """As `park`, but every action may make a suspended function go on."""
        self._advance(self.now_ns)  # a batch that was completed may have made something happen
        events.call_soon(events.stop)
        events.run_forever()
        if until_ns > IDLE_NS and not self._finished() and self._actions:
            self.park(seen, min(until_ns, self._actions[0][0]), calls)
            events.call_soon(events.stop)
            events.run_forever()
        return self.bell.look()

    def _finished(self) -> bool:
        return any(
            each.flights and each.flights[0].done and not each.flights[0].watched
            for each in self.functions
        )

    # ---- the function ----

    def _function(self, number: int, plan: Plan) -> Callable[..., Any]:
        def function(xs: list[int], ys: list[int]) -> list[Any]:
            execution = self._noting(lambda: self._begin(number, xs, ys))
            self._advance(self.now_ns + plan.duration_ns)
            return self._end(execution)

        async def coroutine(xs: list[int], ys: list[int]) -> list[Any]:
            execution = self._noting(lambda: self._begin(number, xs, ys))
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

    def outstanding(self, producer: Producer) -> int:
        """How many calls of a producer wait or run."""
        return len(producer.waiting) + sum(
            call.producer is producer
            for execution in self._running[producer.function_number]
            for call in execution.calls
        )

    def absent(self, function: int) -> int:
        """How many calls are still to come until everybody has as many as lately at most."""
        return sum(
            max(0, producer.peak - self.outstanding(producer))
            for producer in self.attached(function)
        )

    def due(self, function: int) -> tuple[SealReason | None, int]:
        """Why a function is due now, by the contract's own words; and its deadline."""
        plan, waiting = self.plans[function], self.waiting(function)
        if not waiting:
            return None, 1 << 63
        deadline_ns = min(call.at_ns for call in waiting) + plan.wait_ns
        if len(waiting) >= plan.max_batch_size:
            return SealReason.SIZE, deadline_ns
        if plan.lockstep and self.absent(function) == 0:
            return SealReason.ALL, deadline_ns
        if deadline_ns <= self.now_ns:
            return SealReason.DEADLINE, deadline_ns
        return (SealReason.DRAIN if self._draining else None), deadline_ns

    def _launchable(self) -> list[int]:
        # In flight is a batch until its outcomes are published, though its function be done.
        return [number for number, function in enumerate(self.functions) if function.idle]

    def _launchable_and_due(self) -> list[int]:
        return [number for number in self._launchable() if self.due(number)[0] is not None]

    def _deadlines(self) -> list[int]:
        return [self.due(number)[1] for number in self._launchable()]

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
        before = self.waiting(function)
        reason, deadline_ns = self.inboxes[function].decision
        assert reason is not None, "a batch that is not due was launched"
        calls = [self.calls[x] for x in xs]
        execution = Execution(function, self.now_ns, calls, len(before) - len(calls), reason)
        for other in self._launchable():
            other_reason, other_deadline_ns = self.due(other)
            if reason is other_reason is SealReason.DEADLINE:
                assert deadline_ns <= other_deadline_ns, "the earliest due goes first"
        for check in self.checks:
            check(execution, before)
        for call in calls:
            call.batch = execution
            call.producer.waiting.remove(call)
        self.executions.append(execution)
        self._running[function].append(execution)
        return execution

    def _complete(self, function: int, complete: Callable[[], Any]) -> Any:
        """Complete the oldest batch of a function as its `ServedFunction` does."""
        wakes = complete()
        if self._running[function]:  # else the function was not the world's own
            execution = self._running[function].popleft()
            for call in execution.calls:
                if call.withdrawn == ABANDONED and call.producer.peak > 1:
                    call.producer.peak -= 1
            self._noting(lambda: self.completed(execution))
        return wakes

    def _end(self, execution: Execution) -> list[Any]:
        execution.until_ns = self.now_ns
        execution.error = self.fails(execution)
        if execution.error is not None:
            raise execution.error
        return [
            ValueError(call.number) if self.item_fails(call.number) else 10 * call.number
            for call in execution.calls
        ]


def check_batch(execution: Execution, before: list[Call]) -> None:
    """I1, I2, I5, and that a batch takes as many calls as there are."""
    plan = before[0].producer.world.plans[execution.function]
    calls = execution.calls
    assert len(calls) == min(plan.max_batch_size, len(before)), "I1, and filling until sealed"
    assert len({call.number for call in calls}) == len(calls), "I2"
    assert all(call in before for call in calls), "I2: cancelled, or run before"
    queues: dict[int, list[Call]] = {}
    for call in before:
        queues.setdefault(id(call.producer), []).append(call)
    taken = {}
    for key, queue in queues.items():
        mine = [call for call in calls if id(call.producer) == key]
        assert mine == queue[: len(mine)], "I5: calls of one producer go in order"
        taken[key] = len(mine)
    for key, queue in queues.items():
        if taken[key] < len(queue):
            assert max(taken.values()) <= taken[key] + 1, "I5: producers take turns"
