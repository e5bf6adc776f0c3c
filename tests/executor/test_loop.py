"""The guarantees I1 to I7 over the executor's real loop, under a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbatch.contract.columns import Column
from shmbatch.errors import BatchResultError
from shmbatch.executor.batcher import SealReason
from shmbatch.executor.staging.devices import Cpu, Landed, Landing, Results
from shmbatch.protocol import layout, snapshot
from shmbatch.protocol._core import (
    ABANDONED,
    ASYNC,
    CANCELLED,
    CLOSED,
    DONE,
    DRAINING,
    LOOP,
    OPEN,
    SUBMIT_CLOSED,
    THREAD,
    WAITER,
)
from tests.executor.worlds import EXPIRED, MS, START_NS, Call, Execution, Plan, Producer, World
from tests.rings import array, signature

SIZE, ALL, DEADLINE, DRAIN = SealReason

Trace = list[tuple[float, SealReason, list[int]]]


def trace(world: World) -> Trace:
    """When, in ms, each batch was launched, why, and which calls it had."""
    return [
        ((each.at_ns - START_NS) / MS, each.reason, [call.number for call in each.calls])
        for each in world.executions
    ]


def submitting(world: World, times_ms: list[float], producer: int = 0, repeat: int = 1) -> None:
    for at_ms in times_ms:
        for _ in range(repeat):
            world.at(START_NS + round(at_ms * MS), world.producers[producer].submit)


# ---- when a batch runs ----


def test_a_full_batch_runs_at_once() -> None:
    world = World(Plan(max_batch_size=3, wait_ns=1000 * MS))
    submitting(world, [0, 1, 2, 10, 11, 12])

    world.run()

    assert trace(world) == [(2, SIZE, [1, 2, 3]), (12, SIZE, [4, 5, 6])]


def test_a_batch_that_stays_small_runs_when_its_oldest_call_has_waited() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=5 * MS))
    submitting(world, [0, 1, 4.9, 6, 30])

    world.run()

    assert trace(world) == [(5, DEADLINE, [1, 2, 3]), (11, DEADLINE, [4]), (30, DRAIN, [5])]


def test_the_rest_runs_when_the_executor_drains() -> None:
    world = World(Plan(max_batch_size=2, wait_ns=1000 * MS))
    submitting(world, [0], repeat=5)

    world.run()

    assert trace(world) == [(0, SIZE, [1, 2]), (0, SIZE, [3, 4]), (0, DRAIN, [5])]


def test_without_a_wait_a_lone_call_never_waits() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=0))
    submitting(world, [0, 1, 2])

    world.run()

    assert trace(world) == [(0, DEADLINE, [1]), (1, DEADLINE, [2]), (2, DEADLINE, [3])]


def test_without_a_wait_calls_that_come_while_the_executor_is_busy_share_a_batch() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=0, duration_ns=10 * MS))
    submitting(world, [0, 1, 2, 3, 15, 25])

    world.run()

    assert trace(world) == [
        (0, DEADLINE, [1]),
        (10, DEADLINE, [2, 3, 4]),
        (20, DEADLINE, [5]),
        (30, DEADLINE, [6]),
    ]


@pytest.mark.parametrize("spin_ns", [0, 2 * MS])
def test_the_clock_of_a_call_runs_on_while_the_executor_is_busy(spin_ns: int) -> None:
    world = World(Plan(max_batch_size=10, wait_ns=5 * MS, duration_ns=20 * MS))
    world.spin_ns = spin_ns
    submitting(world, [0, 6, 24])

    world.run()

    # The second call has waited long enough when the executor is free again, at 25 ms: it runs
    # then, and takes the third along.
    assert trace(world) == [(5, DEADLINE, [1]), (25, DEADLINE, [2, 3])]


def test_a_batch_keeps_filling_until_it_can_be_launched() -> None:
    world = World(Plan(max_batch_size=3, wait_ns=1 * MS, duration_ns=50 * MS))
    submitting(world, [0, 10, 20, 30, 40])

    world.run()

    assert trace(world) == [
        (1, DEADLINE, [1]),
        (51, SIZE, [2, 3, 4]),
        (101, DEADLINE, [5]),
    ]


def test_of_several_functions_the_earliest_due_goes_first() -> None:
    world = World(
        Plan(max_batch_size=10, wait_ns=8 * MS, duration_ns=20 * MS),
        Plan(max_batch_size=10, wait_ns=2 * MS, duration_ns=20 * MS),
        Plan(max_batch_size=10, wait_ns=5 * MS, duration_ns=20 * MS),
    )
    submitting(world, [0], producer=0)  # due at 8, runs last
    submitting(world, [0.5, 3], producer=1)  # due at 2.5, and at 5 while it runs
    submitting(world, [1], producer=2)  # due at 6
    submitting(world, [100], producer=0)

    world.run()

    order = [(each.function, (each.at_ns - START_NS) / MS) for each in world.executions]
    assert order == [(1, 2.5), (1, 22.5), (2, 42.5), (0, 62.5), (0, 100)]


def test_a_function_with_a_backlog_does_not_keep_others_out() -> None:
    world = World(
        Plan(max_batch_size=2, wait_ns=1000 * MS, duration_ns=10 * MS, slots=64),
        Plan(max_batch_size=2, wait_ns=5 * MS, duration_ns=10 * MS),
    )
    submitting(world, [0], producer=0, repeat=20)
    submitting(world, [1], producer=1)

    world.run()

    assert [each.function for each in world.executions][:3] == [0, 1, 0]


def test_cancelled_calls_count_towards_no_trigger() -> None:
    """Neither for the size nor for the oldest of them."""
    world = World(Plan(max_batch_size=3, wait_ns=5 * MS))
    producer = world.producers[0]
    submitting(world, [0, 1])
    world.at(START_NS + 2 * MS, lambda: producer.withdraw(world.calls[1]))
    submitting(world, [3, 20])

    world.run()

    assert world.calls[1].withdrawn == CANCELLED
    assert trace(world) == [(6, DEADLINE, [2, 3]), (20, DRAIN, [4])]


def test_a_batch_that_was_cancelled_altogether_never_runs() -> None:
    world = World(Plan(max_batch_size=3, wait_ns=5 * MS))
    submitting(world, [0], repeat=2)
    for number in (1, 2):
        world.at(START_NS + MS, lambda n=number: world.producers[0].withdraw(world.calls[n]))

    world.run()

    assert world.executions == []


def test_calls_cancelled_while_they_run_are_dropped_and_their_slots_come_back() -> None:
    world = World(Plan(max_batch_size=3, wait_ns=0, duration_ns=10 * MS))
    producer = world.producers[0]
    submitting(world, [0])
    world.at(START_NS + MS, lambda: producer.withdraw(world.calls[1]))
    submitting(world, [2])

    world.run()

    assert world.calls[1].withdrawn == ABANDONED
    assert world.calls[2].outcome == 20


def test_calls_of_a_producer_that_leaves_never_run() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=10 * MS, producers=2))
    submitting(world, [0, 1], producer=0)
    submitting(world, [2], producer=1)
    world.at(START_NS + 3 * MS, lambda: world.leave(world.producers[0]))
    submitting(world, [30], producer=1)

    world.run()

    assert trace(world) == [(12, DEADLINE, [3]), (30, DRAIN, [4])]
    assert world.producers[0].closed


def test_a_producer_that_leaves_while_its_calls_run_disturbs_nobody() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=0, duration_ns=10 * MS, producers=2))
    submitting(world, [0], producer=1)
    submitting(world, [1], producer=0)
    submitting(world, [2], producer=1)
    world.at(START_NS + 12 * MS, lambda: world.leave(world.producers[0]))
    submitting(world, [13], producer=1)

    world.run()

    assert trace(world)[1] == (10, DEADLINE, [2, 3])
    assert [world.calls[number].outcome for number in (1, 3, 4)] == [10, 30, 40]


def test_an_async_function_that_waits_lets_other_functions_run() -> None:
    world = World(
        Plan(max_batch_size=10, wait_ns=0, duration_ns=50 * MS, is_async=True),
        Plan(max_batch_size=10, wait_ns=2 * MS, duration_ns=1 * MS),
    )
    submitting(world, [0, 1, 2], producer=0)
    submitting(world, [3, 10], producer=1)

    world.run()

    order = [(each.function, (each.at_ns - START_NS) / MS) for each in world.executions]
    # One batch of a function at a time: the calls of 1 and 2 ms wait for its end at 50 ms.
    assert order[:2] == [(0, 0), (1, 5)]
    assert order[-1] == (0, 50)
    assert [call.number for call in world.executions[-1].calls] == [2, 3]


# ---- for any history ----

gaps_ns = st.sampled_from([0, 0, 0, 1, 1000, MS // 2, MS, 3 * MS, 5 * MS, 12 * MS, 60 * MS])
plans = st.builds(
    Plan,
    max_batch_size=st.integers(1, 5),
    wait_ns=st.sampled_from([0, 1, MS, 5 * MS, 20 * MS, 200 * MS]),
    duration_ns=st.sampled_from([0, 0, 1000, 2 * MS, 10 * MS]),
    is_async=st.sampled_from([False, False, True]),
    producers=st.integers(1, 3),
    slots=st.sampled_from([1, 2, 3, 16]),
    lockstep=st.booleans(),
)
moves = st.lists(
    st.tuples(
        gaps_ns,
        st.sampled_from(["submit"] * 8 + ["withdraw", "withdraw", "collect", "leave", "join"]),
        st.integers(0, 1 << 16),
        st.integers(1, 4),
    ),
    max_size=60,
)


def play(world: World, history: list[tuple[int, str, int, int]]) -> None:
    """Put a history into a world; what a move concerns is decided when it happens."""
    at_ns = START_NS

    def move(kind: str, which: int, times: int) -> None:
        living = [producer for producer in world.producers if not producer.gone]
        if kind == "join":
            world.join(which % len(world.plans))
        elif living:
            producer = living[which % len(living)]
            if kind == "submit":
                for _ in range(times):
                    if producer.submit(flags=ASYNC * (which % 2)) is None:
                        producer.collect()
            elif kind == "withdraw" and producer.outstanding:
                producer.withdraw(producer.outstanding[which % len(producer.outstanding)])
            elif kind == "collect":
                producer.collect()
            elif kind == "leave" and which % 3 == 0:
                world.leave(producer)

    for gap_ns, kind, which, times in history:
        at_ns += gap_ns
        world.at(at_ns, lambda k=kind, w=which, t=times: move(k, w, t))


def check_outcomes(world: World) -> None:
    """I2 and I3: every call exactly one outcome, its own; and the statistics know them all."""
    for call in world.calls.values():
        if call.producer.gone or call.withdrawn is not None:
            assert call.withdrawn in (None, CANCELLED, ABANDONED, DONE)
            assert (call.withdrawn == CANCELLED) <= (call.batch is None)
            continue
        assert call.batch is not None
        if call.batch.error is not None:
            assert type(call.outcome) is type(call.batch.error)
            assert str(call.outcome) == str(call.batch.error)
        elif world.item_fails(call.number):
            assert repr(call.outcome) == f"ValueError({call.number})"
        else:
            assert call.outcome == 10 * call.number
    outcomes = [
        call.outcome for call in world.calls.values() if isinstance(call.outcome, Exception)
    ]
    assert len({id(outcome) for outcome in outcomes}) == len(outcomes)
    for number, function in enumerate(world.functions):
        mine = [each for each in world.executions if each.function == number]
        failed = sum(
            len(each.calls)
            if each.error is not None
            else sum(world.item_fails(call.number) for call in each.calls)
            for each in mine
        )
        totals = snapshot.totals(function.counts(0))
        assert totals.done == sum(len(each.calls) for each in mine)
        assert (totals.failed, totals.batches) == (failed, len(mine))
        assert function.statistics.batch_sizes() == {
            reason.value: Counter(len(each.calls) for each in mine if each.reason is reason)
            for reason in SealReason
        }


def check_turns(world: World) -> None:
    """I5: a waiting call is passed over by at most its place in line plus one of each other's."""
    for call in world.calls.values():
        if call.batch is None or call.withdrawn is not None:
            continue
        mine = world.executions.index(call.batch)
        earlier = [
            each
            for each in world.executions[:mine]
            if each.function == call.producer.function_number and each.at_ns > call.at_ns
        ]
        place = sum(other.producer is call.producer for each in earlier for other in each.calls)
        others = Counter(
            id(other.producer)
            for each in earlier
            for other in each.calls
            if other.producer is not call.producer
        )
        assert all(passed <= place + 1 for passed in others.values()), "I5"


