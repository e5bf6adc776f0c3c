"""What a lane that is a thread does: calls of every kind, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import shmbatch
from benchmarks.soak.calls import Attempt, Lane
from benchmarks.soak.ledger import Column

gather = shmbatch.FunctionCall.gather


def remote(lane: Lane) -> None:
    for _ in range(lane.random.randrange(1, 10)):
        name = lane.any_function()
        function = lane.function(name)
        attempt = lane.attempt(name)
        lane.settle(attempt, partial(function.remote, lane.value(attempt)))


def gathered(lane: Lane) -> None:
    """Spawn some of one function and ask for all of them."""
    pending = _spawned(lane, lane.any_function(), 20)
    outcomes = gather(*(call for _, call in pending), return_exceptions=True)
    for (attempt, _), outcome in zip(pending, outcomes, strict=True):
        lane.outcome(attempt, outcome)


def one_by_one(lane: Lane) -> None:
    """Spawn some of several functions and ask in another order."""
    pending = []
    for _ in range(3):
        pending += _spawned(lane, lane.any_function(), 5)
    lane.random.shuffle(pending)
    for attempt, call in pending:
        lane.settle(attempt, call.get)


def mapped(lane: Lane) -> None:
    """Map in order; now and then leave in the middle."""
    name = lane.any_function()
    function = lane.function(name)
    count = lane.random.randrange(1, 60)
    leaves_at = lane.random.randrange(1, 240)
    waiting: list[Attempt] = []

    def inputs() -> Iterator[Any]:
        for _ in range(count):
            waiting.append(lane.attempt(name))
            yield lane.value(waiting[-1])

    results = function.map(inputs(), return_exceptions=True)
    try:
        for at, outcome in enumerate(results):
            lane.outcome(waiting.pop(0), outcome)
            if at == leaves_at:
                break
    except Exception as error:
        lane.ended_by(waiting or [lane.attempt(name)], error)
    else:
        results.close()
        lane.dropped(*waiting)


def mapped_in_any_order(lane: Lane) -> None:
    """Results of `once` say which input they are of; errors do not, and are counted in order."""
    function = lane.function("once")
    count = lane.random.randrange(1, 60)
    waiting: dict[int, Attempt] = {}
    failures: list[Exception] = []

    def inputs() -> Iterator[Any]:
        for _ in range(count):
            attempt = lane.attempt("once")
            waiting[attempt.number] = attempt
            yield lane.value(attempt)

    try:
        for outcome in function.map(inputs(), order_outputs=False, return_exceptions=True):
            if isinstance(outcome, Exception):
                failures.append(outcome)
            else:
                # Another's result takes the place of any, and is found to be wrong.
                number = int(outcome[1])
                attempt = waiting.pop(number, None) or waiting.popitem()[1]
                lane.returned(attempt, outcome)
    except Exception as error:
        failures.append(error)
    for failure in failures:
        lane.failed(waiting.popitem()[1] if waiting else lane.attempt("once"), failure)
    if waiting:
        lane.ended_by(list(waiting.values()), AssertionError("outcomes are missing"))


def cancelled(lane: Lane) -> None:
    pending = _spawned(lane, lane.any_function(), 10, Column.CANCELLED)
    for attempt, call in pending:
        if lane.random.random() < 0.5 and call.cancel():
            lane.never_runs(attempt)
    for attempt, call in pending:
        lane.settle(attempt, call.get)


def dropped(lane: Lane) -> None:
    for attempt, _ in _spawned(lane, lane.any_function(), 10):
        lane.dropped(attempt)


def hurried(lane: Lane) -> None:
    """Calls whose caller has little time."""
    name = lane.random.choice(("slow", "slow", "awaited", "once"))
    hasty = lane.function(name).with_options(timeout=lane.random.choice((0.0, 0.003, 0.03)))
    for _ in range(3):
        attempt = lane.attempt(name, Column.TIMEOUT, Column.RING_FULL)
        lane.settle(attempt, partial(hasty.remote, lane.value(attempt)))


def dated(lane: Lane) -> None:
    """Calls that are to be launched soon or never."""
    name = lane.random.choice(("slow", "slow", "again", "once"))
    dated = lane.function(name).with_options(deadline_ms=lane.random.choice((0.5, 5.0, 20.0)))
    pending = _spawned(lane, name, 10, Column.DEADLINE, handle=dated)
    for attempt, call in pending:
        lane.settle(attempt, call.get)


def patient(lane: Lane) -> None:
    """Ask too soon, and again."""
    for attempt, call in _spawned(lane, "slow", 3):
        try:
            result = call.get(timeout=0.002)
        except shmbatch.errors.CallTimeout:
            lane.settle(attempt, call.get)
        except Exception as error:
            lane.failed(attempt, error)
        else:
            lane.returned(attempt, result)


def refused(lane: Lane) -> None:
    """An input that no function takes."""
    name = lane.any_function()
    function = lane.function(name)
    attempt = lane.attempt(name, Column.REFUSED)
    lane.never_runs(attempt)
    lane.settle(attempt, partial(function.remote, "no bytes"))


def _spawned(
    lane: Lane,
    name: str,
    most: int,
    *allowed: Column,
    handle: shmbatch.Function | None = None,
) -> list[tuple[Attempt, shmbatch.FunctionCall]]:
    """Spawn up to so many calls; those that could not be are counted."""
    function = handle or lane.function(name)
    pending = []
    for _ in range(lane.random.randrange(1, most + 1)):
        attempt = lane.attempt(name, *allowed)
        try:
            pending.append((attempt, function.spawn(lane.value(attempt))))
        except Exception as error:
            lane.failed(attempt, error)
    return pending


STEPS: tuple[Callable[[Lane], None], ...] = (
    *(remote, gathered, one_by_one, mapped, mapped_in_any_order, cancelled, dropped),
    *(hurried, dated, patient, refused),
)
