"""Decides whether a call can be lost, or run twice, while another executor takes over the name.

The executor says REPLACED at any moment, looks into the ring for the last time, runs what it found
there, and ends. The producer looks whether it said so, and then publishes; between the two it may
have been said. Such a *straggler* stands READY in a ring that nobody looks into any more. When
the old executor's end is proved, it goes over to the new executor's segment as after a death.

Where the producer looks a second time, after it rang the bell, it finds out at once, withdraws the
straggler and makes the call anew. That no straggler is left then takes one more thing: the
executor has to change the bell, too, between what it says and its last look.

The old executor may be killed meanwhile, at every step. And a producer that connected just before
may be attached only when the last look is over: its calls always go over at the end.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest

from tests.model.outcomes import GONE, one_outcome, result_of
from tests.model.ring_steps import (
    CANCELLED,
    CLOSED,
    DONE,
    IDLE,
    OPEN,
    REPLACED,
    TAKEN,
    add_to_bell,
    complete,
    disarm_bell,
    drain,
    is_open,
    publish,
    slot_words,
    state_of,
    take,
    withdraw,
)
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    View,
    Violation,
    choose,
    explore,
    is_alive,
    load,
    store,
    swap,
)

OLD, MOVED, NEW = "a.", "b.", "c."  # the segments: the old executor's, and two of the new one's
CALLS = 2


@dataclass(frozen=True)
class Reload:
    """How it is done; what differs from the default is a broken variant."""

    killed: bool = False
    looks_again: bool = False  # after publishing
    changes_bell: bool = False  # the old executor does, between REPLACED and its last look
    closes: bool = False  # the old executor says CLOSED when it ends
    moves: bool = True
    withdraws: bool = True  # a straggler, before it is made anew
    late: bool = False  # the producer is attached when the old executor has had its last look


# ---- the producer -------------------------------------------------------------------------


def producer(reload: Reload) -> Program:
    """Make calls, and wait until each has an outcome."""
    made = 0
    tail = 0
    later = 0
    segments: tuple[str, ...] = ()  # of each call
    while made < CALLS:
        made += 1
        takes_calls = yield from is_open()
        where = OLD if takes_calls else NEW
        if where == OLD:
            yield store(f"{OLD}input{made - 1}", made)
            tail = yield from publish(CALLS, tail, made - 1, 1, of=OLD)
            yield add_to_bell()
            if reload.looks_again:
                takes_calls = yield from is_open()
                if not takes_calls:
                    state = CANCELLED
                    if reload.withdraws:
                        state = yield from withdraw(made - 1, only_ready=True, of=OLD)
                    where = NEW if state == CANCELLED else OLD
                    del state
        if where == NEW:
            yield store(f"{NEW}input{made - 1}", made)
            later = yield from publish(CALLS, later, made - 1, 1, of=NEW)
        segments = (*segments, where)
        del takes_calls, where
    at = 0
    moved = 0
    while at < CALLS:
        over = False
        if segments[at] == OLD:
            over = yield from has_ended()
        word = yield load(f"{segments[at]}state{at}")
        outcome = 0
        if state_of(word) == DONE:
            value = yield load(f"{segments[at]}result{at}")
            if value != result_of(at + 1):
                raise Violation(f"call {at + 1} got {value:#x}, which is not its result")
            outcome = DONE
            del value
        elif over:
            outcome = yield from orphan(reload, at, state_of(word), moved)
            if not outcome:
                moved += 1
                segments = (*segments[:at], MOVED, *segments[at + 1 :])
        if outcome:
            yield store(f"outcome{at + 1}", outcome)
            at += 1
        del over, word, outcome


def has_ended() -> Program:
    """Return whether the old executor's process is over, as its pidfd says."""
    alive = yield is_alive("old")
    exited = yield load("exited")
    return not alive or bool(exited)


def orphan(reload: Reload, index: int, state: int, moved: int) -> Program:
    """Return the outcome of a call whose executor has ended, 0 if it has gone over."""
    if state == TAKEN:
        return GONE
    status = yield load("status")
    exited = yield load("exited")
    if status == CLOSED:
        return CLOSED
    if reload.looks_again and exited:
        raise Violation(f"call {index + 1} had to wait for the end of the old executor")
    if not reload.moves:
        return 0
    call = yield load(f"{OLD}input{index}")
    yield store(f"{MOVED}input{index}", call)
    yield from publish(CALLS, moved, index, 1, of=MOVED)
    return 0


# ---- executors ----------------------------------------------------------------------------


def start(index: int, of: str) -> Program:
    """Take a call and read its input; return its generation, or None, and the call."""
    generation = yield from take(index, of=of)
    if generation is None:
        return None, 0
    call = yield load(f"{of}input{index}")
    if call != index + 1:
        raise Violation(f"slot {index} has {call} for an input")
    return generation, call