@settings(max_examples=500, deadline=None)
@given(
    chosen=st.lists(plans, min_size=1, max_size=3),
    history=moves,
    spin_ns=st.sampled_from([0, 50_000, 5 * MS]),
)
def test_i1_to_i7_hold_for_any_history(
    chosen: list[Plan], history: list[tuple[int, str, int, int]], spin_ns: int
) -> None:
    """The world checks I1, I2, I4, I5 and I6 at every launch and every sleep."""
    world = World(*chosen)
    world.spin_ns = spin_ns
    play(world, history)

    world.run()

    check_outcomes(world)
    check_turns(world)


@settings(max_examples=100, deadline=None)
@given(
    chosen=st.lists(plans, min_size=1, max_size=2),
    history=moves,
    bad_batch=st.integers(1, 5),
    bad_item=st.integers(1, 5),
)
def test_i7_a_function_that_fails_at_times_changes_nothing_for_the_others(
    chosen: list[Plan], history: list[tuple[int, str, int, int]], bad_batch: int, bad_item: int
) -> None:
    world = World(*chosen)
    world.item_fails = lambda number: number % bad_item == 0

    def fails(execution: Execution) -> Exception | None:
        first = execution.calls[0].number
        return LookupError(f"batch of {first}") if first % bad_batch == 0 else None

    world.fails = fails
    play(world, history)

    world.run()

    check_outcomes(world)
    check_turns(world)


