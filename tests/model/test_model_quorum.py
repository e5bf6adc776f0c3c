"""Decides whether an executor that sleeps on until a batch is full can sleep through one.

Its function takes batches of `size` calls. While fewer wait it sleeps until as many rings have
come as are missing, and has a timer: the deadline of the oldest call, or, where nothing waits
and a batch has just been run, the time by which it wants to have looked again. Where nothing
waits and there is no timer, the first ring has to wake it. Asked of every reachable state, with
producers killed at every step:

  full      where `size` calls of live producers wait, the executor gets to them without a timer
  stranded  where any call of a live producer waits, the executor gets to it, by a timer if need be
  urgent    the executor gets to what an urgent ring is about without a timer

The bell starts just below the end of its count, so that every model goes through the wrap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.model.ring_steps import (
    PARKED,
    POLLING,
    STEP,
    WORD,
    add_to_bell,
    arm_bell,
    disarm_bell,
    missing,
    quorum_of,
    ring_bell,
)
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    View,
    add,
    block_until_set,
    choose,
    compare_and_swap,
    explore,
    go_on,
    load,
    sleep_on,
    store,
    swap,
    wake,
)

pytestmark = pytest.mark.slow  # every interleaving, of several producers

NAMES = ("alice", "bob", "carol")
STUCK = "stuck for ever: nobody can move"

Ring = Callable[..., Program]


def producer(name: str, calls: int, ring: Ring = ring_bell) -> Program:
    """Make up to *calls* calls, and at some point no more: nobody may need the next one."""
    made = 0
    while made < calls:
        if made:
            yield go_on()
        made += 1
        yield store(f"tail_{name}", made)
        yield from ring_and_wake(ring)


def ring_and_wake(ring: Ring, urgent: bool = False) -> Program:
    asleep = yield from ring(urgent)
    if asleep & PARKED:
        yield wake("bell")
    elif asleep & POLLING:
        yield add("eventfd", 1)


def poster(ring: Ring = ring_bell) -> Program:
    """Have the executor do something that no call is about."""
    yield store("posted", 1)
    yield from ring_and_wake(ring, urgent=True)


def executor(
    producers: int,
    size: int,
    bits: tuple[int, ...],
    hot: bool,
    arm: Callable[[int, int, int], Program] = arm_bell,
    counts_late: bool = True,
    patient: bool = False,
) -> Program:
    """Run batches, wait for more.

    Args:
        bits: where to wait, PARKED or POLLING or either.
        hot: a batch has just been run.
        counts_late: what is missing is counted after the drain. Otherwise broken.
        patient: sleep until a batch is full, with nothing waiting and no timer. Broken.
    """
    heads = (0,) * producers
    waiting: tuple[int, ...] = ()  # whose calls, oldest first
    overdue = False
    while True:
        seen = yield load("bell")
        heard = yield load("posted")  # noqa: F841 - a good() reads it
        counted = 0 if counts_late else len(waiting)
        index = 0
        while index < producers:
            tail = yield load(f"tail_{NAMES[index]}")
            waiting = (*waiting, *(index,) * (tail - heads[index]))
            heads = (*heads[:index], tail, *heads[index + 1 :])
            index += 1
            del tail
        if len(waiting) >= size or (waiting and overdue):
            waiting = waiting[size:]
            overdue = False
            hot = True
        else:
            counted = len(waiting) if counts_late else counted
            timed = hot or bool(waiting)
            hot = hot and bool(waiting)
            which = 0
            if len(bits) > 1:
                which = yield choose(len(bits))
            calls = size - counted if timed or patient else 1
            overdue = False
            armed = yield from arm(seen, bits[which], calls)
            del calls
            if armed:
                if bits[which] == PARKED:
                    ended = yield sleep_on("bell", seen | PARKED, timed)
                else:
                    ended = yield block_until_set("eventfd", timed)
                    yield swap("eventfd", 0)
                del seen
                overdue = ended == "timer" and bool(waiting)
                del ended
                yield from disarm_bell()
            del timed, which, armed
        del counted, index


# ---- what must stay reachable ------------------------------------------------------------


def live_calls(view: View) -> int:
    """Return how many calls of live producers were published and are in no batch."""
    heads, waiting = view.local("executor", "heads"), view.local("executor", "waiting")
    return sum(
        view.word(f"tail_{NAMES[index]}") - head + waiting.count(index)
        for index, head in enumerate(heads)
        if view.alive(NAMES[index])
    )


def no_full_batch_waits(size: int, view: View) -> bool:
    return live_calls(view) < size


def no_call_waits(view: View) -> bool:
    return live_calls(view) == 0


def post_is_heard(view: View) -> bool:
    return view.finished("poster") and view.local("executor", "heard") == 1


def quorum_model(
    *,
    good: Callable[[View], bool],
    timers: bool,
    producers: int = 2,
    calls: int = 2,
    size: int = 2,
    bits: tuple[int, ...] = (PARKED,),
    hot: bool = False,
    killed: bool = True,
    posts: bool = False,
    ring: Ring = ring_bell,
    executor: Callable[..., Program] = executor,
) -> Model:
    names = NAMES[:producers]
    words = {"bell": WORD - 2 * STEP, "quorum": 0, "eventfd": 0, "posted": 0}
    return Model(
        words=words | {f"tail_{name}": 0 for name in names},
        processes=(
            *(
                Process(name, functools.partial(producer, name, calls, ring), mortal=killed)
                for name in names
            ),
            *([Process("poster", functools.partial(poster, ring))] if posts else ()),
            Process("executor", functools.partial(executor, producers, size, bits, hot)),
        ),
        good=good,
        forgets_the_dead=True,
        timers_fire=timers,
    )


def full(size: int = 2, **options: Any) -> Model:
    good = functools.partial(no_full_batch_waits, size)
    return quorum_model(good=good, timers=False, size=size, **options)


def stranded(**options: Any) -> Model:
    return quorum_model(good=no_call_waits, timers=True, **options)


def urgent(**options: Any) -> Model:
    return quorum_model(good=post_is_heard, timers=False, posts=True, **options)


EITHER = (PARKED, POLLING)


@pytest.mark.parametrize(
    ("model", "states"),
    [
        pytest.param(full(), 150_000, id="full, parked"),
        pytest.param(full(bits=(POLLING,)), 300_000, id="full, polling", marks=pytest.mark.soak),
        # A batch of three of two producers is never full where one of them is dead.
        pytest.param(full(size=3, killed=False), 100_000, id="full, three"),
        pytest.param(
            full(producers=3, calls=1), 500_000, id="full, three producers", marks=pytest.mark.soak
        ),
        pytest.param(stranded(), 150_000, id="stranded, parked"),
        pytest.param(
            stranded(bits=(POLLING,)), 300_000, id="stranded, polling", marks=pytest.mark.soak
        ),
        pytest.param(stranded(size=3, hot=True), 250_000, id="stranded, three"),
        pytest.param(urgent(calls=1), 100_000, id="urgent, parked"),
        pytest.param(
            urgent(calls=1, size=3, hot=True, bits=(POLLING,)), 150_000, id="urgent, polling"
        ),
    ],
)
def test_no_batch_and_no_call_is_slept_through(model: Model, states: int) -> None:
    result = explore(model)
    assert result.violation is None, result
    assert result.states > states


@pytest.mark.soak
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(full(producers=3, calls=1, hot=True), id="full, three producers, hot"),
        pytest.param(
            full(producers=3, calls=1, size=3, hot=True, killed=False, bits=EITHER),
            id="full, three of three",
        ),
        pytest.param(full(calls=3, size=3, killed=False), id="full, three calls of three"),
        pytest.param(full(calls=3, killed=False), id="full, three calls of two"),
        pytest.param(stranded(producers=3, calls=1, hot=True), id="stranded, three producers"),
        pytest.param(stranded(bits=EITHER), id="stranded, either"),
    ],
)
def test_no_batch_and_no_call_is_slept_through_in_larger_models(model: Model) -> None:
    result = explore(model)
    assert result.violation is None, result


# ---- controls: what the checker must find -----------------------------------------------


def ring_when(enough: Callable[[int, int], bool], urgent: bool = False) -> Program:
    """Wake by another rule: *enough* is asked of the quorum and the word before."""
    before = yield add_to_bell()
    asleep = before & (PARKED | POLLING)
    if asleep == 0 or urgent:
        return asleep
    quorum = yield load("quorum")
    return asleep if enough(quorum, before) else 0


def one_more(quorum: int, before: int) -> bool:
    return missing(quorum, before) < 0


def nobody_but_the_last(quorum: int, before: int) -> bool:
    """Leave it to the one whose ring completes the quorum, who may be killed."""
    return missing(quorum, before) == 0


def without_wrap(quorum: int, before: int) -> bool:
    return quorum <= before // STEP + 1


def nothing_is_urgent(urgent: bool = False) -> Program:
    return (yield from ring_bell())


def arm_before_the_quorum(seen: int, bit: int, calls: int) -> Program:
    word = yield compare_and_swap("bell", seen, seen | bit)
    yield store("quorum", quorum_of(seen, calls))
    return word == seen


RINGS_ONE_MORE = functools.partial(ring_when, one_more)
RINGS_LAST = functools.partial(ring_when, nobody_but_the_last)
RINGS_UNWRAPPED = functools.partial(ring_when, without_wrap)
COUNTS_EARLY = functools.partial(executor, counts_late=False)
ARMS_EARLY = functools.partial(executor, arm=arm_before_the_quorum)
PATIENT = functools.partial(executor, patient=True)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(full(ring=RINGS_ONE_MORE, killed=False), id="full, one ring more"),
        pytest.param(stranded(ring=RINGS_ONE_MORE, killed=False), id="stranded, one ring more"),
        pytest.param(full(ring=RINGS_UNWRAPPED, killed=False), id="full, no wrap"),
        pytest.param(stranded(ring=RINGS_UNWRAPPED), id="stranded, no wrap"),
        pytest.param(full(executor=COUNTS_EARLY, killed=False), id="counted before the drain"),
        pytest.param(
            stranded(executor=ARMS_EARLY, bits=(POLLING,), killed=False),
            id="quorum stored after the announcement",
        ),
        pytest.param(stranded(executor=PATIENT, killed=False), id="no timer while nothing waits"),
        pytest.param(
            urgent(ring=nothing_is_urgent, calls=1, hot=True, killed=False), id="nothing is urgent"
        ),
    ],
)
def test_control_other_quorums_are_slept_through(model: Model) -> None:
    result = explore(model)
    assert result.violation == STUCK


def test_control_waking_by_the_last_ring_only_is_right_until_a_producer_is_killed() -> None:
    result = explore(full(ring=RINGS_LAST, killed=False))
    assert result.violation is None, result

    result = explore(full(ring=RINGS_LAST, killed=True))
    assert result.violation == STUCK
    assert result.trace.count("KILLED") == 1


def test_a_parked_executor_would_get_away_with_storing_the_quorum_late() -> None:
    """A ring in between changes the word, so that the sleep is refused. Polling has no net."""
    result = explore(stranded(executor=ARMS_EARLY, killed=False))
    assert result.violation is None, result
