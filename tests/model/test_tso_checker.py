"""Decides whether the checker explores what x86 allows, and nothing else.

Litmus tests with known answers: an answer missed makes every other model here worthless.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.tso_checker import (
    Checker,
    Model,
    Process,
    Program,
    View,
    Violation,
    add,
    choose,
    explore,
    fence,
    load,
    sleep_on,
    store,
    wake,
)


def outcomes(*programs: Callable[[], Program], killed: int = -1) -> set[tuple[object, ...]]:
    """Return what the programs may return, together."""
    names = [f"process {number}" for number in range(len(programs))]
    found: set[tuple[object, ...]] = set()

    def collect(view: View) -> None:
        if all(view.finished(name) or not view.alive(name) for name in names):
            found.add(tuple(view.local(name, "return") for name in names))

    model = Model(
        words={"x": 0, "y": 0},
        processes=tuple(
            Process(name, program, mortal=number == killed)
            for number, (name, program) in enumerate(zip(names, programs, strict=True))
        ),
        good=lambda view: True,
        invariant=collect,
    )
    assert explore(model).violation is None
    return found


def store_then_load(mine: str, other: str, fenced: bool = False) -> Program:
    yield store(mine, 1)
    if fenced:
        yield fence()
    return (yield load(other))


def store_both() -> Program:
    yield store("x", 1)
    yield store("y", 1)


def load_both() -> Program:
    y = yield load("y")
    x = yield load("x")
    return y, x


def increment() -> Program:
    return (yield add("x", 1))


def increment_in_two_steps() -> Program:
    old = yield load("x")
    yield store("x", old + 1)
    yield fence()
    return (yield load("x"))


def test_a_load_may_overtake_an_earlier_store() -> None:
    left = functools.partial(store_then_load, "x", "y")
    right = functools.partial(store_then_load, "y", "x")
    assert outcomes(left, right) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_fence_keeps_the_load_behind_the_store() -> None:
    left = functools.partial(store_then_load, "x", "y", fenced=True)
    right = functools.partial(store_then_load, "y", "x", fenced=True)
    assert outcomes(left, right) == {(0, 1), (1, 0), (1, 1)}


def test_stores_of_one_process_arrive_in_order() -> None:
    assert outcomes(store_both, load_both) == {(None, (y, x)) for y, x in [(0, 0), (0, 1), (1, 1)]}


def test_a_process_sees_its_own_store_at_once() -> None:
    assert outcomes(functools.partial(store_then_load, "x", "x")) == {(1,)}


def test_a_read_modify_write_is_atomic_and_a_load_and_store_is_not() -> None:
    assert outcomes(increment, increment) == {(0, 1), (1, 0)}
    assert (1, 1) in outcomes(increment_in_two_steps, increment_in_two_steps)


def test_a_killed_process_leaves_any_prefix_of_its_stores() -> None:
    seen = {result for _, result in outcomes(store_both, load_both, killed=0)}
    assert seen == {(0, 0), (0, 1), (1, 1)}


def wake_x(count: int) -> Program:
    yield wake("x", count)


def sleep_on_x(expected: int) -> Program:
    result = yield sleep_on("x", expected)
    if result == "woken":
        raise Violation("woken")
    return result


@pytest.mark.parametrize(
    ("expected", "violation"), [(0, "woken"), (1, None)], ids=["equal value", "other value"]
)
def test_sleep_compares_the_value(expected: int, violation: str | None) -> None:
    model = Model(
        words={"x": 0},
        processes=(
            Process("sleeper", functools.partial(sleep_on_x, expected)),
            Process("waker", functools.partial(wake_x, 1)),
        ),
        good=lambda view: True,
    )
    assert explore(model).violation == violation


def sleep_for_ever() -> Program:
    yield sleep_on("x", 0)


def spin_for_ever() -> Program:
    while True:
        yield load("x")


@pytest.mark.parametrize(
    ("other", "violation"),
    [
        (functools.partial(wake_x, 1), "stuck for ever: nobody can move"),
        (spin_for_ever, "no way out"),
    ],
)
def test_a_sleeper_whom_nobody_wakes_is_found(
    other: Callable[[], Program], violation: str
) -> None:
    model = Model(
        words={"x": 0},
        processes=(Process("sleeper", sleep_for_ever), Process("other", other)),
        good=lambda view: view.finished("sleeper"),
    )
    assert explore(model).violation == violation


def fail_after_two_loads_or_one() -> Program:
    way = yield choose(2)
    if way:
        yield load("x")
    yield load("x")
    raise Violation("found")


def test_the_trace_is_a_shortest_one() -> None:
    model = Model(
        words={"x": 0},
        processes=(Process("only", fail_after_two_loads_or_one),),
        good=lambda view: True,
    )
    result = explore(model)
    assert [line.split()[2] for line in result.trace.splitlines()[:1]] == ["choose"]
    assert result.trace.splitlines()[1].strip() == "found"


def yield_in_the_middle() -> Program:
    total = (yield load("x")) + (yield load("y"))
    return total


def yield_inside_for() -> Program:
    for _ in range(2):
        yield load("x")


@pytest.mark.parametrize("program", [yield_in_the_middle, yield_inside_for])
def test_a_program_with_hidden_state_is_refused(program: Callable[[], Program]) -> None:
    model = Model(
        words={"x": 0, "y": 0},
        processes=(Process("only", program),),
        good=lambda view: True,
    )
    with pytest.raises(TypeError, match=r"a yield must be|no yield inside"):
        Checker(model).explore()


def test_a_model_that_is_too_large_is_refused_and_not_cut_short() -> None:
    left = functools.partial(store_then_load, "x", "y")
    model = Model(
        words={"x": 0, "y": 0}, processes=(Process("only", left),), good=lambda view: True
    )
    with pytest.raises(RuntimeError, match="more than 2 states"):
        Checker(model).explore(limit=2)