@settings(max_examples=100, deadline=None)
@given(
    history=moves, when=st.integers(0, 59), word=st.integers(0, 2**32 - 1), slot=st.integers(0, 3)
)
def test_i7_a_producer_that_scribbles_is_disconnected_and_nobody_else_notices(
    history: list[tuple[int, str, int, int]], when: int, word: int, slot: int
) -> None:
    """One producer overwrites a word of its own segment at any moment of any history."""
    world = World(Plan(max_batch_size=3, wait_ns=MS, duration_ns=MS, producers=2, slots=4))
    world.strict = False
    hostile = world.producers[0]
    hostile.gone = True  # for everybody's bookkeeping: its outcomes are nobody's business

    def scribble() -> None:
        offsets = [layout.TAIL, layout.WITHDRAWN, layout.COMPLETIONS, layout.INDICES + 4 * slot]
        offsets += [hostile.wire.state_offset(slot)] * 4
        hostile.wire.write(offsets[word % len(offsets)], word)

    def hostile_submit() -> None:
        if not hostile.closed:
            hostile.submit()

    for i in range(0, 60, 3):
        world.at(START_NS + i * MS, hostile_submit)
    world.at(START_NS + when * MS, scribble)
    play(world, history)

    world.run()

    assert world.disconnected in ([], [hostile])
    for call in world.calls.values():
        if not call.producer.gone and call.withdrawn is None:
            assert call.outcome == 10 * call.number


# ---- two batches in flight ----


class LateEvent:
    """Computes and copies only when it is waited for, as late as any device may."""

    def __init__(self, device: Slow, number: int, compute: Any, host: Any) -> None:
        self._device = device
        self._number = number
        self._compute, self._host = compute, host

    def landed(self) -> bool:
        return False

    def wait_elsewhere(self) -> None:
        raise AssertionError("nobody watches")

    def wait(self) -> None:
        self._device.log.append(f"wait {self._number}")
        if self._device.breaks(self._number):
            raise RuntimeError(f"device broke in batch {self._number}")
        self._host[...] = self._compute()


class Slow(Cpu):
    """A device of two batches: nothing is computed, and no input read, before the event."""

    depth = 2

    def __init__(self, breaks: Callable[[int], bool] = lambda number: False) -> None:
        self.log: list[str] = []
        self.batches = 0
        self.breaks = breaks
        self._late: LateEvent | None = None

    def results(self, column: Column, rows: int) -> Results:
        return self

    def fetched(self, value: Any, count: int) -> Any:
        assert value.rows == count
        self.batches += 1
        self.log.append(f"launch {self.batches}")
        host = np.full((count, 2), -1.0)
        self._late = LateEvent(self, self.batches, value, host)
        return host

    def landing(self, kept: object = None) -> Landing:
        late, self._late = self._late, None
        return late or Landed()


class Doubling:
    """What the function of a slow device returns: its result, some time."""

    def __init__(self, stack: Any) -> None:
        self.rows = len(stack)
        self._stack = stack

    def __call__(self) -> Any:
        return self._stack * 2


VECTORS = signature(array("float64", 2), result=array("float64", 2))


def slow_world(device: Slow, plan: Plan, body: Callable[..., Any] = Doubling) -> World:
    world = World(plan, device=device, signature=VECTORS, body=body)
    world.strict = False
    return world


def submit_vectors(world: World, count: int, at_ns: int = START_NS) -> list[Call]:
    calls: list[Call] = []

    def submit() -> None:
        call = world.producers[0].submit(values=(np.array([len(calls), 0.5]),))
        assert call is not None
        calls.append(call)

    for _ in range(count):
        world.at(at_ns, submit)
    return calls


def doubled(calls: list[Call]) -> bool:
    return all(np.array_equal(call.outcome, [2.0 * i, 1.0]) for i, call in enumerate(calls))


def finish(world: World) -> None:
    for producer in world.producers:
        producer.waiting.clear()  # launches of a device are not the world's to see
    world.run()


def test_a_batch_is_launched_before_the_one_in_front_of_it_is_completed() -> None:
    device = Slow()
    world = slow_world(device, Plan(max_batch_size=2, wait_ns=0, slots=16))
    calls = submit_vectors(world, 8)

    finish(world)

    assert doubled(calls)
    assert device.log == [
        *("launch 1", "launch 2", "wait 1", "launch 3", "wait 2", "launch 4"),
        *("wait 3", "wait 4"),
    ]


@pytest.mark.parametrize("spin_ns", [0, 5 * MS])
def test_a_lone_batch_is_completed_without_waiting_for_another(spin_ns: int) -> None:
    device = Slow()
    world = slow_world(device, Plan(max_batch_size=2, wait_ns=0))
    world.spin_ns = spin_ns
    calls = submit_vectors(world, 1)
    later = submit_vectors(world, 1, START_NS + 100 * MS)
    world.at(START_NS + 50 * MS, lambda: device.log.append("50 ms"))

    finish(world)

    assert doubled(calls)
    assert doubled(later)
    assert device.log == ["launch 1", "wait 1", "50 ms", "launch 2", "wait 2"]


