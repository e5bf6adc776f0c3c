"""How batching is configured, later changed, and told."""

from __future__ import annotations

import pickle

import conforming
import pytest

import shmbatch
from shmbatch.errors import ConfigError, HandshakeError
from tests.conformance.calling import batches, outcomes
from tests.processes import PATIENCE_S, Gate, Served


def test_the_configuration_is_told_as_it_was_written(executor: Served) -> None:
    # Row 1. Row 2. Modal shows it in its dashboard.
    full, pairs = executor.statistics("full"), executor.statistics("pairs")
    assert (full["max_batch_size"], full["wait_ms"]) == (4, 600_000)
    assert (pairs["max_batch_size"], pairs["wait_ms"]) == (2, 20)


def test_other_parameters_make_another_queue_in_the_same_executor(executor: Served) -> None:
    # Row 5. In Modal `with_batching` makes another function, with containers of its own.
    full = executor.connect("full")
    waiting = [full.spawn(x) for x in (1, 2, 3)]
    halves = full.with_batching(max_batch_size=2)
    assert batches(outcomes(halves, [7, 8])) == [[7, 8]]
    assert batches([full.with_batching(wait_ms=0).remote(9)]) == [[9]]
    assert not any(call.done() for call in waiting)
    waiting.append(full.spawn(4))
    assert batches(call.get(PATIENCE_S) for call in waiting) == [[1, 2, 3, 4]]


def test_handles_with_equal_parameters_share_their_batches(executor: Served) -> None:
    # Row 5.
    full = executor.connect("full")
    one, other = (full.with_batching(max_batch_size=2) for _ in range(2))
    third = pickle.loads(pickle.dumps(one))
    first = one.spawn(1)
    assert batches([other.remote(2), first.get(PATIENCE_S)]) == [[1, 2]]
    first = one.spawn(3)
    assert batches([third.remote(4), first.get(PATIENCE_S)]) == [[3, 4]]


def test_another_queue_is_no_second_batch_at_once(executor: Served, module_gate: Gate) -> None:
    # Row 5. Row 19.
    overlapping = executor.connect("overlapping")
    calls = [overlapping.spawn(1)]
    module_gate.arrived()
    calls += [overlapping.with_batching(max_batch_size=2).spawn(x) for x in (2, 3)]
    outcomes(executor.connect("double"), range(100))  # the executor has had every occasion
    module_gate.open(2)
    assert [call.get(PATIENCE_S) for call in calls] == [1, 1, 1]


@pytest.mark.no_transport
@pytest.mark.parametrize(
    "given",
    [{"max_batch_size": 0}, {"max_batch_size": 5}, {"wait_ms": -1}, {"wait_ms": 600_001}],
)
def test_other_parameters_have_bounds_too(given: dict[str, int]) -> None:
    # Row 5. The size may not grow: a function knows what it was written for.
    (name,) = given
    with pytest.raises(ConfigError, match=name):
        conforming.full.with_batching(**given)


def test_who_has_only_the_address_hears_of_bounds_from_the_executor(executor: Served) -> None:
    # Row 5.
    larger = executor.connect("full").with_batching(max_batch_size=5)
    with pytest.raises(HandshakeError, match="decorated with max_batch_size=4; use at most that"):
        larger.remote(1)


@pytest.mark.no_transport
def test_options_that_there_are_not_are_refused_and_not_ignored() -> None:
    # Row 1. A peer has passed some on to nobody for years.
    for option in ("max_batchsize", "wait", "batch_wait_timeout_s", "timeout", "max_concurrency"):
        with pytest.raises(TypeError, match=option):
            shmbatch.batched(max_batch_size=4, wait_ms=0, **{option: 1})  # type: ignore[arg-type]
