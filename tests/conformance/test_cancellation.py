"""What becomes of one input that is given up, and of those that share its batch."""

from __future__ import annotations

import asyncio

import pytest

from shmbatch.errors import CallCancelled, ExecutorGone
from tests import processes
from tests.conformance.calling import batches, outcomes
from tests.processes import PATIENCE_S, Gate, Program, Served, wait_until

# Makes the calls that it is told, says so, and never asks for a result.
CALLER = """
import sys, shmbatch
function = shmbatch.connect(sys.argv[1])
calls = [function.spawn(int(x)) for x in sys.argv[2:]]
print("called", flush=True)
input()
"""


def test_a_call_cancelled_before_its_launch_never_runs(executor: Served) -> None:
    # Row 29. Spec: cancel. It counts towards no batch.
    full = executor.connect("full")
    calls = [full.spawn(x) for x in (1, 2, 3)]
    assert calls[1].cancel()
    with pytest.raises(CallCancelled, match=r"the call of 'conforming\.full' was cancelled"):
        calls[1].get(PATIENCE_S)
    calls.append(full.spawn(4))
    assert not calls[0].done()  # four calls were made, three of them wait
    calls.append(full.spawn(5))
    told = [call.get(PATIENCE_S) for call in (calls[0], *calls[2:])]
    assert batches(told) == [[1, 3, 4, 5]]


def test_a_call_cancelled_while_it_runs_leaves_its_batch_mates_alone(
    executor: Served, module_gate: Gate
) -> None:
    # Row 29. Spec: cancel. In Modal cancelling one input ends all of its batch.
    gated = executor.connect("gated")
    busy = gated.spawn(0)
    module_gate.arrived()
    calls = [gated.spawn(x) for x in (1, 2, 3)]
    module_gate.open()
    assert module_gate.arrived() == [1, 2, 3]
    assert not calls[1].cancel()  # it cannot be said that it never ran
    with pytest.raises(CallCancelled):
        calls[1].get(PATIENCE_S)
    module_gate.open()
    told = [call.get(PATIENCE_S) for call in (busy, calls[0], calls[2])]
    assert batches(told) == [[0], [1, 2, 3]]


def test_a_call_that_is_done_keeps_its_result(executor: Served) -> None:
    # Row 29. Spec: cancel.
    call = executor.connect("double").spawn(4)
    assert call.get(PATIENCE_S) == 8
    assert not call.cancel()
    assert call.get(PATIENCE_S) == 8


def test_a_cancelled_task_cancels_its_call(executor: Served) -> None:
    # Row 29. Spec: cancel.
    full = executor.connect("full")

    async def main() -> None:
        task = asyncio.ensure_future(full.remote.aio(1))
        while not executor.statistics("full")["calls_waiting"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert batches(outcomes(full, [2, 3, 4, 5])) == [[2, 3, 4, 5]]


def test_leaving_a_map_cancels_what_has_not_run(executor: Served) -> None:
    # Row 29. Spec: cancel.
    full = executor.connect("full")
    results = full.map(range(6))
    assert next(results)[1] == [0, 1, 2, 3]
    results.close()
    assert batches(outcomes(full, [6, 7, 8, 9])) == [[6, 7, 8, 9]]


def test_a_dropped_call_is_a_cancelled_one(executor: Served) -> None:
    # Row 29. Modal runs what was spawned, whoever is left to ask.
    full = executor.connect("full")
    full.spawn(1)
    assert batches(outcomes(full, [2, 3, 4, 5])) == [[2, 3, 4, 5]]


def test_the_waiting_calls_of_a_caller_that_dies_are_dropped(executor: Served) -> None:
    # Row 29. Spec: cancel.
    full = executor.connect("full")
    mine = full.spawn(1)
    with Program(CALLER, "conforming.full", 2, 3) as caller:
        assert caller.line() == "called"
        caller.kill()
        wait_until(
            lambda: executor.statistics("full")["calls_waiting"] == 1, "its calls are dropped"
        )
    calls = [mine, *(full.spawn(x) for x in (4, 5, 6))]
    assert batches(call.get(PATIENCE_S) for call in calls) == [[1, 4, 5, 6]]


def test_a_caller_that_dies_while_its_batch_runs_is_nothing_to_the_others(
    executor: Served, module_gate: Gate
) -> None:
    # Row 29. Spec: cancel.
    gated = executor.connect("gated")
    busy = gated.spawn(0)
    module_gate.arrived()
    mine = gated.spawn(1)
    with Program(CALLER, "conforming.gated", 2) as caller:
        assert caller.line() == "called"
        module_gate.open()
        assert sorted(module_gate.arrived()) == [1, 2]
        caller.kill()
        module_gate.open()
        _, inputs = mine.get(PATIENCE_S)
    assert sorted(inputs) == [1, 2]
    busy.get(PATIENCE_S)


def test_a_call_whose_executor_dies_is_not_made_again(gate: Gate) -> None:
    # Spec: results. Modal gives an input to another container, and drops what it hears twice.
    first = Served("conforming.py", "mortal")
    gated = first.connect("gated")
    calls = [gated.spawn(0)]
    assert gate.arrived() == [0]
    calls.append(gated.spawn(1))
    first.kill()
    for call in calls:
        with pytest.raises(ExecutorGone):
            call.get(PATIENCE_S)
    with processes.served("conforming.py", "mortal") as second:
        assert second.connect("double").remote(1) == 2
        counts = second.statistics("gated")
        assert (counts["batches"], counts["calls_waiting"]) == (0, 0)
