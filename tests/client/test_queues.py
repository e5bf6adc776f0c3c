"""`with_batching`: other queues of a function, in the same executor."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import queues

import shmbatch
from shmbatch import errors
from shmbatch.contract.batching import BatchParameters
from shmbatch.executor.served import QUEUES_MAX
from tests import processes
from tests.processes import PATIENCE_S, Gate, Served


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    with processes.served("queues.py", "queues") as executor:
        yield executor


def test_another_queue_batches_apart_from_the_functions_own(executor: Served) -> None:
    own, pairs = queues.batch_of, queues.batch_of.with_batching(max_batch_size=2, wait_ms=600_000)
    calls = [pairs.spawn(1), own.spawn(2), own.spawn(3)]
    assert [call.get(PATIENCE_S) for call in calls[1:]] in ([[2, 3]] * 2, [[2], [3]])
    assert not calls[0].done(), "own calls do not fill it"
    calls.append(pairs.spawn(4))
    assert calls[0].get(PATIENCE_S) == calls[3].get(PATIENCE_S) == [1, 4]


def test_handles_of_the_same_parameters_share_a_queue(executor: Served) -> None:
    here = queues.batch_of.with_batching(max_batch_size=2, wait_ms=600_000)
    there = pickle.loads(pickle.dumps(executor.connect("batch_of")))
    there = there.with_batching(wait_ms=600_000, max_batch_size=2).with_options(timeout=PATIENCE_S)
    first = here.spawn(1)
    assert there.remote(2) == first.get(PATIENCE_S) == [1, 2]


def test_a_handle_keeps_its_queue_through_options_and_pickling(executor: Served) -> None:
    handle = queues.batch_of.with_batching(max_batch_size=2, wait_ms=600_000)
    for each in (handle.with_options(deadline_ms=None), pickle.loads(pickle.dumps(handle))):
        calls = [each.spawn(x) for x in range(4)]
        assert [call.get(PATIENCE_S) for call in calls] == [[0, 1]] * 2 + [[2, 3]] * 2
    assert list(handle.map(range(6))) == [[0, 1]] * 2 + [[2, 3]] * 2 + [[4, 5]] * 2
    assert queues.batch_of.local([1, 2]) == handle.local([1, 2]), "the same function"


def test_waiting_less_than_decorated_is_a_queue_that_does_not_wait(executor: Served) -> None:
    waits = executor.connect("never")  # ten minutes
    assert waits.with_batching(wait_ms=0).remote(3) == 3
    assert asyncio.run(waits.with_batching(wait_ms=0.5).remote.aio(4)) == 4
    whole = waits.with_batching(max_batch_size=1)
    assert whole.remote(5) == 5, "a full batch waits for nobody"


def test_the_decorated_parameters_are_the_functions_own_queue(executor: Served) -> None:
    before = set(shmbatch.statistics("queues")["functions"])
    same = queues.batch_of.with_batching(max_batch_size=4, wait_ms=1)
    assert same.remote(1) == [1]
    assert queues.batch_of.with_batching().remote(1) == [1]
    assert set(shmbatch.statistics("queues")["functions"]) == before


def test_statistics_name_each_queue(executor: Served) -> None:
    one = queues.counted.with_batching(max_batch_size=3, wait_ms=1.25)
    # As close as two can be: a nanosecond apart.
    other = queues.counted.with_batching(max_batch_size=3, wait_ms=1.250001)
    for handle, times in ((one, 2), (other, 3), (queues.counted, 4)):
        for x in range(times):
            handle.remote(x)
    told = shmbatch.statistics("queues")["functions"]
    done = {name: told[name]["calls_done"] for name in told if name.startswith("counted")}
    assert done == {"counted": 4, "counted[3, 1.25 ms]": 2, "counted[3, 1.250001 ms]": 3}


def test_one_that_is_larger_than_decorated_is_refused_here_or_there(executor: Served) -> None:
    message = (
        "with_batching(max_batch_size=5) of 'queues.batch_of', which is decorated with "
        "max_batch_size=4; use at most that"
    )
    with pytest.raises(errors.ConfigError) as here:
        queues.batch_of.with_batching(max_batch_size=5)
    assert str(here.value) == message
    unknowing = executor.connect("batch_of").with_batching(max_batch_size=5)
    with pytest.raises(errors.HandshakeError) as there:
        unknowing.remote(1)
    assert str(there.value) == message
    assert queues.batch_of.remote(1) == [1]


def test_parameters_out_of_bounds_are_refused_at_once(executor: Served) -> None:
    for wrong in ({"max_batch_size": 0}, {"wait_ms": -1}, {"wait_ms": "1"}, {"wait_ms": 1e9}):
        with pytest.raises(errors.ConfigError, match=rf"^{next(iter(wrong))} is "):
            executor.connect("batch_of").with_batching(**wrong)  # type: ignore[arg-type]


def test_there_are_16_queues_of_a_function_at_most(executor: Served) -> None:
    *handles, last = [queues.crowded.with_batching(wait_ms=1 / n) for n in range(1, 18)]
    assert len(handles) == QUEUES_MAX
    for each in handles:
        assert each.remote(1) == 1
    with pytest.raises(errors.HandshakeError) as caught:
        last.remote(1)
    assert str(caught.value) == (
        f"'queues.crowded' has {QUEUES_MAX} queues beside its own, made by with_batching; "
        f"use one of those, or restart the executor"
    )
    assert handles[0].remote(2) == queues.crowded.remote(2) == 2


def test_batches_of_a_queue_are_padded_to_the_allowed_sizes_that_it_has_room_for(
    executor: Served,
) -> None:
    queue = queues.padded.with_batching(max_batch_size=3, wait_ms=600_000)
    calls = [queue.spawn(x) for x in range(3)]
    assert [call.get(PATIENCE_S) for call in calls] == [4, 4, 4], "sizes are 1, 4 and 8"
    assert queues.padded.with_batching(max_batch_size=1).remote(1) == 1


def test_batches_of_an_async_functions_queues_do_not_overlap(
    executor: Served, module_gate: Gate
) -> None:
    own, other = queues.gated, queues.gated.with_batching(max_batch_size=1, wait_ms=0)
    first = own.spawn(1)
    assert module_gate.arrived() == [1]
    second = other.spawn(2)
    processes.wait_until(
        lambda: executor.statistics("gated[1, 0 ms]")["calls_waiting"], "it waits"
    )
    module_gate.open()
    assert first.get(PATIENCE_S) == 1
    assert module_gate.arrived() == [2]
    module_gate.open()
    assert second.get(PATIENCE_S) == 2


def test_a_plain_method_may_have_a_queue_as_well(executor: Served) -> None:
    told: Any = executor.connect("Model.told").with_batching(wait_ms=1)
    assert told.remote() == told.remote() == executor.connect("Model.told").remote()


def test_a_drain_finishes_what_waits_in_every_queue() -> None:
    with processes.served("queues.py", "mortal") as executor:
        never = executor.connect("never")
        calls = [never.spawn(1), never.with_batching(max_batch_size=2).spawn(2)]
        processes.wait_until(
            lambda: executor.statistics("never[2, 600000 ms]")["calls_waiting"], "it waits"
        )
        executor.stop()
        assert [call.get(PATIENCE_S) for call in calls] == [1, 2]


@pytest.mark.no_transport
def test_batching_is_what_was_chosen_and_otherwise_what_was_decorated() -> None:
    function = queues.batch_of.with_batching(max_batch_size=2)
    assert function._batching.instead_of(BatchParameters(4, 7), "f") == BatchParameters(2, 7)
    again = function.with_batching(wait_ms=0)
    assert again._batching.instead_of(BatchParameters(4, 7), "f") == BatchParameters(4, 0)
