"""How long one call may take: a limit of its own, which is nothing to its batch-mates."""

from __future__ import annotations

import asyncio

import pytest

from shmbatch.errors import CallTimeout, ConfigError, DeadlineExceeded
from tests.conformance.calling import batches
from tests.processes import PATIENCE_S, Gate, Served


def test_a_call_not_launched_by_its_deadline_never_runs(executor: Served) -> None:
    # Row 27. Modal has a timeout for each input of a function, not for each call.
    full = executor.connect("full")
    calls = [full.spawn(1), full.with_options(deadline_ms=10).spawn(2)]
    with pytest.raises(DeadlineExceeded):
        calls[1].get(PATIENCE_S)
    calls += [full.spawn(x) for x in (3, 4)]
    assert not calls[0].done()
    calls.append(full.spawn(5))
    assert batches(calls[at].get(PATIENCE_S) for at in (0, 2, 3, 4)) == [[1, 3, 4, 5]]


def test_a_deadline_is_nothing_to_a_call_that_was_launched(
    executor: Served, module_gate: Gate
) -> None:
    # Row 27.
    call = executor.connect("gated").with_options(deadline_ms=5_000).spawn(1)
    assert module_gate.arrived() == [1]
    prompt = executor.connect("gated").with_options(deadline_ms=10).spawn(2)
    with pytest.raises(DeadlineExceeded):
        prompt.get(PATIENCE_S)
    assert not call.done()
    module_gate.open()
    assert batches([call.get(PATIENCE_S)]) == [[1]]


def test_a_callers_timeout_gives_up_its_call_alone(executor: Served, module_gate: Gate) -> None:
    # Row 27. Row 29.
    gated = executor.connect("gated")
    busy = gated.spawn(0)
    module_gate.arrived()
    mate = gated.spawn(1)
    with pytest.raises(CallTimeout, match="the call is given up"):
        gated.with_options(timeout=0.010).remote(2)
    module_gate.open()
    assert module_gate.arrived() == [1]  # the other was not launched, and never is
    module_gate.open()
    assert batches([busy.get(PATIENCE_S), mate.get(PATIENCE_S)]) == [[0], [1]]


def test_waiting_for_a_result_can_end_before_the_call_does(
    executor: Served, module_gate: Gate
) -> None:
    # Row 27. As with Modal's own get(timeout).
    call = executor.connect("gated").spawn(3)
    module_gate.arrived()
    with pytest.raises(TimeoutError):
        call.get(timeout=0.010)
    with pytest.raises(TimeoutError):
        asyncio.run(call.get.aio(timeout=0.010))
    module_gate.open()
    assert batches([call.get(PATIENCE_S)]) == [[3]]


def test_options_belong_to_a_handle_and_leave_the_function_as_it_is(executor: Served) -> None:
    # Row 27.
    full = executor.connect("full")
    hurried = full.with_options(timeout=0.010)
    with pytest.raises(CallTimeout):
        hurried.remote(1)
    waiting = full.spawn(2)
    with pytest.raises(CallTimeout):
        hurried.with_options(deadline_ms=60_000).remote(1)  # what is not given stays
    assert not waiting.done()
    assert waiting.cancel()


def test_limits_that_mean_nothing_are_refused(executor: Served) -> None:
    # Row 27.
    double = executor.connect("double")
    for timeout in ("1", True, float("nan")):
        with pytest.raises(ConfigError, match="timeout is"):
            double.with_options(timeout=timeout)  # type: ignore[arg-type]
    for deadline_ms in (0, -1, "1", float("inf")):
        with pytest.raises(ConfigError, match="deadline_ms is"):
            double.with_options(deadline_ms=deadline_ms)  # type: ignore[arg-type]
