"""Decides whether the memory orders of ring.h are enough, on any hardware that C11 runs on.

One scenario for each ordering pair of ring.h, of one producer and one executor, small enough for
every execution to be explored. Payloads are plain memory: one that is read or written without
order is a data race. Sleeps do not end by themselves, so a lost wake-up is found, too.

The controls weaken one order at a time, wherever ring.h has one that could be weaker. One that a
scenario relies on has to be missed; the table says which those are. tests/native has the same
scenarios in C, for a model checker that reads ring.h itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from tests.model.ring_orders import RING_H, WEAKER, Site, ring_orders
from tests.model.ring_steps import (
    CANCELLED,
    DONE,
    FREE,
    PARKED,
    REPLACED,
    THREAD_STEP,
    WAITER,
    state_of,
)
from tests.model.tso_checker import Model, Process, Program, Result, View, Violation
from tests.model.weak_checker import explore, load, read, sleep_on, store, wake, write
from tests.model.weak_steps import (
    PLAIN,
    WORDS,
    Orders,
    arm,
    arm_bell,
    complete,
    disarm_bell,
    drain,
    is_open,
    join_completions,
    look,
    look_at_bell,
    notify,
    publish,
    release,
    ring_bell,
    sweep,
    take,
    withdraw,
)

OUTCOME = 7


# ---- what scenarios consist of ------------------------------------------------------------


def call(orders: Orders, number: int) -> Program:
    yield write("input", number)
    yield from publish(orders, number - 1, number)


def wait_until(orders: Orders, state: int) -> Program:
    word = yield from look(orders)
    while state_of(word) != state:
        word = yield from look(orders)


def check_result(number: int) -> Program:
    outcome = yield load("outcome", "relaxed")
    value = yield read("result")
    if (outcome, value) != (OUTCOME, 10 * number):
        raise Violation(f"call {number} got outcome {outcome} and result {value}")


def wait_and_run(orders: Orders, head: int) -> Program:
    """Wait for the next call without sleeping, and run it; return the flags of those to wake."""
    found = yield from drain(orders, head)
    while not found:
        found = yield from drain(orders, head)
    return (yield from run(orders, head + 1))


def run(orders: Orders, number: int) -> Program:
    generation = yield from take(orders)
    if generation is None:
        return 0
    stamp = yield load("stamp", "relaxed")
    value = yield read("input")
    if (stamp, value) != (number, number):
        raise Violation(f"call {number} has stamp {stamp} and input {value}")
    yield write("result", 10 * number)
    return (yield from complete(orders, generation, OUTCOME))


# ---- the scenarios --------------------------------------------------------------------------


def calls_twice(orders: Orders) -> Program:
    yield from call(orders, 1)
    yield from wait_until(orders, DONE)
    yield from check_result(1)
    yield from release(orders)
    yield from call(orders, 2)
    yield from wait_until(orders, DONE)
    yield from check_result(2)


def gives_up(orders: Orders) -> Program:
    yield from call(orders, 1)
    state = yield from withdraw(orders)
    if state == DONE:
        yield from check_result(1)
        yield from release(orders)
    else:
        yield from wait_until(orders, FREE)
    yield from call(orders, 2)


def runs_twice(orders: Orders) -> Program:
    yield from wait_and_run(orders, 0)
    yield from wait_and_run(orders, 1)


def cancels(orders: Orders) -> Program:
    yield from call(orders, 1)
    state = yield from withdraw(orders, only_ready=True)
    if state == CANCELLED:
        yield from wait_until(orders, FREE)
        yield from call(orders, 2)


def sweeps(orders: Orders) -> Program:
    """Learn of a cancelled call by the count, and by nothing else."""
    found = yield from drain(orders, 0)
    while not found:
        found = yield from drain(orders, 0)
    counted = 0
    while not counted:
        counted = yield load("withdrawn", "relaxed")
    freed = yield from sweep(orders, 0)  # whose load finds the count, which this thread has seen
    if not freed:
        raise Violation("the call that the count counts is not swept")
    yield from wait_and_run(orders, 1)


def sleeps_on_slot(orders: Orders) -> Program:
    yield from call(orders, 1)
    word = yield from arm(orders, WAITER)
    while state_of(word) != DONE:
        yield sleep_on("state", word)
        word = yield from look(orders)
    yield from check_result(1)


def wakes_slot(orders: Orders) -> Program:
    flags = yield from wait_and_run(orders, 0)
    if flags & WAITER:
        yield wake("state")


def sleeps_on_completions(orders: Orders) -> Program:
    yield from call(orders, 1)
    joined = yield from join_completions(orders, THREAD_STEP)
    word = yield from look(orders)
    if state_of(word) != DONE:
        yield sleep_on("completions", joined)
        yield from wait_until(orders, DONE)
    yield from check_result(1)


def wakes_completions(orders: Orders) -> Program:
    yield from wait_and_run(orders, 0)
    sleeping = yield from notify(orders)
    if sleeping:
        yield wake("completions")


def rings(orders: Orders) -> Program:
    yield from call(orders, 1)
    asleep = yield from ring_bell(orders)
    if asleep:
        yield wake("bell")


def parks(orders: Orders) -> Program:
    """Announce sleep until many calls, take it back, and then sleep until the next one."""
    seen = yield from look_at_bell(orders)
    armed = yield from arm_bell(orders, seen, PARKED, 9)
    if armed:
        yield from disarm_bell(orders)
    found = 0
    while not found:
        seen = yield from look_at_bell(orders)
        found = yield from drain(orders, 0)
        if not found:
            armed = yield from arm_bell(orders, seen, PARKED, 1)
            if armed:
                yield sleep_on("bell", seen | PARKED)
                yield from disarm_bell(orders)
    yield from run(orders, 1)


def rings_too(orders: Orders) -> Program:
    """Of another producer's ring, no more than its tail."""
    yield store("tail of other", 1, orders.of("ring_publish", 4))
    asleep = yield from ring_bell(orders)
    if asleep:
        yield wake("bell")


