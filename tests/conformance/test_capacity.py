"""How much may wait, how much runs at once, and what happens to what comes on top."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmbatch.errors import CallTimeout, RingFull
from tests.conformance.calling import batches, outcomes
from tests.processes import PATIENCE_S, Gate, Served


def test_a_call_that_finds_no_room_waits_as_long_as_it_may(
    executor: Served, module_gate: Gate
) -> None:
    # Row 28. Modal's queue is bounded by the platform.
    narrow = executor.connect("narrow")
    assert executor.statistics("narrow")["slots"] == 2
    calls = [narrow.spawn(x) for x in (1, 2)]
    module_gate.arrived()
    with pytest.raises(RingFull):
        narrow.with_options(timeout=0.020).spawn(3)
    assert executor.statistics("narrow")["calls_waiting"] == 1  # nothing was queued, or dropped
    module_gate.open(2)
    assert batches(call.get(PATIENCE_S) for call in calls) == [[1], [2]]


def test_a_call_without_a_timeout_waits_for_room(executor: Served, module_gate: Gate) -> None:
    # Row 28.
    module_gate.open(6)
    told = outcomes(executor.connect("narrow"), range(6))
    assert batches(told) == [[x] for x in range(6)]


def test_one_callers_full_ring_is_nothing_to_another(executor: Served, module_gate: Gate) -> None:
    # Row 28.
    narrow = executor.connect("narrow")
    calls = [narrow.spawn(x) for x in (1, 2)]
    module_gate.arrived()
    another = executor.connect("narrow", arrays="numpy")  # of the same process, with slots too
    calls.append(another.spawn(3))
    module_gate.open(3)
    assert sorted(x for _, (x,) in (call.get(PATIENCE_S) for call in calls)) == [1, 2, 3]


def test_a_map_has_no_more_in_flight_than_there_is_room_for(
    executor: Served, module_gate: Gate
) -> None:
    # Row 28. Spec: map.
    read = 0

    def inputs() -> Iterator[int]:
        nonlocal read
        for x in range(20):
            read += 1
            yield x

    results = executor.connect("narrow").map(inputs())
    module_gate.open(1)
    next(results)
    assert read <= 2  # as there are slots
    module_gate.open(19)
    assert len(list(results)) == 19


def test_one_batch_of_a_function_runs_at_a_time(executor: Served, module_gate: Gate) -> None:
    # Row 19. Modal stacks batches with its decorator `concurrent`.
    awaiting = executor.connect("awaiting")
    calls = [awaiting.spawn(0)]
    module_gate.arrived()
    calls += [awaiting.spawn(x) for x in range(1, 10)]  # a full batch, and one call
    outcomes(executor.connect("double"), range(100))  # the executor has had every occasion
    now = executor.statistics("awaiting")
    assert (now["calls_in_flight"], now["calls_waiting"]) == (1, 9)
    module_gate.open(3)
    told = [call.get(PATIENCE_S) for call in calls]
    assert [len(batch) for batch in batches(told)] == [1, 8, 1]


def test_while_one_function_awaits_others_are_served(executor: Served, module_gate: Gate) -> None:
    # Row 19. Row 12.
    call = executor.connect("awaiting").spawn(0)
    assert module_gate.arrived() == [0]
    assert outcomes(executor.connect("double"), [1, 2, 3]) == [2, 4, 6]
    assert outcomes(executor.connect("double_later"), [1, 2, 3]) == [2, 4, 6]
    with pytest.raises(CallTimeout):
        call.get(timeout=0)
    module_gate.open()
    assert batches([call.get(PATIENCE_S)]) == [[0]]
