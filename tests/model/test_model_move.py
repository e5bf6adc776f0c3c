"""Decides what becomes of calls when their executor is killed and another one takes them over.

One producer, whose threads hold its mutex (in the product the GIL) for each step on the ring: one
thread a call, which is published and sleeps until it has an outcome; one that gives the first call
up at any moment; and one that moves what is left to the next executor's segment when the last
one's death is proved. Executors are killed at every step, all but the last.

Held in every state: a call has one outcome; one that is not idempotent runs at most once, any
other in as many executors as it may; what was certain never to run has not run; a result that was
there before its executor died reaches its call. And from every state each call gets its outcome
and each slot comes back, though no sleep ends by itself.

The controls are the ways to do it that are not right: the checker has to find what is wrong.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest

from tests.model.outcomes import GONE, one_outcome, result_of
from tests.model.ring_steps import (
    ABANDONED,
    CANCELLED,
    DONE,
    FREE,
    IDLE,
    READY,
    TAKEN,
    WAITER,
    arm,
    complete,
    drain,
    generation_of,
    publish,
    release,
    slot_words,
    state_of,
    take,
    withdraw,
    word_of,
)
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    View,
    Violation,
    block_until_set,
    explore,
    go_on,
    is_alive,
    load,
    sleep_on,
    store,
    swap,
    wake,
)

SEGMENTS = ("a.", "b.", "c.")  # one for each executor, in the order in which they serve


@dataclass(frozen=True)
class Moving:
    """How the producer goes over; what differs from the default is a broken variant."""

    calls: int = 1
    executors: int = 2
    idempotent: bool = False
    most_runs: int = 3
    given_up: bool = True  # the first call may be, at any moment
    waits_for_death: bool = True
    holds_mutex: bool = True
    carries_done: bool = True
    looks_at_taken: bool = True
    changes_old_word: str = "by exchange"
    forgets_given_up: bool = True
    counts_runs: bool = True


# ---- the producer's mutex -----------------------------------------------------------------


def lock() -> Program:
    while True:
        yield block_until_set("unlocked")
        unlocked = yield swap("unlocked", 0)
        if unlocked:
            return


def unlock() -> Program:
    yield swap("unlocked", 1)


# ---- its threads --------------------------------------------------------------------------


def caller(call: int) -> Program:
    """Sleep until the call, which is published in a slot of its own, has an outcome."""
    index = call - 1
    while True:
        yield from lock()
        own = yield load(f"own{index}")
        if own != call:
            yield from unlock()
            return
        at = yield load("at")
        word = yield from arm(index, WAITER, of=SEGMENTS[at])
        if state_of(word) == DONE:
            value = yield load(f"{SEGMENTS[at]}result{index}")
            if value not in (GONE, result_of(call)):
                raise Violation(f"call {call} got {value:#x}, which is not its result")
            yield from release(index, of=SEGMENTS[at])
            yield store(f"own{index}", 0)
            yield store(f"outcome{call}", GONE if value == GONE else DONE)
            yield from unlock()
            return
        yield from unlock()
        yield sleep_on(f"{SEGMENTS[at]}state{index}", word)
        del at, word


def quitter() -> Program:
    """Give the first call up, or never."""
    while True:
        yield go_on()
        yield from lock()
        own = yield load("own0")
        if own:
            at = yield load("at")
            state = yield from withdraw(0, of=SEGMENTS[at])
            if state in (CANCELLED, ABANDONED):
                yield store("own0", 0)
                yield store("outcome1", state)
                yield from unlock()
                yield wake(f"{SEGMENTS[at]}state0")
                return
            del at, state
        yield from unlock()
        outcome = yield load("outcome1")
        if outcome:
            return
        del outcome


def mover(moving: Moving) -> Program:
    """Go over to each next executor when the last one's death is proved."""
    at = 0
    while at < moving.executors - 1:
        if moving.waits_for_death:
            alive = yield is_alive(f"executor {at}")
            while alive:
                alive = yield is_alive(f"executor {at}")
            del alive
        else:
            yield go_on()  # its socket has ended, which the executor may do in its last moments
        if moving.holds_mutex:
            yield from lock()
        index = 0
        while index < moving.calls:
            yield from move(moving, index, SEGMENTS[at], SEGMENTS[at + 1])
            index += 1
        del index
        at += 1
        yield store("at", at)
        if moving.holds_mutex:
            yield from unlock()


