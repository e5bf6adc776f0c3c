"""Restates ring.h as model steps with memory orders, which are read from ring.h itself.

As `ring_steps`, for one slot, and with what is plain memory there as plain memory here. Capacity
and numbers are left out where nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.model.ring_orders import Site, ring_orders
from tests.model.ring_steps import (
    ABANDONED,
    CANCELLED,
    COMPLETION_STEP,
    DONE,
    FREE,
    LOOPS_MASK,
    OPEN,
    PARKED,
    POLLING,
    READY,
    STATE_MASK,
    STEP,
    TAKEN,
    THREADS_MASK,
    generation_of,
    missing,
    name_of,
    quorum_of,
    state_of,
    word_of,
)
from tests.model.tso_checker import Program, Violation
from tests.model.weak_checker import (
    add,
    clear_bits,
    compare_and_swap,
    load,
    set_bits,
    store,
)

SLOT_BITS = 0xFF  # flags and state; more than the model has


class Orders:
    """The orders of ring.h, or those with some of them replaced.

    Attributes:
        asked: whose functions' operations were executed.
    """

    def __init__(self, instead: Mapping[Site, str] | None = None) -> None:
        self.asked: set[tuple[str, int]] = set()
        self._by_site = {
            (site.function, site.number, site.failure): order
            for site, order in (ring_orders() | dict(instead or {})).items()
        }

    def of(self, function: str, number: int, failure: bool = False) -> str:
        self.asked.add((function, number))
        return self._by_site[function, number, failure]


WORDS = {
    "stamp": 0,
    "state": word_of(0, FREE),
    "tail": 0,
    "tail of other": 0,
    "outcome": 0,
    "withdrawn": 0,
    "completions": 0,
    "bell": 0,
    "quorum": 0,
    "status": OPEN,
    "input": 0,
    "result": 0,
}
PLAIN = ("input", "result")


# ---- the producer's end -----------------------------------------------------------------


def publish(orders: Orders, tail: int, generation: int) -> Program:
    """Return the new tail. The index, which is always 0, is not worth a word."""
    yield store("stamp", generation, orders.of("ring_publish", 0))
    yield store("state", word_of(generation, READY), orders.of("ring_publish", 2))
    yield store("tail", tail + 1, orders.of("ring_publish", 4))
    return tail + 1


def is_open(orders: Orders) -> Program:
    status = yield load("status", orders.of("ring_is_open", 0))
    return status == OPEN


def look(orders: Orders) -> Program:
    word = yield load("state", orders.of("ring_look", 0))
    return word


def arm(orders: Orders, bit: int) -> Program:
    """Return the word as it now stands."""
    word = yield set_bits("state", bit, orders.of("ring_arm", 0))
    return word | bit


def withdraw(orders: Orders, only_ready: bool = False) -> Program:
    """Return the state it is in now."""
    word = yield load("state", orders.of("ring_withdraw", 0))
    while True:
        if state_of(word) == READY:
            following = CANCELLED
        elif state_of(word) == TAKEN and not only_ready:
            following = ABANDONED
        else:
            return state_of(word)
        found = yield compare_and_swap(
            "state",
            word,
            word_of(generation_of(word), following),
            orders.of("ring_withdraw", 1),
            orders.of("ring_withdraw", 1, failure=True),
        )
        if found == word:
            if following == CANCELLED:
                yield add("withdrawn", 1, orders.of("ring_withdraw", 2))
            return following
        word = found


def release(orders: Orders) -> Program:
    word = yield load("state", orders.of("ring_release", 0))
    wanted = word_of(generation_of(word), FREE)
    yield store("state", wanted, orders.of("ring_release", 1))


def join_completions(orders: Orders, step: int) -> Program:
    """Return the value to sleep on."""
    word = yield add("completions", step, orders.of("ring_join_completions", 0))
    return word + step


def ring_bell(orders: Orders) -> Program:
    """Return PARKED or POLLING if the executor must be woken."""
    before = yield add("bell", STEP, orders.of("ring_bell_ring", 0))
    asleep = before & (PARKED | POLLING)
    if not asleep:
        return 0
    quorum = yield load("quorum", orders.of("ring_bell_ring", 1))
    return asleep if missing(quorum, before) <= 0 else 0


# ---- the executor's end -----------------------------------------------------------------


def look_at_bell(orders: Orders) -> Program:
    word = yield load("bell", orders.of("ring_bell_look", 0))
    return word


def arm_bell(orders: Orders, seen: int, bit: int, calls: int) -> Program:
    """Return whether sleep until *calls* more rings is announced."""
    yield store("quorum", quorum_of(seen, calls), orders.of("ring_bell_arm", 0))
    word = yield compare_and_swap(
        "bell",
        seen,
        seen | bit,
        orders.of("ring_bell_arm", 1),
        orders.of("ring_bell_arm", 1, failure=True),
    )
    return word == seen


def disarm_bell(orders: Orders) -> Program:
    yield clear_bits("bell", PARKED | POLLING, orders.of("ring_bell_disarm", 0))


def drain(orders: Orders, head: int) -> Program:
    """Return how many calls are new."""
    tail = yield load("tail", orders.of("ring_drain", 0))
    return tail - head


def free(orders: Orders, word: int) -> Program:
    """Hand the slot of a withdrawn call back."""
    while state_of(word) == CANCELLED:
        found = yield compare_and_swap(
            "state",
            word,
            word_of(generation_of(word), FREE),
            orders.of("ring_free", 0),
            orders.of("ring_free", 0, failure=True),
        )
        if found == word:
            return
        word = found
    raise Violation("executor: somebody else moved the slot from CANCELLED (R2)")


def sweep(orders: Orders, withdrawn: int) -> Program:
    """Return how many slots became FREE, of the one that waits."""
    count = yield load("withdrawn", orders.of("ring_sweep", 0))
    if count == withdrawn:
        return 0
    word = yield load("state", orders.of("ring_sweep", 1))
    if state_of(word) != CANCELLED:
        return 0
    yield from free(orders, word)
    return 1


def take(orders: Orders) -> Program:
    """Return the generation taken, or None where the call had been cancelled (now FREE)."""
    word = yield load("state", orders.of("ring_take", 0))
    while True:
        if state_of(word) == CANCELLED:
            yield from free(orders, word)
            return None
        if state_of(word) != READY:
            raise Violation(f"executor: the slot stood in the ring {name_of(word)}")
        found = yield compare_and_swap(
            "state",
            word,
            word & ~STATE_MASK | TAKEN,
            orders.of("ring_take", 1),
            orders.of("ring_take", 1, failure=True),
        )
        if found == word:
            return generation_of(word)
        word = found


def complete(orders: Orders, generation: int, outcome: int) -> Program:
    """Return the flags of those to wake."""
    yield store("outcome", outcome, orders.of("ring_complete", 0))
    word = yield load("state", orders.of("ring_complete", 2))
    while True:
        if generation_of(word) != generation:
            raise Violation("executor: the slot has another generation than taken (R3)")
        if state_of(word) not in (TAKEN, ABANDONED):
            raise Violation(f"executor: the slot was taken and is {name_of(word)}")
        following = DONE if state_of(word) == TAKEN else FREE
        found = yield compare_and_swap(
            "state",
            word,
            word_of(generation, following),
            orders.of("ring_complete", 3),
            orders.of("ring_complete", 3, failure=True),
        )
        if found == word:
            return word & SLOT_BITS & ~STATE_MASK
        word = found


def notify(orders: Orders) -> Program:
    """Return who sleeps on the completion word."""
    word = yield add("completions", COMPLETION_STEP, orders.of("ring_notify", 0))
    return word & (THREADS_MASK | LOOPS_MASK)