def test_a_call_that_comes_while_a_device_is_waited_for_has_a_clock_of_its_own() -> None:
    launched_ns: list[int] = []

    async def body(stack: Any) -> Any:
        launched_ns.append(world.now_ns)
        await asyncio.sleep(0)
        return Doubling(stack)

    def waits(number: int) -> bool:
        if number == 1:
            world.sleep(9 * MS)
            world.producers[0].submit(values=(np.array([4, 0.5]),))
            world.sleep(MS)
        return False

    plan = Plan(max_batch_size=2, wait_ns=5 * MS, is_async=True)
    world = slow_world(Slow(breaks=waits), plan, body)
    submit_vectors(world, 4)
    for at_ms in (1, 12, 60):
        world.at(START_NS + at_ms * MS, lambda: None)

    finish(world)

    assert [(at_ns - START_NS) // MS for at_ns in launched_ns] == [0, 10, 14]


def test_a_device_that_breaks_breaks_only_the_batch_it_broke_in() -> None:
    device = Slow(breaks=lambda number: number == 2)
    world = slow_world(device, Plan(max_batch_size=2, wait_ns=0))
    calls = submit_vectors(world, 6)

    finish(world)

    for i, call in enumerate(calls):
        if i in (2, 3):
            assert repr(call.outcome) == "RuntimeError('device broke in batch 2')"
        else:
            assert np.array_equal(call.outcome, [2.0 * i, 1.0])


def test_a_function_that_raises_on_a_device_has_no_event_to_wait_for() -> None:
    device = Slow()

    def body(stack: Any) -> Any:
        if stack[0, 0] == 2:
            raise LookupError("third")
        return Doubling(stack)

    world = slow_world(device, Plan(max_batch_size=2, wait_ns=0), body)
    calls = submit_vectors(world, 6)

    finish(world)

    assert [type(call.outcome) for call in calls] == [np.ndarray] * 2 + [LookupError] * 2 + [
        np.ndarray
    ] * 2
    assert "launch 3" not in device.log


@pytest.mark.parametrize("suspends", [False, True])
def test_what_an_async_function_returns_comes_from_the_device_too(suspends: bool) -> None:
    device = Slow()

    async def body(stack: Any) -> Any:
        if suspends:
            await asyncio.sleep(0)
        return Doubling(stack)

    world = slow_world(device, Plan(max_batch_size=2, wait_ns=0, is_async=True), body)
    calls = submit_vectors(world, 4)

    finish(world)

    assert doubled(calls)
    assert device.log == ["launch 1", "wait 1", "launch 2", "wait 2"]


@settings(max_examples=100, deadline=None)
@given(
    bursts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=12),
    max_batch_size=st.integers(1, 4),
    wait_ms=st.integers(0, 3),
)
def test_nothing_is_read_before_its_event_for_any_history(
    bursts: list[tuple[int, int]], max_batch_size: int, wait_ms: int
) -> None:
    """Results are -1 and staging may be overwritten until a batch's event has been waited for."""
    device = Slow()
    world = slow_world(device, Plan(max_batch_size, wait_ms * MS, slots=128))
    rounds = []
    at_ns = START_NS
    for gap_ms, times in bursts:
        at_ns += gap_ms * MS
        rounds.append(submit_vectors(world, times, at_ns))

    finish(world)

    assert all(doubled(calls) for calls in rounds)
    in_flight = 0
    for entry in device.log:
        in_flight += 1 if entry.startswith("launch") else -1
        assert 0 <= in_flight <= 2
    waits = [int(entry.split()[1]) for entry in device.log if entry.startswith("wait")]
    assert waits == sorted(waits)


class TimedEvent(LateEvent):
    """Is over some time after the launch; sleeping for it passes the time."""

    world: World
    at_ns: int

    def landed(self) -> bool:
        return self.world.now_ns >= self.at_ns

    def wait(self) -> None:
        self.world.sleep(max(0, self.at_ns - self.world.now_ns))
        super().wait()


class Timed(Slow):
    """A device that takes its time for each batch, one after the other."""

    world: World
    duration_ns = 10 * MS
    free_ns = 0

    def landing(self, kept: object = None) -> Landing:
        late, self._late = self._late, None
        if late is None:
            return Landed()
        self.free_ns = max(self.free_ns, self.world.now_ns) + self.duration_ns
        event = TimedEvent(self, late._number, late._compute, late._host)
        event.world, event.at_ns = self.world, self.free_ns
        return event


