"""Decides whether calls that are given up hold anything up: slots, sweeps, other threads.

Two questions, both of liveness, both with sleepers whose sleep never ends by itself. A producer
that waits on the completion word for a slot: does each of its withdrawn calls bring one back,
though the executor parks on the bell and no call is ever due? And a thread that waits for a
call which another thread gives up: is it told, whatever the executor does meanwhile?

The executor's loop here is the real one: look at the bell, drain, sweep, take and complete what
is due, and park if nothing happened. What is due is left open. While something waits, no number
of calls wakes the executor: what is given up has to be told for its own sake.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.ring_steps import (
    CANCELLED,
    DONE,
    FREE,
    IDLE,
    PARKED,
    READY,
    TAKEN,
    THREAD_STEP,
    WAITER,
    arm,
    arm_bell,
    complete,
    disarm_bell,
    drain,
    generation_of,
    join_completions,
    leave_completions,
    notify,
    publish,
    release,
    ring_bell,
    slot_words,
    state_of,
    sweep,
    take,
    withdraw,
    word_of,
)
from tests.model.tso_checker import (
    Model,
    Process,
    Program,
    Violation,
    choose,
    compare_and_swap,
    explore,
    load,
    sleep_on,
    wake,
)

CALLS = 2
MANY = 1 << 20  # no number of calls wakes an executor that waits for this many
STUCK = "stuck for ever: nobody can move"


def changed(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def executor(
    capacity: int,
    sweep: Callable[..., Program] = sweep,
    take: Callable[[int], Program] = take,
    sweep_first: bool = False,
    tells_of_slots: bool = True,
    patient: bool = True,
) -> Program:
    """Run what waits at once, or, *patient*, maybe never. Other keywords: broken variants."""
    head = 0
    withdrawn = 0
    waiting: tuple[int, ...] = ()
    known = (IDLE,) * capacity
    while True:
        seen = yield load("bell")
        before = withdrawn
        if sweep_first:
            waiting, known, withdrawn = yield from sweep(waiting, known, withdrawn)
        head, waiting, known = yield from drain(capacity, head, waiting, known)
        if not sweep_first:
            waiting, known, withdrawn = yield from sweep(waiting, known, withdrawn)
        happened = withdrawn != before and tells_of_slots
        due = bool(waiting)
        if waiting and patient:
            due = yield choose(2)
        if due:
            generation = yield from take(waiting[0])
            if generation is None:
                withdrawn += 1
            else:
                flags = yield from complete(waiting[0], generation)
                if flags & WAITER:
                    yield wake(f"state{waiting[0]}")
                del flags
            known = changed(known, waiting[0], IDLE)
            waiting = waiting[1:]
            happened = True
            del generation
        if happened:
            asleep = yield from notify()
            if asleep:
                yield wake("completions")
            del asleep
        else:
            armed = yield from arm_bell(seen, PARKED, MANY if waiting else 1)
            if armed:
                yield sleep_on("bell", seen | PARKED)
                yield from disarm_bell()
            del armed
        del seen, before, happened, due


def ring_and_wake(urgent: bool = False) -> Program:
    asleep = yield from ring_bell(urgent)
    if asleep & PARKED:
        yield wake("bell")


# ---- a slot for the next call -----------------------------------------------------------


def withdrawing_producer(
    capacity: int, rings: bool = True, urgent: bool = True, only_ready: bool = False
) -> Program:
    """Publish and give up at once, again and again; then wait until every slot is back.

    With *only_ready* a launched call goes on, and the next one waits for its result.
    """
    tail = 0
    while tail < CALLS:
        index, generation = yield from wait_for_slot(capacity)
        tail = yield from publish(capacity, tail, index, generation)
        yield from ring_and_wake()
        state = yield from withdraw(index, only_ready)
        while state == TAKEN:
            word = yield load(f"state{index}")
            state = state_of(word)
        if state == DONE:
            yield from release(index)
        elif state == CANCELLED and rings:
            yield from ring_and_wake(urgent)
        del index, generation, state
    index = 0
    while index < capacity:
        yield from wait_until_free(index)
        index += 1


def wait_for_slot(capacity: int) -> Program:
    """Return a FREE slot and the generation of its next call."""
    while True:
        value = yield from join_completions(THREAD_STEP)
        index = 0
        while index < capacity:
            word = yield load(f"state{index}")
            if state_of(word) == FREE:
                yield from leave_completions(THREAD_STEP)
                return index, generation_of(word) + 1
            index += 1
        yield sleep_on("completions", value)
        yield from leave_completions(THREAD_STEP)


def wait_until_free(index: int) -> Program:
    while True:
        value = yield from join_completions(THREAD_STEP)
        word = yield load(f"state{index}")
        if state_of(word) != FREE:
            yield sleep_on("completions", value)
        yield from leave_completions(THREAD_STEP)
        if state_of(word) == FREE:
            return


def slots_model(
    capacity: int,
    producer: Callable[[int], Program] = withdrawing_producer,
    executor: Callable[[int], Program] = executor,
) -> Model:
    return Model(
        words=slot_words(capacity) | {"bell": 0, "quorum": 0, "completions": 0},
        processes=(
            Process("producer", functools.partial(producer, capacity)),
            Process("executor", functools.partial(executor, capacity)),
        ),
        good=lambda view: view.finished("producer"),
    )


@pytest.mark.parametrize("only_ready", [False, True])
@pytest.mark.parametrize("capacity", [1, 2])
def test_a_withdrawn_call_gives_its_slot_back_though_no_call_is_due(
    capacity: int, only_ready: bool
) -> None:
    producer = functools.partial(withdrawing_producer, only_ready=only_ready)
    result = explore(slots_model(capacity, producer))
    assert result.violation is None, result
    assert result.states > 3_000


# ---- a call shared by two threads -------------------------------------------------------


def waiting_thread() -> Program:
    """Wait for the first call; whoever gave it up may have reused its slot meanwhile."""
    while True:
        word = yield from arm(0, WAITER)
        if generation_of(word) != 1 or state_of(word) not in (READY, TAKEN):
            break
        yield sleep_on("state0", word)
    if word & ~WAITER == word_of(1, DONE):
        yield from release(0)


def cancelling_thread(wakes: bool = True) -> Program:
    """Give the first call up, then make a second one in the same slot."""
    state = yield from withdraw(0)
    if state not in (DONE, FREE):
        if wakes:
            yield wake("state0")
        yield from ring_and_wake(urgent=True)
    while state != FREE:
        word = yield load("state0")
        state = state_of(word)
    yield from publish(1, 1, 0, 2)
    yield from ring_and_wake()
    while state != DONE:
        word = yield load("state0")
        if generation_of(word) != 2:
            raise Violation("cancelling thread: its slot has another generation")
        state = state_of(word)


def shared_model(
    canceller: Callable[[], Program] = cancelling_thread,
    executor: Callable[..., Program] = executor,
) -> Model:
    return Model(
        words=slot_words(1)
        | {"state0": word_of(1, READY), "tail": 1, "bell": 0, "quorum": 0, "completions": 0},
        processes=(
            Process("waiting", waiting_thread),
            Process("cancelling", canceller),
            Process("executor", functools.partial(executor, 1, patient=False)),
        ),
        good=lambda view: view.finished("waiting") and view.finished("cancelling"),
    )


def test_a_thread_that_waits_hears_of_a_call_that_another_thread_gives_up() -> None:
    result = explore(shared_model())
    assert result.violation is None, result
    assert result.states > 5_000


# ---- controls: what the checker must find -----------------------------------------------


def sweep_remembering_the_count(
    waiting: tuple[int, ...], known: tuple[int, ...], withdrawn: int
) -> Program:
    """Take the count as swept, although a call it counts may still stand in the ring."""
    count = yield load("withdrawn")
    if count == withdrawn:
        return waiting, known, withdrawn
    kept, known, _ = yield from sweep(waiting, known, withdrawn)
    return kept, known, count


def free_once(index: int, word: int) -> Program:
    """Take a changed flag, set by a thread that still waits, for a broken protocol."""
    found = yield compare_and_swap(f"state{index}", word, word_of(generation_of(word), FREE))
    return found == word


def take_freeing_once(index: int) -> Program:
    word = yield load(f"state{index}")
    if state_of(word) == CANCELLED:
        freed = yield from free_once(index, word)
        if not freed:
            raise Violation("executor: an honest producer is disconnected")
        return None
    return (yield from take(index))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            slots_model(
                1, executor=functools.partial(executor, sweep=sweep_remembering_the_count)
            ),
            id="sweep forgets calls still in the ring",
        ),
        pytest.param(
            slots_model(1, executor=functools.partial(executor, sweep_first=True)),
            id="sweep before drain",
        ),
        pytest.param(
            slots_model(1, executor=functools.partial(executor, tells_of_slots=False)),
            id="sweep tells nobody",
        ),
        pytest.param(
            slots_model(1, producer=functools.partial(withdrawing_producer, rings=False)),
            id="withdraw does not ring",
        ),
        pytest.param(
            slots_model(1, producer=functools.partial(withdrawing_producer, urgent=False)),
            id="withdraw rings as a call does",
        ),
        pytest.param(
            shared_model(functools.partial(cancelling_thread, wakes=False)),
            id="withdraw wakes nobody",
        ),
    ],
)
def test_control_what_is_given_up_is_stuck(model: Model) -> None:
    result = explore(model)
    assert result.violation == STUCK


def test_control_an_arming_thread_makes_the_executor_see_a_violation() -> None:
    result = explore(shared_model(executor=functools.partial(executor, take=take_freeing_once)))
    assert result.violation == "executor: an honest producer is disconnected"
