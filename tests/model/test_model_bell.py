"""Decides whether the bell can lose a wake-up: two producers, one executor that sleeps on it.

It is promised that a producer can be killed at any instruction and only its own calls are
lost. Here that means: from every reachable state the executor still gets to drain whatever a
live producer has published, though no sleep ever ends by itself (the time slices of the product
are a safety net, and the models do without). Here every call is worth a wake-up; when one is not
is test_model_quorum.py. The controls are protocols that look right and are not; the checker has
to find what is wrong with each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.ring_steps import PARKED, POLLING, arm_bell, disarm_bell, ring_bell
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    View,
    add,
    block_until_set,
    choose,
    clear_bits,
    explore,
    fence,
    load,
    set_bits,
    sleep_on,
    store,
    swap,
    wake,
)

CALLS = 2
NAMES = ("alice", "bob")


def producer(name: str) -> Program:
    call = 0
    while call < CALLS:
        call += 1
        yield store(f"tail_{name}", call)
        asleep = yield from ring_bell()
        if asleep & PARKED:
            yield wake("bell")
        elif asleep & POLLING:
            yield add("eventfd", 1)


def load_tails() -> Program:
    alice = yield load("tail_alice")
    bob = yield load("tail_bob")
    return alice, bob


def executor() -> Program:
    """Park or wait in the event loop, whichever: the model leaves it open."""
    while True:
        seen = yield load("bell")
        drained = yield from load_tails()  # noqa: F841 - the good() reads it
        polls = yield choose(2)
        if polls:
            armed = yield from arm_bell(seen, POLLING, 1)
            if armed:
                yield block_until_set("eventfd")
                yield swap("eventfd", 0)
                yield from disarm_bell()
        else:
            armed = yield from arm_bell(seen, PARKED, 1)
            if armed:
                yield sleep_on("bell", seen | PARKED)
                yield from disarm_bell()


def live_calls_are_drained(view: View) -> bool:
    drained = view.local("executor", "drained") or (0, 0)
    return all(
        not view.alive(name) or (view.finished(name) and count == CALLS)
        for name, count in zip(NAMES, drained, strict=True)
    )


def bell_model(
    producer: Callable[[str], Program] = producer,
    executor: Callable[[], Program] = executor,
    *,
    killed: bool,
    slices: bool = False,
) -> Model:
    return Model(
        words={"bell": 0, "quorum": 0, "eventfd": 0, "parked": 0, "tail_alice": 0, "tail_bob": 0},
        processes=(
            *(Process(name, functools.partial(producer, name), mortal=killed) for name in NAMES),
            Process("executor", executor),
        ),
        good=live_calls_are_drained,
        sleeps_may_end=slices,
    )


def test_no_wakeup_is_lost() -> None:
    result = explore(bell_model(killed=False))
    assert result.violation is None, result
    assert result.states > 15_000


def test_no_live_producer_is_stranded_when_others_are_killed() -> None:
    result = explore(bell_model(killed=True))
    assert result.violation is None, result
    assert result.states > 50_000


@pytest.mark.soak
def test_sleeps_that_end_by_themselves_do_not_confuse_the_bell() -> None:
    result = explore(bell_model(killed=True, slices=True))
    assert result.violation is None, result
    assert result.states > 100_000


# ---- controls: what the checker must find -----------------------------------------------


def two_word_producer(name: str, fenced: bool) -> Program:
    """Publish; if the executor is parked, take the flag down and wake it."""
    call = 0
    while call < CALLS:
        call += 1
        yield store(f"tail_{name}", call)
        if fenced:
            yield fence()
        parked = yield load("parked")
        if parked:
            yield swap("parked", 0)
            yield wake("parked")


def two_word_executor(fenced: bool) -> Program:
    drained = (0, 0)
    while True:
        yield store("parked", 1)
        if fenced:
            yield fence()
        tails = yield from load_tails()
        if tails == drained:
            yield sleep_on("parked", 1)
        drained = tails


def two_word_model(*, fenced: bool, killed: bool) -> Model:
    return bell_model(
        functools.partial(two_word_producer, fenced=fenced),
        functools.partial(two_word_executor, fenced),
        killed=killed,
    )


def test_control_parked_flag_in_a_second_word_loses_a_wakeup_without_fence() -> None:
    result = explore(two_word_model(fenced=False, killed=False))
    assert result.violation == "stuck for ever: nobody can move"
    assert "reaches memory" in result.trace


def test_control_parked_flag_in_a_second_word_with_fence_is_right_until_a_producer_is_killed() -> (
    None
):
    result = explore(two_word_model(fenced=True, killed=False))
    assert result.violation is None, result
    assert result.states > 1_000

    result = explore(two_word_model(fenced=True, killed=True))
    assert result.violation == "stuck for ever: nobody can move"
    assert result.trace.count("KILLED") == 1


def clearing_producer(name: str) -> Program:
    """Take the executor's announcement back on its behalf."""
    call = 0
    while call < CALLS:
        call += 1
        yield store(f"tail_{name}", call)
        asleep = yield from ring_bell()
        if asleep & PARKED:
            yield clear_bits("bell", PARKED)
            yield wake("bell")
        elif asleep & POLLING:
            yield add("eventfd", 1)


@pytest.mark.slow
def test_control_waker_that_clears_the_announcement_strands_others_when_killed() -> None:
    result = explore(bell_model(clearing_producer, killed=True))
    assert result.violation == "stuck for ever: nobody can move"
    assert result.trace.count("KILLED") == 1


def ringing_first(name: str) -> Program:
    call = 0
    while call < CALLS:
        call += 1
        asleep = yield from ring_bell()
        yield store(f"tail_{name}", call)
        if asleep & PARKED:
            yield wake("bell")
        elif asleep & POLLING:
            yield add("eventfd", 1)


def sleeping_without_comparing() -> Program:
    while True:
        seen = yield load("bell")
        drained = yield from load_tails()  # noqa: F841 - the good() reads it
        armed = yield from arm_bell(seen, PARKED, 1)
        if armed:
            yield sleep_on("bell", None)
            yield from disarm_bell()


def arming_without_comparing() -> Program:
    while True:
        yield load("bell")
        drained = yield from load_tails()  # noqa: F841 - the good() reads it
        seen = yield set_bits("bell", PARKED)
        yield sleep_on("bell", seen | PARKED)
        yield from disarm_bell()


def looking_at_the_bell_last() -> Program:
    while True:
        drained = yield from load_tails()  # noqa: F841 - the good() reads it
        seen = yield load("bell")
        armed = yield from arm_bell(seen, PARKED, 1)
        if armed:
            yield sleep_on("bell", seen | PARKED)
            yield from disarm_bell()


@pytest.mark.parametrize(
    ("broken_producer", "broken_executor"),
    [
        pytest.param(ringing_first, executor, id="producer rings before it publishes"),
        pytest.param(producer, sleeping_without_comparing, id="sleep compares nothing"),
        pytest.param(producer, arming_without_comparing, id="announcement compares nothing"),
        pytest.param(producer, looking_at_the_bell_last, id="bell looked at after the tails"),
    ],
)
def test_control_other_orders_lose_a_wakeup(
    broken_producer: Callable[[str], Program], broken_executor: Callable[[], Program]
) -> None:
    result = explore(bell_model(broken_producer, broken_executor, killed=False))
    assert result.violation == "stuck for ever: nobody can move"