def move(moving: Moving, index: int, old: str, new: str) -> Program:
    """Take one slot over from the segment *old* to *new*."""
    own = yield load(f"own{index}")
    word = yield load(f"{old}state{index}")
    if own or (not moving.forgets_given_up and state_of(word) == ABANDONED):
        state = state_of(word)
        runs = 0
        if not moving.looks_at_taken and state == TAKEN:
            state = READY
        if state == TAKEN and moving.counts_runs:
            runs = yield load(f"runs{index}")
            runs += 1
            yield store(f"runs{index}", runs)
        again = moving.idempotent and runs < moving.most_runs
        if state == READY or (state in (TAKEN, ABANDONED) and again):
            call = yield load(f"{old}input{index}")
            yield store(f"{new}input{index}", call)
            tail = yield load(f"{new}tail")
            yield from publish(moving.calls, tail, index, generation_of(word), of=new)
        else:
            value = GONE
            if state == DONE and moving.carries_done:
                value = yield load(f"{old}result{index}")
            yield store(f"{new}result{index}", value)
            yield store(f"{new}state{index}", word_of(generation_of(word), DONE))
    # Who has armed the old word and does not sleep yet must not fall asleep on it.
    if moving.changes_old_word == "by exchange":
        yield swap(f"{old}state{index}", word_of(generation_of(word), FREE))
    elif moving.changes_old_word == "by plain store":
        yield store(f"{old}state{index}", word_of(generation_of(word), FREE))
    yield wake(f"{old}state{index}")


# ---- executors ----------------------------------------------------------------------------


def executor(calls: int, of: str) -> Program:
    """Run what is published in one segment, for ever."""
    head = 0
    waiting: tuple[int, ...] = ()
    known = (IDLE,) * calls
    took = ran = completed = 0  # one bit for each call
    while True:
        if not waiting:
            head, waiting, known = yield from drain(calls, head, waiting, known, of=of)
        else:
            index = waiting[0]
            generation = yield from take(index, of=of)
            if generation is not None:
                took |= 1 << index + 1
                call = yield load(f"{of}input{index}")
                if call != index + 1:
                    raise Violation(f"slot {index} has {call} for an input")
                ran |= 1 << call
                yield store(f"{of}result{index}", result_of(call))
                flags = yield from complete(index, generation, of=of)
                completed |= 1 << call
                if flags & WAITER:
                    yield wake(f"{of}state{index}")
                del call, flags
            known = (*known[:index], IDLE, *known[index + 1 :])
            waiting = waiting[1:]
            del index, generation


# ---- what must hold -------------------------------------------------------------------------


def broken_invariant(moving: Moving, view: View) -> str | None:
    names = [f"executor {number}" for number in range(moving.executors)]
    for call in range(1, moving.calls + 1):
        bit = 1 << call
        runs = sum(bool(view.local(name, "ran") & bit) for name in names)
        if runs > (moving.most_runs if moving.idempotent else 1):
            return f"call {call} ran {runs} times"
        outcome = view.word(f"outcome{call}")
        if outcome == CANCELLED and runs and not moving.idempotent:
            return f"call {call} was certain never to run, and ran"
        if outcome == DONE and not runs:
            return f"call {call} has a result and never ran"
        if outcome == GONE and not any(view.local(name, "took") & bit for name in names):
            return f"call {call} was lost, though no executor had taken it"
        if outcome == GONE and any(view.local(name, "completed") & bit for name in names):
            return f"call {call} was lost, though it was done"
        if outcome == GONE and moving.idempotent and moving.executors <= moving.most_runs:
            return f"call {call} was lost, though it could have run once more"
    return None


def all_is_settled(moving: Moving, view: View) -> bool:
    """Every call has its outcome, and all slots are back."""
    if not all(view.word(f"outcome{call}") for call in range(1, moving.calls + 1)):
        return False
    if not all(view.finished(f"caller {call}") for call in range(1, moving.calls + 1)):
        return False
    segment = SEGMENTS[view.word("at")]
    alive = view.alive(f"executor {view.word('at')}")
    states = [state_of(view.word(f"{segment}state{index}")) for index in range(moving.calls)]
    return not alive or all(state == FREE for state in states)


