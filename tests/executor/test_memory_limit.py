"""Batches for which there is too little memory: how large they become, and how they recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import shmbatch
from shmbatch.executor.memory_limit import PATIENCE, PATIENCE_MAX, MemoryLimit, is_out_of_memory
from shmbatch.testing import Simulation

sizes = st.integers(1, 200)


def served(limit: MemoryLimit, room: int, batches: int) -> int:
    """Run full batches where *room* calls fit; return how many executions did not."""
    failed = 0
    for _ in range(batches):
        size = limit.limit
        while size > room:
            failed += 1
            limit.exceeded(size)
            assert limit.limit < size
            size = limit.limit
        limit.fitted(size)
        limit.settled()
        if limit.is_over:
            break
    return failed


@given(sizes, sizes)
@settings(max_examples=60)
def test_it_comes_to_what_there_is_room_for_and_seldom_tries_more(most: int, room: int) -> None:
    limit = MemoryLimit(most)
    if room >= most:
        return
    limit.exceeded(most)
    if room == 1 or most == 1:
        return
    assert served(limit, room, 3000) <= 40
    assert room // 2 <= limit.limit <= room + 1
    assert served(limit, room, 3000) <= 4  # of thousands


@given(sizes, sizes)
@settings(max_examples=60)
def test_it_is_over_soon_after_memory_has_come_back(most: int, room: int) -> None:
    limit = MemoryLimit(most)
    limit.exceeded(most)
    if 1 < room < most:
        served(limit, room, 50)
    tries = 64 * PATIENCE * most.bit_length() ** 2
    assert served(limit, most, tries) == 0
    assert limit.is_over


class AnyHistory(RuleBasedStateMachine):
    """Whatever fits and does not, in whichever order."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = MemoryLimit(24)

    @rule(size=st.integers(1, 24), over=st.booleans())
    def fits(self, size: int, over: bool) -> None:
        before = self.limit.limit
        self.limit.fitted(min(size, before))
        assert self.limit.limit >= before
        if over:
            self.limit.settled()
        if self.limit.is_over:
            self.limit = MemoryLimit(24)

    @rule(size=st.integers(2, 24))
    def does_not_fit(self, size: int) -> None:
        size = min(size, self.limit.limit)
        if size > 1:
            self.limit.exceeded(size)
            assert self.limit.limit < size

    @rule()
    def does_not_fit_alone(self) -> None:
        before = self.limit.limit
        self.limit.exceeded(1)
        assert self.limit.limit >= before

    @invariant()
    def it_is_a_size_of_a_batch(self) -> None:
        assert 1 <= self.limit.limit <= 24
        assert PATIENCE <= self.limit._state.patience <= PATIENCE_MAX


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=25, stateful_step_count=20)


def test_an_input_that_is_too_large_alone_does_not_lower_it_for_others() -> None:
    limit = MemoryLimit(32)
    for size in (32, 16, 8, 4, 2):
        limit.exceeded(size)
    assert limit.limit == 1
    limit.exceeded(1)
    assert limit.limit == 32


def test_small_batches_say_nothing_about_larger_ones() -> None:
    limit = MemoryLimit(32)
    limit.exceeded(32)
    for _ in range(100 * PATIENCE):
        limit.fitted(15)
    assert limit.limit == 16
    for _ in range(PATIENCE):
        limit.fitted(16)
    assert limit.limit == 24  # half way to what did not fit


# ---- which errors ----


class OutOfMemoryError(RuntimeError):
    pass


def test_torch_is_known_by_the_path_of_its_class() -> None:
    of_torch = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
    of_old = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch.cuda"})
    derived = type("Mine", (of_torch,), {})
    for each in (MemoryError, of_torch, of_old, derived):
        assert is_out_of_memory(each("no room"))
    odd = type("Odd", (Exception,), {"__module__": [], "__class__": property(int)})
    for other in (OutOfMemoryError("a user's own"), RuntimeError("CUDA out of memory"), odd()):
        assert not is_out_of_memory(other)


def test_it_is_the_path_that_torch_has() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("no room"))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("no room"))


# ---- in a simulated executor ----


