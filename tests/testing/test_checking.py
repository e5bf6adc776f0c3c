"""`check_batching` lets right functions pass, and names what a wrong one, or executor, breaks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from shmbatch import errors, testing
from shmbatch.executor.delivery import Delivery
from shmbatch.executor.runner import Run
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.staging import Staging
from shmbatch.protocol._core import Batch
from shmbatch.testing import check_batching
from shmbatch.testing.simulation import Simulation
from tests.testing.functions import (
    Counter,
    backwards,
    called,
    counting,
    hiccup_once,
    in_step,
    normalised,
    refuses,
    scaled,
    shy,
    spreading,
    summed,
    three_at_most,
)


@pytest.mark.parametrize(
    "function", [scaled, in_step, summed, refuses, Counter(start=2).above], ids=called
)
def test_a_function_that_is_right_passes(function: Any) -> None:
    check_batching(function, max_examples=25)


@pytest.mark.parametrize(
    ("function", "promise", "fact"),
    [
        (three_at_most, "I2", "returned a list of length 3 for 4 inputs"),
        (counting, "I3", "the function keeps something between batches, or is random"),
        (normalised, "I3", r"\(0.5 and 1, 0.5 apart\)"),
        (spreading, "I7", "is the one that fails by itself"),
        (shy, "I7", "though nothing is wrong with its batch-mates"),
    ],
)
def test_a_function_that_is_wrong_is_told_of(function: Any, promise: str, fact: str) -> None:
    with pytest.raises(AssertionError, match=f"^{promise} is broken .*{fact}"):
        check_batching(function)


def test_the_shortest_history_is_told_and_nothing_else() -> None:
    with pytest.raises(AssertionError) as caught:
        check_batching(backwards)
    assert str(caught.value).splitlines() == [
        "I3 is broken (outcome i goes to caller i): call 1 in batch 1 got 1, and its input in a "
        "batch of its own gets 0; it is what call 2 gets",
        "",
        "  0 ms  producer 1 makes call 1: backwards(0)",
        "  0 ms  producer 1 makes call 2: backwards(1)",
        "  5 ms  batch 1 launches (deadline): calls 1, 2",
    ]
    assert getattr(caught.value, "__notes__", []) == []


def test_a_function_that_fails_once_is_told_of_with_what_it_did() -> None:
    with pytest.raises(AssertionError, match=r"^I3 is broken ") as caught:
        check_batching(hiccup_once)
    assert "makes call 1: hiccup_once" in str(caught.value)
    assert str(caught.value).endswith("The same example does not always fail.")


def test_the_same_seed_finds_the_same() -> None:
    found = set()
    for _ in range(2):
        with pytest.raises(AssertionError) as caught:
            check_batching(shy, seed=5, max_examples=50)
        found.add(str(caught.value))
    assert len(found) == 1


def test_only_the_inputs_that_were_given_are_tried(caplog: pytest.LogCaptureFixture) -> None:
    check_batching(spreading, inputs=st.tuples(st.integers(0, 9)), max_examples=20)
    with pytest.raises(AssertionError), caplog.at_level(logging.DEBUG):
        check_batching(shy, inputs=st.tuples(st.just(7)), max_examples=20)
    assert caplog.records == []


# ---- an executor that is wrong ----


def with_room_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = ServedFunction.launch

    def launched(self: ServedFunction, at_ns: int) -> int:
        self.batcher.max_batch_size += 1
        self.idle = [Run(Batch(self.batcher.max_batch_size))]
        try:
            return launch(self, at_ns)
        finally:
            self.batcher.max_batch_size -= 1

    monkeypatch.setattr(ServedFunction, "launch", launched)


def patching_calls(change: Callable[[list[Any]], list[Any]]) -> Callable[..., None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        flown = Simulation.flown
        monkeypatch.setattr(Simulation, "flown", lambda *args: change(flown(*args)))

    return plant


def without_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(self: ServedFunction) -> None:
        run = self.flights.popleft()
        run.done = False
        run.batch = Batch(self.batcher.max_batch_size)
        self.idle.append(run)

    monkeypatch.setattr(ServedFunction, "complete", complete)


def with_results_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = Delivery.returned
    monkeypatch.setattr(
        Delivery, "returned", lambda self, batch, value: returned(self, batch, value[::-1])
    )


def waiting(change_ns: Callable[[int], int]) -> Callable[..., None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        made = ServedFunction.__init__

        def init(self: ServedFunction, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            self.batcher.wait_ns = change_ns(self.batcher.wait_ns)

        monkeypatch.setattr(ServedFunction, "__init__", init)

    return plant


def with_one_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ServedFunction.__init__

    def init(self: ServedFunction, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.batcher.max_batch_size = 1

    monkeypatch.setattr(ServedFunction, "__init__", init)


def with_columns_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Staging.gather

    def gathered(self: Staging, batch: Batch) -> Any:
        inputs, size = gather(self, batch)
        inputs[1] = [*inputs[1][1:], inputs[1][0]]
        return inputs, size

    monkeypatch.setattr(Staging, "gather", gathered)


@pytest.mark.parametrize(
    ("plant", "promise", "fact"),
    [
        (with_room_for_more, "I1", "has 5 calls, max_batch_size is 4"),
        (patching_calls(lambda calls: calls * 2), "I2", "a call is in batch 1 twice"),
        (without_an_outcome, "I2", "call 1 of producer 1 has no outcome"),
        (with_results_of_others, "I3", "it is what call 2 gets"),
        (waiting(lambda ns: 2 * ns), "I4", "would sleep beyond the deadline of tested.scaled"),
        (waiting(lambda ns: ns // 2), "I4", "launched by deadline, but it was not due"),
        (with_one_left_behind, "I4", "but it was not due"),
        (patching_calls(lambda calls: calls[::-1]), "I5", "has calls of producer 1 out of order"),
        (with_columns_mixed_up, "I6", "row 0 of 'by' in batch 1 is 1"),
    ],
)
def test_an_executor_that_breaks_a_promise_is_told_of(
    plant: Callable[..., None], promise: str, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    with pytest.raises(AssertionError, match=f"^{promise} is broken .*{fact}"):
        check_batching(scaled, max_examples=200)


def test_wrong_arguments_are_refused() -> None:
    for options, reason in (
        ({"max_examples": 0}, "max_examples is 0; use an int from 1"),
        ({"seed": 1.5}, "seed is 1.5; use an int, or None"),
        ({"tolerance": -1}, "tolerance is -1; use a number of 0 or more"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            testing.check_batching(scaled, **options)  # type: ignore[arg-type]