def parks_for_both(orders: Orders) -> Program:
    """Sleep until each of two producers has a call."""
    while True:
        seen = yield from look_at_bell(orders)
        found = yield from drain(orders, 0)
        others = yield load("tail of other", orders.of("ring_drain", 0))
        if found + others == 2:
            return
        armed = yield from arm_bell(orders, seen, PARKED, 2 - found - others)
        if armed:
            yield sleep_on("bell", seen | PARKED)
            yield from disarm_bell(orders)
        del seen, found, others, armed


def calls_at_the_end(orders: Orders) -> Program:
    """Return whether the executor takes the call, as far as the producer knows."""
    yield from call(orders, 1)
    yield from ring_bell(orders)
    return (yield from is_open(orders))


def closes(orders: Orders) -> Program:
    """Return whether the last drain found the call."""
    yield store("status", REPLACED, "release")
    yield from disarm_bell(orders)
    found = yield from drain(orders, 0)
    return bool(found)


SCENARIOS: dict[str, tuple[Callable[[Orders], Program], Callable[[Orders], Program]]] = {
    "call": (calls_twice, runs_twice),
    "free": (gives_up, runs_twice),
    "sweep": (cancels, sweeps),
    "waiter": (sleeps_on_slot, wakes_slot),
    "completions": (sleeps_on_completions, wakes_completions),
    "bell": (rings, parks),
    "quorum": (rings, parks_for_both),
    "closing": (calls_at_the_end, closes),
}


NEED_NOT_END = ("free", "sweep")  # their executors wait for a call that need not come


