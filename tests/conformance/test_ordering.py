"""In which order calls run, and in which order results come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import shmbatch
from shmbatch.errors import InputTypeError
from tests.conformance.calling import batches, outcomes
from tests.processes import PATIENCE_S, Gate, Program, Served, wait_until

# Makes two calls, says so, and then which batch they were in.
OTHER = """
import shmbatch
gated = shmbatch.connect("conforming.gated").with_options(timeout=20)
calls = [gated.spawn(x) for x in (100, 101)]
print("called", flush=True)
print(*[call.get()[0] for call in calls], flush=True)
"""


def test_results_of_a_map_come_in_the_order_of_its_inputs(executor: Served) -> None:
    # Row 30. Spec: map.
    double = executor.connect("double")
    inputs = [5, 1, 4, 1, 3] * 40
    expected = [2 * x for x in inputs]
    assert list(double.map(inputs)) == expected
    assert list(double.starmap((x,) for x in inputs)) == expected


def test_results_of_a_map_can_come_as_they_are_done(executor: Served, module_gate: Gate) -> None:
    # Row 30. Spec: map. A refused input is done before one that still runs.
    inputs = [1, "no number"]
    results = executor.connect("gated").map(inputs, order_outputs=False, return_exceptions=True)
    assert isinstance(next(results), InputTypeError)
    module_gate.open()
    assert batches([next(results)]) == [[1]]
    module_gate.arrived()
    ordered = executor.connect("gated").map(inputs, return_exceptions=True)
    module_gate.open()
    assert batches([next(ordered)]) == [[1]]
    assert isinstance(next(ordered), InputTypeError)


def test_a_map_ends_with_its_shortest_iterable(executor: Served) -> None:
    # Row 30. Spec: map.
    subtract = executor.connect("subtract")
    assert list(subtract.map([5, 30, 7], [3, 10])) == [2, 20]
    assert list(subtract.map([], [])) == []


def test_a_map_reads_its_inputs_as_it_goes(executor: Served, module_gate: Gate) -> None:
    # Row 28. Spec: map.
    read = 0

    def inputs() -> Iterator[int]:
        nonlocal read
        while True:  # never all of them
            yield read
            read += 1

    def made() -> int:
        counts = executor.statistics("gated")
        return int(counts["calls_in_flight"] + counts["calls_waiting"])

    results = executor.connect("gated").map(inputs())
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, results)
        wait_until(lambda: made() >= 8, "the map has made two batches of calls")
        module_gate.arrived()
        module_gate.open()
        assert first.result(PATIENCE_S)[1][0] == 0
    assert read == 8 - 1  # counted when the next one is asked for
    module_gate.arrived()  # the second batch
    results.close()
    module_gate.open()
    assert executor.connect("double").remote(1) == 2  # once the executor is free again


def test_for_each_returns_when_all_have_run(executor: Served) -> None:
    # Row 30. Spec: map.
    before = executor.statistics("double")["calls_done"]
    executor.connect("double").for_each(range(100))
    assert executor.statistics("double")["calls_done"] == before + 100


def test_the_map_family_has_its_twins_for_event_loops(executor: Served) -> None:
    # Row 30. Spec: map. Spec: async.
    subtract, double = executor.connect("subtract"), executor.connect("double")

    async def fives() -> AsyncIterator[int]:
        for _ in range(2):
            yield 5

    async def main() -> list[list[int]]:
        await double.for_each.aio([1, 2])
        return [
            [y async for y in subtract.map.aio(fives(), [3, 4])],
            [y async for y in subtract.starmap.aio([(5, 3), (5, 4)])],
        ]

    assert asyncio.run(main()) == [[2, 1], [2, 1]]


def test_what_was_spawned_is_gathered_in_order(executor: Served) -> None:
    # Row 30. Spec: map. Instead of Modal's spawn_map.
    double = executor.connect("double")
    calls = [double.spawn(x) for x in (3, 1, 2)]
    assert shmbatch.FunctionCall.gather(*calls, timeout=PATIENCE_S) == [6, 2, 4]
    assert not hasattr(double, "spawn_map")


def test_calls_of_one_caller_run_in_the_order_in_which_they_were_made(
    executor: Served, module_gate: Gate
) -> None:
    # Row 25. Row 26. There are no priorities, large and small alike.
    gated = executor.connect("gated")
    calls = [gated.spawn(0)]
    module_gate.arrived()
    calls += [gated.spawn(x) for x in (9, 8, 7, 6, 5, 4)]
    module_gate.open(3)
    told = [call.get(PATIENCE_S) for call in calls]
    assert batches(told) == [[0], [9, 8, 7, 6], [5, 4]]


def test_of_several_functions_the_earliest_due_runs_first(
    executor: Served, module_gate: Gate
) -> None:
    # Row 25. Not the one with most calls, nor the one that was called last.
    busy = executor.connect("gated").spawn(0)
    module_gate.arrived()
    first = executor.connect("eager").spawn(1)
    many = [executor.connect("full").spawn(x) for x in range(4)]
    module_gate.open()
    assert first.get(PATIENCE_S)[0] < many[0].get(PATIENCE_S)[0]
    busy.get(PATIENCE_S)


def test_callers_take_turns_in_a_batch(executor: Served, module_gate: Gate) -> None:
    # Row 26. A peer's queue is first come, first served: two calls behind 12 wait for all.
    gated = executor.connect("gated")
    calls = [gated.spawn(0)]
    module_gate.arrived()
    calls += [gated.spawn(x) for x in range(1, 13)]
    with Program(OTHER) as other:
        assert other.line() == "called"
        module_gate.open(5)
        told = dict(call.get(PATIENCE_S) for call in calls)
        numbers = {int(number) for number in other.line().split()}
    (number,) = numbers
    assert number == sorted(told)[1], "its calls are in the first batch of four"
    assert sorted(told[number]) == [1, 2, 100, 101]


def test_functions_do_not_share_batches(executor: Served) -> None:
    # Row 24. To group by a key is to have a function, or a set of parameters, for each.
    full, pairs = executor.connect("full"), executor.connect("pairs")
    waiting = [full.spawn(x) for x in (1, 2, 3)]
    assert batches(outcomes(pairs, [7, 8])) == [[7, 8]]
    assert not any(call.done() for call in waiting)
    waiting.append(full.spawn(4))
    assert batches(call.get(PATIENCE_S) for call in waiting) == [[1, 2, 3, 4]]


@pytest.mark.no_transport
@pytest.mark.parametrize("option", ["priority", "batch_by", "key"])
def test_priorities_and_keys_are_refused_and_not_ignored(option: str) -> None:
    # Row 24. Row 25.
    with pytest.raises(TypeError, match=option):
        shmbatch.batched(max_batch_size=4, wait_ms=0, **{option: 1})  # type: ignore[arg-type]