class Memory:
    """Room for so many calls in a batch; a function that needs it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def function(self) -> Callable[..., Any]:
        def triple(xs: list[int]) -> list[int]:
            self.sizes.append(len(xs))
            if len(xs) > self.room or 666 in xs:
                raise MemoryError(f"{len(xs)} calls")
            return [3 * x for x in xs]

        return triple


def made(simulation: Simulation, inputs: range) -> list[Any]:
    producer = simulation.producer()
    calls = [producer.call(x) for x in inputs]
    simulation.run()
    return [call.error() or call.get() for call in calls]


def batched(function: Callable[..., Any], **options: Any) -> Any:
    return shmbatch.batched(**{"max_batch_size": 16, "wait_ms": 1, **options})(function)


@pytest.mark.parametrize("options", [{"idempotent": True}, {"on_error": "isolate"}])
def test_an_idempotent_function_is_retried_in_batches_that_fit(options: dict[str, Any]) -> None:
    memory = Memory(5)
    with Simulation(batched(memory.function(), **options)) as simulation:
        assert made(simulation, range(16)) == [3 * x for x in range(16)]
        assert memory.sizes == [16, 8, 4, 4, 4, 4]
        counts = simulation.functions[0].counts(1)
        assert counts["memory_limit"] == 4
        assert (counts["out_of_memory"], counts["halved"]) == (2, 2)
        assert counts["max_batch_size"] == 16
        memory.sizes.clear()
        assert made(simulation, range(16)) == [3 * x for x in range(16)]
        assert memory.sizes == [4, 4, 4, 4]  # it was remembered
        memory.room = 16
        for _ in range(40):
            made(simulation, range(16))
        assert simulation.functions[0].counts(1)["memory_limit"] is None
        assert memory.sizes[-1] == 16


def test_another_function_gives_the_error_to_all_and_no_limit_is_set() -> None:
    memory = Memory(5)
    with Simulation(batched(memory.function())) as simulation:
        outcomes = made(simulation, range(16))
        assert [str(each) for each in outcomes] == 16 * ["16 calls"]
        assert memory.sizes == [16]
        counts = simulation.functions[0].counts(1)
        assert (counts["memory_limit"], counts["out_of_memory"]) == (None, 1)


def test_an_input_that_is_too_large_by_itself_gets_the_error_alone() -> None:
    memory = Memory(16)
    with Simulation(batched(memory.function(), idempotent=True)) as simulation:
        outcomes = made(simulation, range(660, 676))
        assert isinstance(outcomes[6], MemoryError)
        assert [each for each in outcomes if isinstance(each, int)] == [
            3 * x for x in range(660, 676) if x != 666
        ]
        assert simulation.functions[0].counts(1)["memory_limit"] is None
        memory.sizes.clear()
        made(simulation, range(16))
        assert memory.sizes == [16]
        # Alone it sets no limit either, and one that was set before it leaves as it was.
        made(simulation, range(666, 667))
        assert simulation.functions[0].counts(1)["memory_limit"] is None
        assert not simulation.functions[0].retries.active
        memory.room = 5
        made(simulation, range(16))
        made(simulation, range(664, 668))
        assert simulation.functions[0].counts(1)["memory_limit"] == 4


@given(st.integers(2, 16), st.integers(0, 15))
@settings(max_examples=40, deadline=None)
def test_such_an_input_costs_no_more_when_it_comes_again_and_again(size: int, at: int) -> None:
    memory = Memory(16)
    with Simulation(batched(memory.function(), idempotent=True)) as simulation:
        ran: list[list[int]] = []
        for _ in range(4):
            made(simulation, range(666 - at % size, 666 - at % size + size))
            ran.append(memory.sizes.copy())
            memory.sizes.clear()
        assert ran == 4 * [ran[0]]
        made(simulation, range(16))
        assert memory.sizes == [16]


@pytest.mark.parametrize(
    ("sizes", "room", "tried"),
    [
        ((1, 8, 16), 4, [16, 8, *8 * [1], 8, *8 * [1]]),  # again after PATIENCE full ones
        ((1, 2, 3, 4, 8, 12, 16), 4, [16, 8, *4 * [4]]),
        ((6, 8, 12, 16), 7, [16, 8, 6, 2, 6, 2]),
        ((12, 16), 12, [16, 12, 4]),
        ((16,), 16, [16]),
    ],
)
def test_of_allowed_sizes_no_two_are_tried_that_take_the_same_room(
    sizes: tuple[int, ...], room: int, tried: list[int]
) -> None:
    ran: list[int] = []

    def padded(xs: list[int]) -> list[int]:
        ran.append(len(dict.fromkeys(xs)))
        if len(xs) > room:
            raise MemoryError
        return xs

    function = batched(padded, idempotent=True, batch_sizes=sizes)
    with Simulation(function) as simulation:
        assert made(simulation, range(16)) == list(range(16))
        assert ran == tried
        room = 16
        for _ in range(10 * PATIENCE):
            made(simulation, range(16))
        assert simulation.functions[0].counts(1)["memory_limit"] is None


def test_below_the_smallest_allowed_size_the_input_to_blame_is_still_found() -> None:
    memory = Memory(8)
    function = batched(memory.function(), max_batch_size=8, idempotent=True, batch_sizes=(8,))
    with Simulation(function) as simulation:
        outcomes = made(simulation, range(664, 672))
    assert [type(each) for each in outcomes] == [int, int, MemoryError, *5 * [int]]


def test_memory_that_runs_out_while_staging_is_met_by_halving_for_any_function() -> None:
    ran: list[int] = []

    def once(xs: list[int]) -> list[int]:
        ran.extend(xs)
        return xs

    with Simulation(batched(once)) as simulation:
        staging = simulation.functions[0]._staging
        gather = staging.gather

        def short(batch: Any) -> Any:
            if batch.count > 3:
                raise MemoryError
            return gather(batch)

        staging.gather = short  # type: ignore[method-assign]
        assert made(simulation, range(16)) == list(range(16))
    assert sorted(ran) == list(range(16))  # each once


def test_what_the_function_raises_in_a_part_of_such_a_batch_is_that_parts() -> None:
    def picky(xs: list[int]) -> list[int]:
        if 3 in xs:
            raise ValueError(f"{xs}")
        return xs

    with Simulation(batched(picky, max_batch_size=8)) as simulation:
        staging = simulation.functions[0]._staging
        gather = staging.gather

        def short(batch: Any) -> Any:
            if batch.count > 2:
                raise MemoryError
            return gather(batch)

        staging.gather = short  # type: ignore[method-assign]
        assert [str(each) for each in made(simulation, range(8))] == [
            *("0", "1", "[2, 3]", "[2, 3]", "4", "5", "6", "7")
        ]