def timed_world(plan: Plan, body: Callable[..., Any] | None = None) -> tuple[World, list[int]]:
    """Return a world with a timed device, and when its batches are launched, in ms."""
    device = Timed()
    launched_ms: list[int] = []

    def watch(landing: Any) -> None:
        world.at(landing.at_ns, world.wake)

    def launch(stack: Any) -> Any:
        launched_ms.append((world.now_ns - START_NS) // MS)
        return Doubling(stack)

    world = World(plan, device=device, signature=VECTORS, body=body or launch, watch=watch)
    world.strict = False
    device.world = world
    return world, launched_ms


def test_i4_a_call_that_is_due_while_a_batch_is_on_its_device_is_launched_at_once() -> None:
    world, launched_ms = timed_world(Plan(max_batch_size=2, wait_ns=0, slots=16))
    calls = [submit_vectors(world, 1, START_NS + at_ms * MS) for at_ms in (0, 3, 5)]

    finish(world)

    assert all(doubled(each) for each in calls)
    # The third finds two in flight, and no room until the first has landed.
    assert launched_ms == [0, 3, 10]


def test_a_batch_is_completed_as_soon_as_it_has_landed() -> None:
    world, _ = timed_world(Plan(max_batch_size=2, wait_ns=0, slots=16))
    submit_vectors(world, 1)
    completed_ms: list[int] = []
    complete = world.functions[0].complete

    def timed() -> Any:
        completed_ms.append((world.now_ns - START_NS) // MS)
        return complete()

    world.functions[0].complete = timed  # type: ignore[method-assign]
    world.at(START_NS + 100 * MS, lambda: None)  # nothing else happens for long

    finish(world)

    assert completed_ms == [10]


def test_a_batch_that_has_landed_does_not_wait_for_another_functions_backlog() -> None:
    device = Slow()

    def body(stack: Any) -> Any:
        if stack[0, 0] >= 0:
            return Doubling(stack)
        world.sleep(MS)
        return stack * 2

    plan = Plan(max_batch_size=1, wait_ns=0, slots=64)
    world = World(plan, plan, device=[device, Cpu()], signature=VECTORS, body=body)
    world.strict = False
    calls = submit_vectors(world, 1)
    delivered_ms: list[int] = []
    complete = world.functions[0].complete

    def timed() -> Any:
        delivered_ms.append((world.now_ns - START_NS) // MS)
        return complete()

    world.functions[0].complete = timed  # type: ignore[method-assign]
    for _ in range(40):
        world.at(START_NS, lambda: world.producers[1].submit(values=(np.array([-1.0, 0.5]),)))

    finish(world)

    assert doubled(calls)
    assert delivered_ms[0] <= 2


def test_batches_on_a_device_are_waited_for_when_draining() -> None:
    world, launched_ms = timed_world(Plan(max_batch_size=1, wait_ns=0, slots=16))
    calls = submit_vectors(world, 2)
    world.at(START_NS + MS, world.drain)

    world.producers[0].waiting.clear()
    finish(world)

    assert doubled(calls)
    assert launched_ms == [0, 0]


def test_when_draining_a_device_keeps_no_other_function_waiting() -> None:
    device = Timed()

    async def body(stack: Any) -> Any:
        if stack[0, 0] >= 0:
            return Doubling(stack)  # on the device it takes 10 ms
        over = world.events.create_future()  # type: ignore[union-attr]
        world.at(world.now_ns + 3 * MS, lambda: over.set_result(None))
        await over
        return stack * 2

    plan = Plan(max_batch_size=1, wait_ns=0, is_async=True)
    world = World(
        *(plan, plan),
        device=[device, Cpu()],
        signature=VECTORS,
        body=body,
        watch=lambda landing: world.at(landing.at_ns, world.wake),
    )
    world.strict, device.world = False, world
    calls = submit_vectors(world, 1)
    world.at(START_NS, lambda: world.producers[1].submit(values=(np.array([-1.0, 0.5]),)))
    world.at(START_NS + MS, world.drain)
    completed_ms: dict[int, int] = {}

    def completing(number: int, complete: Callable[[], Any]) -> Any:
        completed_ms[number] = (world.now_ns - START_NS) // MS
        return complete()

    for number, function in enumerate(world.functions):
        function.complete = partial(completing, number, function.complete)  # type: ignore[method-assign]

    finish(world)

    assert doubled(calls)
    assert completed_ms == {0: 10, 1: 3}


def test_what_a_suspended_function_returns_is_not_slept_for_either() -> None:
    async def body(stack: Any) -> Any:
        await asyncio.sleep(0)
        return Doubling(stack)

    world, _ = timed_world(Plan(max_batch_size=2, wait_ns=0, is_async=True, slots=16), body)
    calls = [submit_vectors(world, 1, START_NS + at_ms * MS) for at_ms in (0, 15)]

    finish(world)

    assert all(doubled(each) for each in calls)


# ---- in lockstep ----

LONG_NS = 1000 * MS


class Actor:
    """A producer in a closed loop: it calls, waits for its result, thinks, and calls again."""

    def __init__(self, producer: Producer, steps: int, think_ns: Callable[[], int]) -> None:
        self.producer = producer
        self.steps = steps  # calls still to make
        self.think_ns = think_ns
        self.pauses: dict[int, int] = {}  # nanoseconds that it thinks with so many steps left
        self.called_ns: list[int] = []

    def step(self) -> None:
        self.producer.collect()
        if self.steps == 0:
            self.producer.world.leave(self.producer)
            return
        self.steps -= 1
        call = self.producer.submit()
        assert call is not None
        self.called_ns.append(call.at_ns)

    def answered(self) -> None:
        world = self.producer.world
        think_ns = self.pauses.get(self.steps) or self.think_ns()
        world.at(world.now_ns + think_ns, self.step)


def act(world: World, actors: list[Actor], starts_ns: list[int]) -> None:
    """Let actors act until each has made its steps and left; then the executor drains."""
    playing = {id(actor.producer): actor for actor in actors}

    def completed(execution: Execution) -> None:
        for call in execution.calls:
            actor = playing[id(call.producer)]
            if not actor.producer.gone:
                actor.answered()

    leave = world.leave

    def left(producer: Producer) -> None:
        leave(producer)
        if all(actor.producer.gone for actor in actors):
            world.drain()

    world.completed, world.leave = completed, left  # type: ignore[method-assign]
    for actor, start_ns in zip(actors, starts_ns, strict=True):
        world.at(START_NS + start_ns, actor.step)
    world.run(drain=False)


def sealed(world: World) -> dict[str, int]:
    """How often the first function's batches were sealed for which reason."""
    sizes = world.functions[0].statistics.batch_sizes()
    return {reason: sum(each.values()) for reason, each in sizes.items() if each}


def in_order(world: World) -> Trace:
    """The trace, without who came first in a batch."""
    return [(at_ms, reason, sorted(calls)) for at_ms, reason, calls in trace(world)]


def test_in_lockstep_a_batch_runs_as_soon_as_nobody_is_left_to_wait_for() -> None:
    """That somebody will call nobody knows before he has called once."""
    world = World(Plan(max_batch_size=10, wait_ns=LONG_NS, producers=3, lockstep=True))
    submitting(world, [0, 20, 30, 50], producer=0)
    submitting(world, [1, 23, 37], producer=1)
    submitting(world, [2, 21, 34], producer=2)

    world.run()

    assert in_order(world) == [
        (0, ALL, [1]),
        (20, ALL, [2, 3, 4]),
        (30, ALL, [5, 6, 7]),
        (50, ALL, [8, 9, 10]),
    ]


def test_without_lockstep_the_wait_is_sat_out_for_nobody() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=5 * MS, producers=2))

    act(world, [Actor(producer, 3, lambda: MS) for producer in world.producers], [0, 0])

    assert sealed(world) == {"deadline": 3}


@pytest.mark.parametrize("is_async", [False, True])
def test_actors_in_lockstep_never_sit_out_the_wait(is_async: bool) -> None:
    world = World(
        Plan(32, LONG_NS, duration_ns=MS, is_async=is_async, producers=16, lockstep=True)
    )
    actors = [
        Actor(producer, 20, lambda think_ns=5000 + 1000 * i: think_ns)
        for i, producer in enumerate(world.producers)
    ]

    act(world, actors, [0] * 16)

    assert sealed(world) == {"all": 20}
    assert {len(execution.calls) for execution in world.executions} == {16}
    assert world.now_ns == START_NS + 20 * (MS + 20_000)


@settings(max_examples=200, deadline=None)
@given(
    starts_ns=st.lists(st.integers(0, 20 * MS), min_size=1, max_size=6),
    thoughts=st.lists(st.integers(0, 10 * MS), min_size=1, max_size=20),
    steps=st.integers(1, 8),
    max_batch_size=st.integers(1, 8),
    duration_ns=st.sampled_from([0, 1000, 5 * MS]),
    is_async=st.booleans(),
    spin_ns=st.sampled_from([0, 50_000]),
)
def test_in_lockstep_no_wait_is_sat_out_and_batches_are_as_large_as_they_can_be(
    starts_ns: list[int],
    thoughts: list[int],
    steps: int,
    max_batch_size: int,
    duration_ns: int,
    is_async: bool,
    spin_ns: int,
) -> None:
    """From when all have called once until the first of them has made his last call."""
    actors_count = len(starts_ns)
    world = World(
        Plan(max_batch_size, LONG_NS, duration_ns, is_async, actors_count, lockstep=True)
    )
    world.spin_ns = spin_ns
    thinking = itertools.cycle(thoughts)
    actors = [Actor(producer, steps, lambda: next(thinking)) for producer in world.producers]

    act(world, actors, starts_ns)

    check_outcomes(world)
    assert set(sealed(world)) <= {"size", "all"}
    known_ns = max(actor.called_ns[0] for actor in actors)
    last_ns = min(actor.called_ns[-1] for actor in actors)
    for execution in world.executions:
        if known_ns < execution.at_ns <= last_ns:
            assert len(execution.calls) == min(max_batch_size, actors_count)


@settings(max_examples=200, deadline=None)
@given(
    pauses=st.lists(
        st.dictionaries(st.integers(0, 9), st.sampled_from([45 * MS, 60 * MS, 400 * MS])),
        min_size=2,
        max_size=5,
    ),
    think_ns=st.integers(0, 5 * MS),
    duration_ns=st.sampled_from([0, 1000, MS]),
)
def test_an_actor_that_goes_quiet_costs_at_most_one_wait(
    pauses: list[dict[int, int]], think_ns: int, duration_ns: int
) -> None:
    world = World(Plan(8, 50 * MS, duration_ns, producers=len(pauses), lockstep=True))
    actors = [Actor(producer, 10, lambda: think_ns) for producer in world.producers]
    for actor, each in zip(actors, pauses, strict=True):
        actor.pauses = each

    act(world, actors, [0] * len(actors))

    check_outcomes(world)
    long = sum(pause > 50 * MS for each in pauses for pause in each.values())
    assert sealed(world).get("deadline", 0) <= long


def test_a_wait_in_vain_is_not_repeated_until_the_quiet_one_has_called_again() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=5 * MS, producers=2, lockstep=True))
    submitting(world, [0, 100, 200, 300, 401], producer=0)
    submitting(world, [0, 301, 400, 420], producer=1)

    world.run()

    assert in_order(world) == [
        (0, ALL, [1, 2]),
        (105, DEADLINE, [3]),
        (200, ALL, [4]),
        (300, ALL, [5]),
        (306, DEADLINE, [6]),  # it has called again, and waits for the other in its turn
        (400, ALL, [7]),
        (406, DEADLINE, [8]),
        (420, DRAIN, [9]),
    ]


