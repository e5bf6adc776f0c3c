"""When a batch runs: by size, by the wait of its first input, and by nothing else."""

from __future__ import annotations

import time

import pytest

import shmbatch
from shmbatch import errors
from tests.conformance.calling import batches, outcomes
from tests.processes import PATIENCE_S, Gate, Program, Served

# 16 producers, forked so that it is quick, with 64 calls each; every one says what it was told.
CROWD = """
import os, shmbatch
for _ in range(15):
    if os.fork() == 0:
        break
thousand = shmbatch.connect("conforming.thousand").with_options(timeout=20)
calls = [thousand.spawn(x) for x in range(64)]
os.write(1, f"{ {call.get() for call in calls} }\\n".encode())
os._exit(0)
"""


def sealed(executor: Served, function: str) -> dict[str, int]:
    counts: dict[str, int] = executor.statistics(function)["sealed"]
    return counts


def test_a_full_batch_runs_at_once_however_long_it_might_wait(executor: Served) -> None:
    # Row 1. Spec: timer.
    before = sealed(executor, "full")["size"]
    assert batches(outcomes(executor.connect("full"), [1, 2, 3, 4])) == [[1, 2, 3, 4]]
    assert sealed(executor, "full")["size"] == before + 1


def test_no_batch_exceeds_its_size(executor: Served, module_gate: Gate) -> None:
    # Row 1.
    gated = executor.connect("gated")
    calls = [gated.spawn(0)]
    assert module_gate.arrived() == [0]
    calls += [gated.spawn(x) for x in range(1, 11)]
    module_gate.open(4)
    told = [call.get(PATIENCE_S) for call in calls]
    assert batches(told) == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.slow
def test_a_batch_may_hold_more_than_a_thousand_calls(executor: Served) -> None:
    # Row 1. Modal ends at 1000.
    with Program(CROWD) as crowd:
        assert [crowd.line() for _ in range(16)] == ["{1024}"] * 16


def test_an_unfilled_batch_runs_once_its_first_input_has_waited(executor: Served) -> None:
    # Row 2. Spec: timer.
    before = sealed(executor, "timed")["deadline"]
    began = time.monotonic()
    told = executor.connect("timed").remote(1)
    assert time.monotonic() - began >= 0.040
    assert batches([told]) == [[1]]
    assert sealed(executor, "timed")["deadline"] == before + 1


def test_the_input_that_fills_no_batch_begins_the_next(executor: Served) -> None:
    # Row 2. Spec: timer.
    assert batches(executor.connect("pairs").map([1, 2, 3])) == [[1, 2], [3]]


def test_later_inputs_join_a_batch_and_do_not_move_its_time(executor: Served) -> None:
    # Row 2. Spec: timer.
    timed, pacing = executor.connect("timed"), executor.connect("pacing")
    first = timed.spawn(0)
    later = []
    for x in range(1, 31):  # of 5 ms and more: had they moved it, the first would still wait
        pacing.remote(x)
        if first.done():
            break
        later.append(timed.spawn(x))
    assert first.done()
    _, inputs = first.get()
    assert inputs == list(range(len(later) + 1))[: len(inputs)]
    assert len(inputs) > 1


def test_time_during_which_the_executor_is_busy_counts(
    executor: Served, module_gate: Gate
) -> None:
    # Row 2. Spec: timer. A timer that began when the executor was free again would have the
    # other function, whose wait is shorter, run first.
    busy = executor.connect("gated").spawn(0)
    module_gate.arrived()
    early = executor.connect("timed").spawn(1)
    with pytest.raises(errors.CallTimeout):
        early.get(timeout=0.050)
    late = executor.connect("hasty").spawn(2)
    module_gate.open()
    assert early.get(PATIENCE_S)[0] < late.get(PATIENCE_S)[0]
    busy.get(PATIENCE_S)


def test_a_batch_grows_until_it_is_launched(executor: Served, module_gate: Gate) -> None:
    # Row 20. Ray Serve closes a batch when its time is over, though nobody can run it yet.
    awaiting = executor.connect("awaiting")
    calls = [awaiting.spawn(0)]
    assert module_gate.arrived() == [0]
    calls += [awaiting.spawn(x) for x in (1, 2)]
    with pytest.raises(errors.CallTimeout):
        calls[-1].get(timeout=0.010)  # ten times what they wait for company
    calls += [awaiting.spawn(x) for x in (3, 4, 5)]
    module_gate.open(2)
    told = [call.get(PATIENCE_S) for call in calls]
    assert batches(told) == [[0], [1, 2, 3, 4, 5]]


def test_a_lone_call_without_a_wait_runs_at_once(executor: Served) -> None:
    # Row 3.
    eager = executor.connect("eager")
    assert [batches([eager.remote(x)]) for x in range(3)] == [[[0]], [[1]], [[2]]]


def test_an_idle_executor_waits_for_company_all_the_same(executor: Served) -> None:
    # Row 3.
    call = executor.connect("full").spawn(1)
    with pytest.raises(errors.CallTimeout):
        call.get(timeout=0.020)
    assert executor.statistics("full")["calls_waiting"] == 1
    assert call.cancel()


def test_in_lockstep_nobody_waits_for_calls_that_cannot_come(executor: Served) -> None:
    # Row 3. The opt-in that no peer has.
    stepping = executor.connect("stepping")
    assert [batches([stepping.remote(x)]) for x in range(3)] == [[[0]], [[1]], [[2]]]
    assert sealed(executor, "stepping")["all"] == 3


def test_large_values_close_no_batch(executor: Served) -> None:
    # Row 4.
    sizes = [1, 100_000, 100_000, 100_000]
    assert outcomes(executor.connect("texts"), ["x" * size for size in sizes]) == [sizes] * 4


@pytest.mark.no_transport
@pytest.mark.parametrize("option", ["batch_size_fn", "max_batch_length", "max_latency_ms"])
def test_a_trigger_by_cost_or_latency_is_refused_and_not_ignored(option: str) -> None:
    # Row 4.
    with pytest.raises(TypeError, match=option):
        shmbatch.batched(max_batch_size=4, wait_ms=0, **{option: 10})  # type: ignore[arg-type]
