"""Decides whether a producer's threads can sleep through a result: on a slot, on completions.

Two threads of one producer sleep while the executor completes. Nobody is killed here and no
sleep ends by itself, unless a test says so; a thread that sleeps for ever is a lost wake-up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.ring_steps import (
    ASYNC,
    DONE,
    LOOP_STEP,
    LOOPS_MASK,
    READY,
    TAKEN,
    THREAD_STEP,
    THREADS_MASK,
    WAITER,
    arm,
    complete,
    generation_of,
    join_completions,
    leave_completions,
    notify,
    publish,
    release,
    slot_words,
    state_of,
    take,
    word_of,
)
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    View,
    Violation,
    add,
    block_until_set,
    choose,
    clear_bits,
    explore,
    load,
    set_bits,
    sleep_on,
    store,
    swap,
    wake,
)

Wait = Callable[[int, int], Program]
Complete = Callable[[int, int], Program]


def is_pending(word: int, generation: int) -> bool:
    """Only a word like this one may be slept on: nobody will wake who sleeps on any other."""
    return generation_of(word) == generation and state_of(word) in (READY, TAKEN)


def own_result(word: int, generation: int) -> int | None:
    """Return the word if it says that our call is done, None if another thread settled it."""
    return word if word_of(generation, DONE) == word & ~(WAITER | ASYNC) else None


# ---- the slot's own word ----------------------------------------------------------------


def sleep_on_slot(index: int, generation: int) -> Program:
    while True:
        word = yield from arm(index, WAITER)
        if not is_pending(word, generation):
            return own_result(word, generation)
        yield sleep_on(f"state{index}", word)


def listen_to_slot(index: int, generation: int) -> Program:
    """Wait as an event loop does."""
    while True:
        word = yield from arm(index, ASYNC)
        if not is_pending(word, generation):
            return own_result(word, generation)
        yield block_until_set("eventfd")
        yield swap("eventfd", 0)


def first_thread(wait: Wait) -> Program:
    """Get the first call's result, make a second call in the same slot and get that one's."""
    yield from wait(0, 1)
    yield from release(0)
    yield from publish(1, 1, 0, 2)
    word = yield from wait(0, 2)
    if word is None or generation_of(word) != 2:
        raise Violation("first thread: took the result of another call")


def second_thread(wait: Wait) -> Program:
    """Wait for the first call as well; the other thread may settle it and reuse the slot."""
    word = yield from wait(0, 1)
    if word is not None and generation_of(word) != 1:
        raise Violation("second thread: took the result of another call")


def completing_executor(complete: Complete, sleepers: int) -> Program:
    """Run both calls; each is taken as soon as its READY is there."""
    call = 0
    while call < 2:
        call += 1
        ready = False
        while not ready:
            tail = yield load("tail")
            ready = tail >= call
        generation = yield from take(0)
        flags = yield from complete(0, generation)
        if flags & WAITER:
            yield wake("state0", sleepers)
        if flags & ASYNC:
            yield add("eventfd", 1)


def both_threads_finish(view: View) -> bool:
    return view.finished("first") and view.finished("second")


def slot_model(
    first: Wait = sleep_on_slot,
    second: Wait = sleep_on_slot,
    complete: Complete = complete,
    *,
    sleepers: int = 2,
    slices: bool = False,
) -> Model:
    return Model(
        words=slot_words(1) | {"state0": word_of(1, READY), "tail": 1, "eventfd": 0},
        processes=(
            Process("first", functools.partial(first_thread, first)),
            Process("second", functools.partial(second_thread, second)),
            Process("executor", functools.partial(completing_executor, complete, sleepers)),
        ),
        good=both_threads_finish,
        sleeps_may_end=slices,
    )


@pytest.mark.parametrize("slices", [False, True], ids=["no slices", "slices"])
@pytest.mark.parametrize("second", [sleep_on_slot, listen_to_slot])
def test_two_threads_that_wait_for_one_slot_are_both_woken(second: Wait, slices: bool) -> None:
    result = explore(slot_model(second=second, slices=slices))
    assert result.violation is None, result
    assert result.states > 600


# ---- the completion word ----------------------------------------------------------------


def sleep_on_completions(index: int, generation: int) -> Program:
    while True:
        value = yield from join_completions(THREAD_STEP)
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            yield from leave_completions(THREAD_STEP)
            return word
        yield sleep_on("completions", value)
        yield from leave_completions(THREAD_STEP)


def listen_to_completions(index: int, generation: int) -> Program:
    """Wait as an event loop does."""
    while True:
        yield from join_completions(LOOP_STEP)
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            yield from leave_completions(LOOP_STEP)
            return word
        yield block_until_set("eventfd")
        yield swap("eventfd", 0)
        yield from leave_completions(LOOP_STEP)


def batching_executor(sleepers: int, early: bool) -> Program:
    """Complete both calls, in one batch or in two; *early* tells of them beforehand."""
    together = yield choose(2)
    if not together:
        yield from one_batch((0,), sleepers, early)
        yield from one_batch((1,), sleepers, early)
    else:
        yield from one_batch((0, 1), sleepers, early)


def one_batch(batch: tuple[int, ...], sleepers: int, early: bool) -> Program:
    asleep = 0
    if early:
        asleep = yield from notify()
    left = batch
    while left:
        generation = yield from take(left[0])
        yield from complete(left[0], generation)
        left = left[1:]
    if not early:
        asleep = yield from notify()
    if asleep & THREADS_MASK:
        yield wake("completions", sleepers)
    if asleep & LOOPS_MASK:
        yield add("eventfd", 1)


def waiting_thread(wait: Wait, index: int) -> Program:
    yield from wait(index, 1)


def completions_model(
    first: Wait = sleep_on_completions,
    second: Wait | None = None,
    *,
    sleepers: int = 2,
    early: bool = False,
    slices: bool = False,
) -> Model:
    words = slot_words(2) | {"completions": 0, "eventfd": 0}
    return Model(
        words=words | {"state0": word_of(1, READY), "state1": word_of(1, READY)},
        processes=(
            Process("first", functools.partial(waiting_thread, first, 0)),
            Process("second", functools.partial(waiting_thread, second or first, 1)),
            Process("executor", functools.partial(batching_executor, sleepers, early)),
        ),
        good=both_threads_finish,
        sleeps_may_end=slices,
    )


@pytest.mark.parametrize("slices", [False, True], ids=["no slices", "slices"])
@pytest.mark.parametrize("second", [sleep_on_completions, listen_to_completions])
def test_two_threads_that_wait_on_completions_are_both_woken(second: Wait, slices: bool) -> None:
    result = explore(completions_model(second=second, slices=slices))
    assert result.violation is None, result
    assert result.states > 5_000


# ---- controls: what the checker must find -----------------------------------------------


def sleep_without_comparing(index: int, generation: int) -> Program:
    while True:
        word = yield from arm(index, WAITER)
        if not is_pending(word, generation):
            return own_result(word, generation)
        yield sleep_on(f"state{index}", None)


def sleep_unless_done(index: int, generation: int) -> Program:
    """Sleep on any word but DONE, FREE for instance: the next call's publish wakes nobody."""
    while True:
        word = yield from arm(index, WAITER)
        if state_of(word) == DONE or generation_of(word) != generation:
            return own_result(word, generation)
        yield sleep_on(f"state{index}", word)