def test_a_producer_that_dies_or_leaves_is_not_waited_for() -> None:
    """The rest runs the moment the executor hears of it."""
    world = World(Plan(max_batch_size=10, wait_ns=LONG_NS, producers=3, lockstep=True))
    submitting(world, [0, 10], producer=0)
    submitting(world, [0, 11, 50], producer=1)
    submitting(world, [0], producer=2)
    world.at(START_NS + 30 * MS, lambda: world.leave(world.producers[2]))

    world.run()

    assert in_order(world)[:2] == [(0, ALL, [1, 2, 3]), (30, ALL, [4, 5])]


def test_a_producer_that_has_just_come_is_not_waited_for() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=LONG_NS, producers=2, lockstep=True))
    submitting(world, [0, 10], producer=0)
    submitting(world, [0, 30, 50], producer=1)
    world.at(START_NS + 20 * MS, lambda: world.join(0))

    world.run()

    assert in_order(world)[:2] == [(0, ALL, [1, 2]), (30, ALL, [3, 4])]


def test_a_cancelled_call_does_not_make_its_producer_present() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=LONG_NS, producers=3, lockstep=True))
    for producer in range(3):
        submitting(world, [0], producer)
    submitting(world, [10, 20], producer=0)
    submitting(world, [11], producer=1)
    world.at(START_NS + 12 * MS, lambda: world.producers[0].withdraw(world.calls[4]))
    submitting(world, [13, 30], producer=2)

    world.run()

    assert in_order(world)[1] == (20, ALL, [5, 6, 7])


def test_a_producer_with_several_calls_in_flight_is_waited_for_until_it_has_as_many() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=5 * MS, producers=2, lockstep=True))
    submitting(world, [0], producer=0, repeat=3)
    submitting(world, [0, 10], producer=1)
    submitting(world, [11, 12, 13], producer=0)
    submitting(world, [20, 21], producer=0)
    submitting(world, [22, 31], producer=1)
    submitting(world, [30, 32], producer=0)

    world.run()

    assert in_order(world)[:4] == [
        (0, ALL, [1, 2, 3, 4]),
        (13, ALL, [5, 6, 7, 8]),
        (25, DEADLINE, [9, 10, 11]),  # now it keeps two in flight
        (32, ALL, [12, 13, 14]),
    ]