def explored(scenario: str, orders: Orders) -> Result:
    producer, executor = SCENARIOS[scenario]

    def finished(view: View) -> bool:
        return view.finished("producer") and view.finished("executor")

    def broken(view: View) -> str | None:
        if scenario == "closing" and finished(view):
            taken = view.local("executor", "return")
            if view.local("producer", "return") and not taken:
                return "a call is left to an executor that looks no more"
        return None

    other = Process("other", functools.partial(rings_too, orders))
    others = (other,) if scenario == "quorum" else ()
    return explore(
        Model(
            words=WORDS,
            processes=(
                Process("producer", functools.partial(producer, orders)),
                Process("executor", functools.partial(executor, orders)),
                *others,
            ),
            good=lambda view: (
                finished(view) or (scenario in NEED_NOT_END and view.finished("producer"))
            ),
            invariant=broken,
        ),
        PLAIN,
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_orders_of_ring_h_are_enough(scenario: str) -> None:
    result = explored(scenario, Orders())
    assert result.violation is None, result
    assert result.states > 30


# ---- controls: what the checker must find ---------------------------------------------------

EVERY_CALL = "call free sweep waiter completions bell"

# Which scenarios notice which weaker order: the function, the number of the operation in it, and
# that order.
NOTICED = {
    ("ring_publish", 4, "relaxed"): EVERY_CALL,
    ("ring_drain", 0, "relaxed"): EVERY_CALL,
    ("ring_complete", 3, "acquire"): "call free waiter completions",
    ("ring_look", 0, "relaxed"): "call free waiter completions",
    ("ring_arm", 0, "release"): "waiter",
    ("ring_withdraw", 0, "relaxed"): "free",
    ("ring_withdraw", 2, "relaxed"): "sweep",
    ("ring_sweep", 0, "relaxed"): "sweep",
    ("ring_join_completions", 0, "release"): "completions",
    ("ring_notify", 0, "acquire"): "completions",
    ("ring_bell_ring", 0, "acquire"): "bell quorum closing",
    ("ring_bell_ring", 0, "release"): "bell closing",
    ("ring_bell_look", 0, "relaxed"): "bell quorum",
    ("ring_bell_arm", 1, "acquire"): "bell",
    ("ring_bell_disarm", 0, "acquire"): "closing",
    ("ring_bell_disarm", 0, "release"): "closing",
}
NOTICED_OF_FAILURE = {("ring_withdraw", 1, "relaxed"): "free"}  # of a compare-and-swap


def weaker_orders() -> list[tuple[Site, str]]:
    return [
        (site, weaker) for site, order in ring_orders().items() for weaker in WEAKER.get(order, ())
    ]


def noticing(site: Site, weaker: str) -> list[str]:
    """Return the scenarios that notice an order that is weaker than in ring.h."""
    table = NOTICED_OF_FAILURE if site.failure else NOTICED
    return table.get((site.function, site.number, weaker), "").split()


def test_control_a_weaker_order_is_noticed() -> None:
    for site, weaker in weaker_orders():
        for scenario in noticing(site, weaker)[-1:]:
            result = explored(scenario, Orders({site: weaker}))
            assert result.violation is not None, f"{site} {weaker}"


@pytest.mark.slow
def test_the_table_says_all_that_is_noticed() -> None:
    """Nothing else relies on an order that could be weaker: it is there for the reader."""
    asked: dict[str, set[tuple[str, int]]] = {}
    for name in SCENARIOS:
        orders = Orders()
        explored(name, orders)
        asked[name] = orders.asked
    for site, weaker in weaker_orders():
        concerned = [name for name in SCENARIOS if (site.function, site.number) in asked[name]]
        instead = Orders({site: weaker})
        found = [name for name in concerned if explored(name, instead).violation is not None]
        assert found == noticing(site, weaker), f"{site} {weaker}"


def test_the_table_names_orders_that_ring_h_has() -> None:
    named = {(site.function, site.number, weaker) for site, weaker in weaker_orders()}
    assert not (NOTICED.keys() | NOTICED_OF_FAILURE.keys()) - named


def test_every_ordering_pair_of_ring_h_has_a_scenario() -> None:
    pairs = set(re.findall(r"\bSYNC ([a-z]+)", RING_H.read_text(encoding="utf-8")))
    renamed = {"publish": "call", "complete": "call", "withdraw": "sweep"}
    assert {renamed.get(pair, pair) for pair in pairs} <= SCENARIOS.keys()