def sleep_and_disarm(index: int, generation: int) -> Program:
    """Take WAITER back after each sleep, although it stands for every sleeper."""
    while True:
        word = yield from arm(index, WAITER)
        if not is_pending(word, generation):
            return own_result(word, generation)
        yield sleep_on(f"state{index}", word)
        yield clear_bits(f"state{index}", WAITER)


def sleep_without_generation(index: int, generation: int) -> Program:
    while True:
        word = yield from arm(index, WAITER)
        if state_of(word) not in (READY, TAKEN):
            return word
        yield sleep_on(f"state{index}", word)


def complete_by_plain_store(index: int, generation: int) -> Program:
    """Load the flags, then store DONE over whatever stands there by then."""
    word = yield load(f"state{index}")
    yield store(f"state{index}", word_of(generation, DONE))
    return word & (WAITER | ASYNC)


STUCK = "stuck for ever: nobody can move"


@pytest.mark.parametrize(
    ("model", "violation"),
    [
        pytest.param(slot_model(sleep_without_comparing), STUCK, id="sleep compares nothing"),
        pytest.param(
            slot_model(second=sleep_unless_done), STUCK, id="sleep on a word that is not pending"
        ),
        pytest.param(
            slot_model(sleep_and_disarm, sleep_and_disarm, slices=True),
            STUCK,
            id="one sleeper clears the bit of both",
        ),
        pytest.param(
            slot_model(second=sleep_without_generation),
            "second thread: took the result of another call",
            id="no generation check",
        ),
        pytest.param(
            slot_model(complete=complete_by_plain_store), STUCK, id="complete by plain store"
        ),
        pytest.param(slot_model(sleepers=1), STUCK, id="wake one of two"),
    ],
)
def test_control_sleep_on_a_slot_goes_wrong(model: Model, violation: str) -> None:
    result = explore(model)
    assert result.violation == violation


def sleep_behind_one_bit(index: int, generation: int) -> Program:
    """Announce with a bit that all threads share, and take it back afterwards."""
    while True:
        value = yield set_bits("completions", THREAD_STEP)
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            yield clear_bits("completions", THREAD_STEP)
            return word
        yield sleep_on("completions", value | THREAD_STEP)
        yield clear_bits("completions", THREAD_STEP)


def look_before_joining(index: int, generation: int) -> Program:
    while True:
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            return word
        value = yield from join_completions(THREAD_STEP)
        yield sleep_on("completions", value)
        yield from leave_completions(THREAD_STEP)


def sleep_on_completions_without_comparing(index: int, generation: int) -> Program:
    while True:
        yield from join_completions(THREAD_STEP)
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            yield from leave_completions(THREAD_STEP)
            return word
        yield sleep_on("completions", None)
        yield from leave_completions(THREAD_STEP)


def listen_before_joining(index: int, generation: int) -> Program:
    """Look first and join only then, as an event loop."""
    while True:
        word = yield load(f"state{index}")
        if state_of(word) == DONE:
            return word
        yield from join_completions(LOOP_STEP)
        yield block_until_set("eventfd")
        yield swap("eventfd", 0)
        yield from leave_completions(LOOP_STEP)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(completions_model(sleep_behind_one_bit), id="one bit for two sleepers"),
        pytest.param(completions_model(look_before_joining), id="look before joining"),
        pytest.param(
            completions_model(sleep_on_completions_without_comparing), id="sleep compares nothing"
        ),
        pytest.param(completions_model(early=True), id="notify before DONE"),
        pytest.param(completions_model(sleepers=1), id="wake one of two"),
        pytest.param(
            completions_model(second=listen_before_joining),
            id="look before joining, in an event loop",
        ),
    ],
)
def test_control_sleep_on_completions_loses_a_wakeup(model: Model) -> None:
    result = explore(model)
    assert result.violation == STUCK