def test_a_function_in_lockstep_does_not_keep_others_out() -> None:
    world = World(
        Plan(10, LONG_NS, duration_ns=2 * MS, producers=2, lockstep=True),
        Plan(10, 5 * MS, duration_ns=2 * MS),
    )
    submitting(world, [1], producer=2)
    actors = [Actor(producer, 20, lambda: 0) for producer in world.producers[:2]]
    actors.append(Actor(world.producers[2], 0, lambda: 0))  # leaves after its call

    act(world, actors, [0, 0, 100 * MS])

    others = [execution for execution in world.executions if execution.function == 1]
    assert [(execution.at_ns - START_NS) // MS for execution in others] == [6]
    assert sealed(world) == {"all": 20}


def test_a_second_batch_is_launched_while_everybody_else_runs() -> None:
    device = Slow()
    second: list[Call] = []

    def body(stack: Any) -> Any:
        if not second:  # called while the first batch is launched
            call = world.producers[1].submit(values=(np.array([1.0, 0.5]),))
            assert call is not None
            second.append(call)
        return Doubling(stack)

    world = slow_world(device, Plan(4, LONG_NS, producers=2, lockstep=True), body)
    calls = submit_vectors(world, 1)
    world.at(START_NS + MS, lambda: None)

    finish(world)

    assert doubled(calls + second)
    assert device.log == ["launch 1", "launch 2", "wait 1", "wait 2"]
    assert sealed(world) == {"all": 2}


# ---- deadlines ----


def test_a_call_that_is_not_launched_by_its_deadline_never_runs() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=10 * MS))
    world.strict = False
    producer = world.producers[0]
    for deadline_ms in (0, 9, 10, 500):
        deadline_ns = START_NS + deadline_ms * MS if deadline_ms else 0
        world.at(START_NS, partial(producer.submit, deadline_ns=deadline_ns))
    world.at(START_NS + 11 * MS, lambda: None)

    finish(world)

    assert [world.calls[n].outcome for n in (1, 2, 3, 4)] == [10, EXPIRED, 30, 40]
    assert world.calls[2].batch is None
    assert sealed(world) == {"deadline": 1}


def test_a_batch_whose_calls_have_all_expired_never_runs() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=10 * MS))
    world.strict = False
    for _ in range(3):
        world.at(START_NS, partial(world.producers[0].submit, ASYNC, None, START_NS + MS))
    submitting(world, [20, 40])

    finish(world)

    outcomes = [world.calls[number].outcome for number in (1, 2, 3, 4, 5)]
    assert outcomes == [EXPIRED, EXPIRED, EXPIRED, 40, 50]
    assert sealed(world) == {"deadline": 1, "drain": 1}
    assert world.producers[0].heard == 1  # an event loop that waited for them


def test_who_is_waited_for_in_vain_is_forgotten_though_nothing_was_left_to_run() -> None:
    world = World(Plan(max_batch_size=10, wait_ns=10 * MS, producers=2, lockstep=True))
    world.strict = False
    for producer in range(2):
        submitting(world, [0], producer)
    world.at(START_NS + 20 * MS, partial(world.producers[0].submit, 0, None, START_NS + 25 * MS))
    submitting(world, [40, 60], producer=0)

    finish(world)

    assert world.calls[3].outcome is EXPIRED
    batch = world.calls[4].batch
    assert batch is not None
    assert batch.at_ns == START_NS + 40 * MS


@settings(max_examples=200, deadline=None)
@given(
    chosen=st.lists(plans, min_size=1, max_size=2),
    history=moves,
    patience_ms=st.lists(st.sampled_from([None, 0, 1, 5, 30]), min_size=1, max_size=5),
)
def test_a_call_runs_by_its_deadline_or_never_for_any_history(
    chosen: list[Plan], history: list[tuple[int, str, int, int]], patience_ms: list[int | None]
) -> None:
    world = World(*chosen)
    world.strict = False
    patience = itertools.cycle(patience_ms)
    deadlines: dict[int, int] = {}
    submit = Producer.submit

    def submit_by(producer: Producer, flags: int = 0) -> Call | None:
        allowed_ms = next(patience)
        deadline_ns = 0 if allowed_ms is None else world.now_ns + allowed_ms * MS
        call = submit(producer, flags, deadline_ns=deadline_ns)
        if call is not None and deadline_ns:
            deadlines[call.number] = deadline_ns
        return call

    play(world, history)
    with mock.patch.object(Producer, "submit", submit_by):
        world.run()

    for call in world.calls.values():
        launched = call.batch is not None
        if launched:
            assert call.batch.at_ns <= deadlines.get(call.number, call.batch.at_ns)
        if not call.producer.gone and call.withdrawn is None:
            assert call.outcome == 10 * call.number if launched else call.outcome is EXPIRED
            assert launched or call.number in deadlines


# ---- whatever a function does ----


class Rude:
    """A result that raises when somebody looks what it is."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise LookupError("look away")


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__", "__mro__"):
            raise SystemExit(name)
        return super().__getattribute__(name)


class Odd(Exception, metaclass=Nameless):
    """An error of which one may ask nothing at all."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise SystemExit

    def __str__(self) -> str:
        raise SystemExit


class Odder(Odd):
    def __str__(self) -> str:
        raise Odd


class Liar(list[int]):
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter([1, 2, 3])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (lambda: [][1], "IndexError"),
        (lambda: (_ for _ in ()).throw(SystemExit(3)), "SystemExit"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "KeyboardInterrupt"),
        (lambda: next(iter(())), "StopIteration"),
        (lambda: (_ for _ in ()).throw(Odd()), "SystemExit while it was described"),
        (lambda: (_ for _ in ()).throw(Odder()), "Odd while it was described"),
        (lambda: None, "BatchResultError"),
        (lambda: [1, 2], "BatchResultError"),
        (Rude, "LookupError"),
        (lambda: [Rude()], "LookupError"),
        (lambda: Liar([1]), "Error"),
    ],
)
def test_the_executor_survives_whatever_a_function_does(
    body: Callable[[], Any], seen: str, is_async: bool
) -> None:
    """And serves the next batch as if nothing had been."""
    runs = []

    def function(xs: list[int], ys: list[int]) -> Any:
        runs.append(xs)
        return body() if len(runs) == 1 else [7]

    async def coroutine(xs: list[int], ys: list[int]) -> Any:
        return function(xs, ys)

    world = World(
        Plan(max_batch_size=1, wait_ns=0, is_async=is_async),
        body=coroutine if is_async else function,
    )
    world.strict = False
    submitting(world, [0, 1])

    finish(world)

    first, second = (world.calls[number].outcome for number in (1, 2))
    assert isinstance(first, Exception)
    if not (is_async and seen == "StopIteration"):  # RuntimeError, as Python has it
        assert seen in f"{type(first).__name__}: {first}"
    assert second == 7


