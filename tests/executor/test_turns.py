"""Who waits for whom: the table of turns.py row by row, and the loop that goes by it."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbatch.contract.definition import InstanceDefinition
from shmbatch.executor.batcher import NEVER_NS, SealReason
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.turns import Turns, share_instances
from tests.executor.worlds import MS, START_NS, Call, Plan, World

ONE, OTHER = InstanceDefinition("One()", object), InstanceDefinition("Other()", object)


@dataclass
class Fake:
    """What `Turns` looks at of a served function."""

    name: str
    instance: InstanceDefinition | None = ONE
    is_plain: bool = False
    depth: int = 1
    in_flight: int = 0
    due_ns: int = NEVER_NS  # and no call waits
    turns: Turns | None = field(default=None, init=False)
    retries: Any = field(default_factory=lambda: SimpleNamespace(waiting=[]), init=False)

    @property
    def definition(self) -> Any:
        return SimpleNamespace(name=self.name, instance=self.instance)

    @property
    def flights(self) -> deque[int]:
        return deque(range(self.in_flight))

    @property
    def is_busy(self) -> bool:
        return bool(self.in_flight or self.retries.waiting)

    @property
    def batcher(self) -> Any:
        is_due = self.due_ns != NEVER_NS
        return SimpleNamespace(due_ns=self.due_ns, reason=SealReason.DEADLINE if is_due else None)

    @property
    def inbox(self) -> Any:
        return SimpleNamespace(pending=lambda: int(self.due_ns != NEVER_NS))

    def is_due_before(self, other: Any) -> bool:
        return ServedFunction.is_due_before(self, other)  # type: ignore[arg-type]

    def admitted(self) -> bool:
        assert self.turns is not None
        return self.turns.admit(self)  # type: ignore[arg-type]


def sharing(*functions: Fake) -> None:
    share_instances(functions)  # type: ignore[arg-type]


def queues(*functions: Fake) -> None:
    """Make them queues of one function, as `ServedFunction.queue` does."""
    turns = Turns()
    for each in functions:
        each.turns = turns
        turns.members.append(each)  # type: ignore[arg-type]


# ---- the table -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])  # as of async functions, and of a GPU
def test_a_plain_method_waits_for_every_batch_of_its_instance(depth: int) -> None:
    act = Fake("One.act", depth=depth)
    judge = Fake("One.judge", depth=depth)
    refresh = Fake("One.refresh", is_plain=True, due_ns=5)
    sharing(act, judge, refresh)
    assert refresh.admitted()
    act.in_flight = depth
    assert not refresh.admitted()
    act.in_flight, judge.in_flight = 0, 1
    assert not refresh.admitted()


def test_plain_methods_of_an_instance_wait_for_each_other() -> None:
    refresh, told = Fake("One.refresh", is_plain=True), Fake("One.told", is_plain=True)
    sharing(refresh, told)
    refresh.in_flight = 1
    assert not told.admitted()
    refresh.in_flight, refresh.due_ns, told.due_ns = 0, 1, 2
    assert told.admitted(), "which of the two goes first is the loop's business"


def test_a_batch_waits_for_a_plain_method_that_runs_or_has_been_due_for_longer() -> None:
    act, refresh = Fake("One.act", due_ns=5), Fake("One.refresh", is_plain=True)
    sharing(act, refresh)
    assert act.admitted()
    refresh.in_flight = 1
    assert not act.admitted()
    refresh.in_flight, refresh.due_ns = 0, 5
    assert not act.admitted(), "a tie is the plain method's"
    refresh.due_ns = 6
    assert act.admitted()


def test_batches_of_different_methods_run_at_the_same_time() -> None:
    act, judge = Fake("One.act", due_ns=5), Fake("One.judge", in_flight=1)
    sharing(act, judge, Fake("One.refresh", is_plain=True))
    assert act.admitted()


def test_instances_do_not_wait_for_each_other_and_functions_for_nobody() -> None:
    act, refresh = Fake("One.act"), Fake("One.refresh", is_plain=True, in_flight=1)
    foreign = [
        Fake("Other.act", OTHER, due_ns=5),
        Fake("Other.refresh", OTHER, is_plain=True, due_ns=5),
    ]
    function, alone = Fake("f", None), Fake("Third.act", InstanceDefinition("Third()", object))
    sharing(act, function, *foreign, refresh, alone)
    assert not act.admitted()
    assert [each.admitted() for each in foreign] == [False, True]
    foreign[1].due_ns = NEVER_NS
    assert foreign[0].admitted()
    assert function.turns is alone.turns is None, "who never waits is not asked"


@pytest.mark.parametrize("depth", [1, 2])
def test_queues_of_one_function_together_have_as_many_in_flight_as_one(depth: int) -> None:
    own, other = Fake("f", None, depth=depth), Fake("f", None, depth=depth)
    queues(own, other)
    own.in_flight = depth
    assert not other.admitted()
    own.in_flight, other.in_flight = depth - 1, 0
    assert other.admitted()
    other.in_flight = 1
    assert own.admitted() is (depth == 2 and own.in_flight + other.in_flight < 2)


def test_a_queue_of_a_method_takes_turns_with_the_plain_ones_too() -> None:
    act, refresh = Fake("One.act"), Fake("One.refresh", is_plain=True)
    sharing(act, refresh)
    queue = Fake("One.act", due_ns=5)
    queue.turns = act.turns
    assert act.turns is not None
    act.turns.members.append(queue)  # type: ignore[arg-type]
    refresh.due_ns = 4
    assert not queue.admitted()
    refresh.due_ns, queue.in_flight = 4, 1
    assert not refresh.admitted()


# ---- the loop ------------------------------------------------------------------------------


def world_of(*plans: Plan, plain: tuple[int, ...] = (), instances: tuple[Any, ...] = ()) -> World:
    """A world whose functions are methods: of ONE, or as *instances* says."""
    world = World(*plans)
    world.strict = False  # who has to wait is launched later than the contract's I4 says
    for number, function in enumerate(world.functions):
        instance = instances[number] if instances else ONE
        function.definition = replace(function.definition, instance=instance)
        function.is_plain = number in plain
    share_instances(world.functions)
    world.at(START_NS + 100_000 * MS, lambda: None)  # when it drains, nothing waits any more
    return world


def calling(world: World, function: int, *times_ms: float) -> list[Call]:
    """Have calls made at these times; they are in the list when the world has run."""
    calls: list[Call] = []
    producer = next(each for each in world.producers if each.function_number == function)

    def call() -> None:
        made = producer.submit()
        assert made is not None
        calls.append(made)

    for at_ms in times_ms:
        world.at(START_NS + round(at_ms * MS), call)
    return calls


def spans(calls: list[Call]) -> list[tuple[float, float]]:
    """From when to when each call ran, in ms."""
    found = []
    for call in calls:
        assert call.batch is not None
        run = call.batch
        found.append(((run.at_ns - START_NS) / MS, (run.until_ns - START_NS) / MS))
    return found


def test_a_plain_call_runs_between_the_batches_of_an_async_method() -> None:
    world = world_of(
        Plan(max_batch_size=1, wait_ns=0, duration_ns=10 * MS, is_async=True),
        Plan(max_batch_size=1, wait_ns=0, duration_ns=5 * MS, is_async=True),
        plain=(1,),
    )
    acts, refreshes = calling(world, 0, 0, 1, 3), calling(world, 1, 2)
    world.run()
    assert spans(acts) == [(0, 10), (10, 20), (25, 35)]
    assert spans(refreshes) == [(20, 25)], "the second act was due before it, the third after it"


def test_a_stream_of_batches_does_not_keep_a_plain_call_waiting() -> None:
    plan = Plan(max_batch_size=1, wait_ns=0, duration_ns=10 * MS, is_async=True, slots=64)
    world = world_of(plan, plan, Plan(max_batch_size=1, wait_ns=0), plain=(2,))
    # Batches of two methods that overlap: there is always one in flight.
    calling(world, 0, *range(0, 300, 10))
    calling(world, 1, *range(5, 305, 10))
    refreshes = calling(world, 2, 51)
    world.run()
    assert spans(refreshes) == [(60, 60)]


def test_a_stream_of_plain_calls_does_not_keep_a_batch_waiting() -> None:
    world = world_of(
        Plan(max_batch_size=4, wait_ns=20 * MS),
        Plan(max_batch_size=1, wait_ns=0, duration_ns=10 * MS, is_async=True, slots=64),
        plain=(1,),
    )
    acts = calling(world, 0, 51)
    calling(world, 1, *range(0, 300, 5))  # twice as many as can run
    world.run()
    # Due at 71. At 50 the plain calls of 25 and later still wait; those of 75 and later follow.
    ((at_ms, _),) = spans(acts)
    due_before = sum(time < 71 for time in range(0, 300, 5))
    assert at_ms == 10 * due_before


def test_another_instance_and_a_function_go_on_meanwhile() -> None:
    slow = Plan(max_batch_size=1, wait_ns=0, duration_ns=10 * MS, is_async=True)
    quick = Plan(max_batch_size=1, wait_ns=0)
    world = world_of(slow, quick, quick, quick, plain=(1, 2), instances=(ONE, ONE, OTHER, None))
    calling(world, 0, 0)
    mine, theirs, nobodys = calling(world, 1, 1), calling(world, 2, 2), calling(world, 3, 3)
    world.run()
    assert [spans(each) for each in (mine, theirs, nobodys)] == [[(10, 10)], [(2, 2)], [(3, 3)]]


def test_what_was_held_back_for_a_plain_call_goes_on_when_that_is_given_up() -> None:
    world = world_of(
        Plan(max_batch_size=1, wait_ns=0, duration_ns=10 * MS, is_async=True),
        Plan(max_batch_size=1, wait_ns=0),
        Plan(max_batch_size=1, wait_ns=0),
        plain=(2,),
    )
    calling(world, 0, 0)
    refreshes = calling(world, 2, 1)
    held, later = calling(world, 1, 2), calling(world, 1, 4)
    world.at(START_NS + 3 * MS, lambda: refreshes[0].producer.withdraw(refreshes[0]))
    world.run()
    assert spans(held + later) == [(3, 3), (4, 4)], "with the next look, not with the next call"
    assert refreshes[0].batch is None


def test_queues_of_an_async_function_never_overlap() -> None:
    plan = Plan(max_batch_size=2, wait_ns=0, duration_ns=10 * MS, is_async=True)
    world = World(plan, plan)
    world.strict = False
    own, other = world.functions
    other.definition = replace(other.definition, name=own.definition.name)
    own.turns = other.turns = Turns()
    own.turns.members += [own, other]
    world.at(START_NS + 1000 * MS, lambda: None)
    mine, others = calling(world, 0, 0, 1, 2, 3), calling(world, 1, 0, 1, 2, 3)
    world.run()
    runs = sorted(set(spans(mine + others)))
    assert all(one[1] <= after[0] for one, after in itertools.pairwise(runs))
    assert len(runs) >= 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 12), st.integers(0, 7)),
        min_size=2,
        max_size=5,
    ),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), min_size=1, max_size=40),
)
def test_whatever_comes_a_plain_method_is_alone_and_nothing_that_was_due_later_passes_it(
    methods: list[tuple[bool, bool, int, int]], made: list[tuple[int, int]]
) -> None:
    plans = [
        Plan(
            max_batch_size=1 if is_plain else 3,
            wait_ns=0 if is_plain else wait_ms * MS,
            duration_ns=duration_ms * MS,
            is_async=is_async,
            slots=64,
        )
        for is_plain, is_async, duration_ms, wait_ms in methods
    ]
    plain = tuple(number for number, method in enumerate(methods) if method[0])
    world = world_of(*plans, plain=plain)
    calls: list[tuple[int, list[Call]]] = []
    for function, at_ms in made:
        number = function % len(methods)
        calls.append((number, calling(world, number, at_ms)))
    world.run()

    found = {}
    for number, (call,) in calls:
        assert call.outcome == 10 * call.number, "everybody has a turn"
        assert call.batch is not None
        run = found.setdefault(id(call.batch), [number, call.batch, call.at_ns])
        run[2] = min(run[2], call.at_ns)
    runs = [
        (number, run, first_ns + plans[number].wait_ns) for number, run, first_ns in found.values()
    ]
    for number, run, due_ns in runs:
        if number not in plain:
            continue
        for other_number, other, other_due_ns in runs:
            if other is run:
                continue
            apart = other.until_ns <= run.at_ns or run.until_ns <= other.at_ns
            assert apart, "a plain method is alone"
            passed = due_ns < other.at_ns < run.at_ns
            is_full = len(other.calls) == plans[other_number].max_batch_size  # due before its time
            assert not passed or other_due_ns <= due_ns or is_full