def moving_model(moving: Moving) -> Model:
    words = {"unlocked": 1, "at": 0}
    for segment in SEGMENTS[: moving.executors]:
        words |= slot_words(moving.calls, of=segment)
    words |= {f"{SEGMENTS[0]}tail": moving.calls}
    for index in range(moving.calls):  # published already: that is for test_model_slot.py
        words |= {f"{SEGMENTS[0]}index{index}": index, f"{SEGMENTS[0]}input{index}": index + 1}
        words |= {f"{SEGMENTS[0]}state{index}": word_of(1, READY), f"own{index}": index + 1}
    for call in range(1, moving.calls + 1):
        words |= {f"runs{call - 1}": 0, f"outcome{call}": 0}
    executors = [
        Process(
            f"executor {number}",
            functools.partial(executor, moving.calls, SEGMENTS[number]),
            mortal=number < moving.executors - 1,
        )
        for number in range(moving.executors)
    ]
    callers = [
        Process(f"caller {call}", functools.partial(caller, call))
        for call in range(1, moving.calls + 1)
    ]
    quitters = [Process("quitter", quitter)] if moving.given_up else []
    return Model(
        words=words,
        processes=(
            *executors,
            *callers,
            *quitters,
            Process("mover", functools.partial(mover, moving)),
        ),
        good=functools.partial(all_is_settled, moving),
        invariant=functools.partial(broken_invariant, moving),
        watch={f"outcome{call}": one_outcome for call in range(1, moving.calls + 1)},
    )


@pytest.mark.parametrize(
    ("moving", "least"),
    [
        pytest.param(Moving(), 50_000, id="one call"),
        pytest.param(Moving(idempotent=True), 100_000, id="may run again", marks=pytest.mark.slow),
        pytest.param(
            Moving(calls=2, given_up=False), 240_000, id="two calls", marks=pytest.mark.slow
        ),
        pytest.param(Moving(executors=3), 490_000, id="killed twice", marks=pytest.mark.soak),
        pytest.param(
            Moving(executors=3, given_up=False, idempotent=True),
            230_000,
            id="killed twice, may run again",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            Moving(executors=3, given_up=False, idempotent=True, most_runs=2),
            150_000,
            id="killed as often as it may run",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_call_has_one_outcome_whenever_its_executor_is_killed(
    moving: Moving, least: int
) -> None:
    result = explore(moving_model(moving))
    assert result.violation is None, result
    assert result.states > least


# ---- controls: what the checker must find ---------------------------------------------------

QUIET = Moving(given_up=False)


@pytest.mark.parametrize(
    ("moving", "violation"),
    [
        pytest.param(
            replace(QUIET, waits_for_death=False, changes_old_word=""),
            "call 1 ran 2 times",
            id="gone over at the end of the socket, not of the process",
        ),
        pytest.param(
            replace(QUIET, looks_at_taken=False),
            "call 1 ran 2 times",
            id="taken call published again",
        ),
        pytest.param(
            replace(QUIET, carries_done=False),
            "call 1 was lost, though it was done",
            id="result not carried over",
        ),
        pytest.param(
            Moving(holds_mutex=False),
            "call 1 was certain never to run, and ran",
            id="gone over while a caller gives up",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            replace(QUIET, changes_old_word=""),
            "no way out",
            id="sleeper left on the old word",
        ),
        pytest.param(
            replace(QUIET, changes_old_word="by plain store"),
            "no way out",
            id="old word changed by a plain store",
        ),
        pytest.param(
            Moving(idempotent=True, forgets_given_up=False),
            "no way out",
            id="call that was given up published again",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Moving(executors=3, given_up=False, idempotent=True, most_runs=2, counts_runs=False),
            "call 1 ran 3 times",
            id="runs not counted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_control_a_broken_move_is_noticed(moving: Moving, violation: str) -> None:
    result = explore(moving_model(moving))
    assert result.violation == violation