def old(reload: Reload) -> Program:
    """Serve, until replaced; then drain."""
    head = 0
    ran = 0  # one bit for each call
    known = (IDLE,) * CALLS
    replaced = 0
    while not replaced:
        replaced = yield choose(2)
        if replaced:
            yield store("status", REPLACED)
            if reload.changes_bell:
                yield from disarm_bell()
        head, waiting, known = yield from drain(CALLS, head, (), known, of=OLD)
        while waiting:
            generation, call = yield from start(waiting[0], OLD)
            if generation is not None:
                ran |= 1 << call
                yield store(f"{OLD}result{waiting[0]}", result_of(call))
                yield from complete(waiting[0], generation, of=OLD)
            waiting = waiting[1:]
            del generation, call
        del waiting
    if reload.closes:
        yield store("status", CLOSED)
    yield swap("exited", 1)  # and all that it stored is there
    return ran


def old_attaching_late() -> Program:
    """Say REPLACED to a producer whose ring was not there at the last look."""
    ran = 0
    yield from disarm_bell()
    yield store("status", REPLACED)
    yield swap("exited", 1)
    return ran


def new() -> Program:
    """Serve both segments."""
    heads = (0, 0)
    ran = 0
    which = 0
    while True:
        of = NEW if which else MOVED
        head, waiting, known = yield from drain(CALLS, heads[which], (), (IDLE,) * CALLS, of=of)
        heads = (heads[0], head) if which else (head, heads[1])
        while waiting:
            generation, call = yield from start(waiting[0], of)
            if generation is not None:
                ran |= 1 << call
                yield store(f"{of}result{waiting[0]}", result_of(call))
                yield from complete(waiting[0], generation, of=of)
            waiting = waiting[1:]
            del generation, call
        which = 1 - which
        del head, waiting, known, of


# ---- what must hold -------------------------------------------------------------------------


def ran_twice(view: View) -> str | None:
    twice = view.local("old", "return" if view.finished("old") else "ran") & view.local(
        "new", "ran"
    )
    for call in range(1, CALLS + 1):
        if twice & 1 << call:
            return f"call {call} ran in both executors"
        if view.word(f"outcome{call}") == CLOSED:
            return f"call {call} failed because of the reload"
        if view.word(f"outcome{call}") == GONE and view.alive("old"):
            return f"call {call} was lost, and nobody died"
    return None


def all_have_outcomes(view: View) -> bool:
    return all(view.word(f"outcome{call}") for call in range(1, CALLS + 1))


def reload_model(reload: Reload) -> Model:
    words = {"status": OPEN, "bell": 0, "exited": 0}
    for segment in (OLD, MOVED, NEW):
        words |= slot_words(CALLS, of=segment)
    words |= {f"outcome{call}": 0 for call in range(1, CALLS + 1)}
    return Model(
        words=words,
        processes=(
            Process(
                "old",
                old_attaching_late if reload.late else functools.partial(old, reload),
                mortal=reload.killed,
            ),
            Process("new", new),
            Process("producer", functools.partial(producer, reload)),
        ),
        good=all_have_outcomes,
        invariant=ran_twice,
        watch={f"outcome{call}": one_outcome for call in range(1, CALLS + 1)},
    )


PROMPT = Reload(looks_again=True, changes_bell=True)


@pytest.mark.parametrize(
    ("reload", "least"),
    [
        pytest.param(Reload(), 3_500, id="stragglers go over at the end"),
        pytest.param(PROMPT, 8_000, id="stragglers are found at once"),
        pytest.param(Reload(killed=True), 15_000, id="killed, stragglers go over at the end"),
        pytest.param(Reload(late=True), 500, id="attached late, stragglers go over at the end"),
        pytest.param(
            replace(PROMPT, killed=True),
            25_000,
            id="killed, stragglers are found at once",
        ),
    ],
)
def test_no_call_is_lost_or_runs_twice(reload: Reload, least: int) -> None:
    result = explore(reload_model(reload))
    assert result.violation is None, result
    assert result.states > least


@pytest.mark.parametrize(
    ("reload", "violation"),
    [
        pytest.param(
            Reload(closes=True),
            "call 1 failed because of the reload",
            id="CLOSED stored over REPLACED",
        ),
        pytest.param(Reload(moves=False), "no way out", id="stragglers forgotten"),
        pytest.param(
            replace(PROMPT, withdraws=False),
            "call 1 ran in both executors",
            id="made anew without being withdrawn",
        ),
        pytest.param(
            replace(PROMPT, changes_bell=False),
            "call 1 had to wait for the end of the old executor",
            id="bell left as it was before the last look",
        ),
        pytest.param(
            replace(PROMPT, late=True),
            "call 1 had to wait for the end of the old executor",
            id="attached late, and relied upon that stragglers are found at once",
        ),
    ],
)
def test_control_a_broken_reload_is_noticed(reload: Reload, violation: str) -> None:
    result = explore(reload_model(reload))
    assert result.violation == violation