def test_inputs_that_a_function_keeps_or_changes_are_its_own_affair() -> None:
    kept: list[Any] = []

    def body(xs: list[int], ys: list[int]) -> list[int]:
        kept.append((list(xs), xs, ys))
        result = [x + 1 for x in xs]
        xs.clear()
        ys.append(3)
        return result

    world = World(Plan(max_batch_size=2, wait_ns=0), body=body)
    world.strict = False
    submitting(world, [0, 1, 2])

    finish(world)

    assert [world.calls[number].outcome for number in (1, 2, 3)] == [2, 3, 4]
    assert [before for before, _, _ in kept] == [[1], [2], [3]]


TENSORS = signature(array("float64", 2, library="torch"), result=array("float64", 2))


@pytest.mark.parametrize("calls", [2, 4])
def test_what_a_function_does_to_its_tensor_ends_with_the_batch(calls: int) -> None:
    """Gradients above all: they would add up from batch to batch."""

    def saliency(stack: Any) -> Any:
        assert not stack.requires_grad
        stack.requires_grad_()
        (stack * stack).sum().backward()
        return stack.grad

    world = World(
        Plan(max_batch_size=calls, wait_ns=0, slots=16), signature=TENSORS, body=saliency
    )
    world.strict = False
    inputs = submit_vectors(world, 10)

    finish(world)

    assert doubled(inputs)


@pytest.mark.parametrize("calls", [1, 2])
def test_what_a_function_does_to_its_array_ends_with_the_batch(calls: int) -> None:
    def reshape(stack: Any) -> Any:
        result = stack * 2
        stack.shape = (-1,)
        stack.flags.writeable = False
        return result

    world = World(Plan(max_batch_size=calls, wait_ns=0), signature=VECTORS, body=reshape)
    world.strict = False
    inputs = submit_vectors(world, 6)

    finish(world)

    assert doubled(inputs)


def test_a_function_may_return_its_input_stack() -> None:
    world = World(Plan(max_batch_size=4, wait_ns=0), signature=VECTORS, body=lambda stack: stack)
    world.strict = False
    calls = submit_vectors(world, 10)

    finish(world)

    assert all(np.array_equal(call.outcome, [i, 0.5]) for i, call in enumerate(calls))


# ---- waking ----


def test_those_who_sleep_are_woken_and_nobody_else() -> None:
    world = World(Plan(max_batch_size=4, wait_ns=0, producers=5))
    on_slot, on_completions, in_loop, asynchronous, busy = world.producers
    for producer in world.producers:
        world.at(START_NS, lambda p=producer: p.submit(flags=ASYNC * (p is asynchronous)))

    def fall_asleep() -> None:
        on_slot.wire.producer.arm(on_slot.outstanding[0].ticket, WAITER)
        on_completions.wire.producer.join_completions(THREAD)
        in_loop.wire.producer.join_completions(LOOP)

    world.at(START_NS, fall_asleep)

    world.run()

    assert [producer.woken for producer in world.producers] == [1, 1, 0, 0, 0]
    assert [producer.heard for producer in world.producers] == [0, 0, 1, 1, 0]
    assert busy.woken == 0


def test_who_sleeps_for_a_slot_hears_of_slots_that_were_cancelled() -> None:
    world = World(Plan(max_batch_size=4, wait_ns=1000 * MS, slots=1))
    producer = world.producers[0]
    submitting(world, [0])

    def cancel() -> None:
        producer.wire.producer.join_completions(THREAD)
        producer.withdraw(world.calls[1])

    world.at(START_NS + MS, cancel)
    world.at(START_NS + 2 * MS, lambda: seen.append(producer.wire.producer.free_slots))
    seen: list[int] = []

    world.run()

    assert producer.woken == 1
    assert seen == [1]


# ---- draining and stopping ----


def test_draining_refuses_new_calls_and_runs_those_that_were_published() -> None:
    world = World(Plan(max_batch_size=2, wait_ns=1000 * MS, duration_ns=10 * MS))
    producer = world.producers[0]
    submitting(world, [0], repeat=5)
    seen: list[Any] = []
    ring = producer.wire.producer
    world.at(START_NS + 15 * MS, lambda: seen.append(ring.status))
    world.at(START_NS + 15 * MS, lambda: world.loop.post(world.loop.drain))
    world.at(START_NS + 25 * MS, lambda: seen.append(ring.submit((0, 0), 0)))
    world.at(START_NS + 25 * MS, lambda: seen.append(ring.status))

    world.strict = False
    world.run()

    assert seen == [OPEN, SUBMIT_CLOSED, DRAINING]
    assert ring.status == CLOSED
    assert [world.calls[number].outcome for number in range(1, 6)] == [10, 20, 30, 40, 50]


def test_a_producer_that_attaches_to_a_draining_executor_is_told_so() -> None:
    world = World(Plan(max_batch_size=2, wait_ns=0, duration_ns=10 * MS))
    submitting(world, [0], repeat=5)
    late: list[Producer] = []
    world.at(START_NS + MS, lambda: world.loop.post(world.loop.drain))
    world.at(START_NS + 12 * MS, lambda: late.append(world.attach(0)))

    world.strict = False
    world.run()

    assert late[0].wire.producer.status == CLOSED
    assert late[0].submit() is None


def test_stopping_ends_the_loop_after_the_batch_in_progress() -> None:
    world = World(Plan(max_batch_size=2, wait_ns=1000 * MS, duration_ns=10 * MS))
    producer = world.producers[0]
    submitting(world, [0], repeat=5)
    world.at(START_NS + MS, lambda: world.loop.post(world.loop.stop))

    with pytest.raises(AssertionError, match="no outcome"):
        world.run()

    assert [world.calls[number].outcome for number in (1, 2)] == [10, 20]
    assert len(producer.outstanding) == 3
    assert producer.wire.producer.status == CLOSED


def test_draining_without_work_ends_at_once() -> None:
    world = World(Plan(), Plan(is_async=True))

    world.run()

    assert world.now_ns == START_NS


def test_an_error_of_the_function_reaches_each_caller_in_an_exception_of_its_own() -> None:
    world = World(Plan(max_batch_size=3, wait_ns=0))
    world.fails = lambda execution: BatchResultError("broken")
    submitting(world, [0], repeat=3)

    world.run()

    outcomes = [world.calls[number].outcome for number in (1, 2, 3)]
    assert {str(outcome) for outcome in outcomes} == {"broken"}
    assert len({id(outcome) for outcome in outcomes}) == 3
