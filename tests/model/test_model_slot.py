"""Decides whether a slot's life can go wrong: one producer, one executor, calls given up.

The producer publishes, waits, and gives up on any call at any moment; the executor drains,
sweeps, takes and completes in any order that its own knowledge allows, which covers every loop
one could write. Payloads are plain words in the same store buffers as everything else. Held in
every state: R1 to R3 of ring.h, no VIOLATION between honest sides, a call runs at most once and
has at most one outcome, a cancelled call never runs, a result reaches its own call only. And
from every state all slots come back, whatever was given up.

Where there are deadlines, the producer may also ask that a call be given up only if it was not
launched, which leaves a launched one to go on; and the executor may find a call that it took to
be late, and completes it without running it.

Either side is killed at every step. A producer then learns of DONE results only, and that a
call it finds READY never ran; an executor is never stuck and never sees a VIOLATION.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.ring_steps import (
    ABANDONED,
    CANCELLED,
    DONE,
    FREE,
    IDLE,
    READY,
    RUNNING,
    STATE_MASK,
    TAKEN,
    complete,
    drain,
    generation_of,
    publish,
    refuse_other_moves,
    release,
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
    View,
    Violation,
    add,
    choose,
    compare_and_swap,
    explore,
    is_alive,
    load,
    store,
)

# Outcomes beyond the slot states DONE, CANCELLED and ABANDONED.
NEVER_RAN, LOST, EXPIRED = 10, 11, 12
TOO_LATE = 1  # in place of a result


def result_of(value: int) -> int:
    return value * 16


def changed(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def producer(
    capacity: int,
    calls: int,
    publish: Callable[..., Program] = publish,
    withdraw: Callable[[int], Program] = withdraw,
    claimable: tuple[int, ...] = (FREE,),
    expire: Callable[[int], Program] | None = None,
) -> Program:
    """Return the outcome of each call; calls are numbered from 1, which is also their input.

    *expire* gives up what is not launched; other keywords are for broken variants.
    """
    tail = 0
    owners = (0,) * capacity  # the call that each slot holds for us, 0 for none
    outcomes = (0,) * (calls + 1)
    while tail < calls or any(owners):
        index = yield choose(capacity)
        if owners[index]:
            outcome = yield from settle(index, owners[index], withdraw, expire)
            if outcome:
                outcomes = changed(outcomes, owners[index], outcome)
                owners = changed(owners, index, 0)
        elif tail < calls:
            alive = yield is_alive("executor")
            if not alive and not any(owners):
                return outcomes
            word = yield load(f"state{index}")
            if state_of(word) in claimable:
                yield store(f"input{index}", tail + 1)
                tail = yield from publish(capacity, tail, index, generation_of(word) + 1)
                owners = changed(owners, index, tail)
            del word
        del index
    return outcomes


def settle(
    index: int,
    call: int,
    withdraw: Callable[[int], Program],
    expire: Callable[[int], Program] | None,
) -> Program:
    """Look for the result, or give up; return the call's outcome or 0."""
    alive = yield is_alive("executor")
    word = yield load(f"state{index}")
    if state_of(word) == DONE:
        return (yield from copy_out(index, call))
    if not alive:  # and looked at after that was known
        return NEVER_RAN if state_of(word) == READY else LOST
    gives_up = yield choose(2 if expire is None else 3)
    if not gives_up:
        return 0
    if gives_up == 2 and expire is not None:
        state = yield from expire(index)
        if state == TAKEN:
            return 0
    else:
        state = yield from withdraw(index)
    if state == DONE:
        return (yield from copy_out(index, call))
    return state


def copy_out(index: int, call: int) -> Program:
    value = yield load(f"result{index}")
    if value == TOO_LATE:
        yield from release(index)
        return EXPIRED
    if value != result_of(call):
        raise Violation(f"producer: call {call} got {value:#x}, which is not its result")
    yield from release(index)
    return DONE


def executor(
    capacity: int,
    drain: Callable[..., Program] = drain,
    take: Callable[[int], Program] = take,
    complete: Callable[[int, int], Program] = complete,
    result_first: bool = True,
    watchful: bool = True,
    deadlines: bool = False,
) -> Program:
    """Return which calls ran, one bit for each.

    With *deadlines* any call may be late; other keywords are for broken variants.
    """
    head = 0
    withdrawn = 0
    waiting: tuple[int, ...] = ()
    running: tuple[tuple[int, int, int], ...] = ()  # slot, generation, call
    known = (IDLE,) * capacity
    ran = 0
    while True:
        alive = yield is_alive("producer")
        if not alive:
            return ran
        move = yield choose(5)
        if move == 0:
            head, waiting, known = yield from drain(capacity, head, waiting, known)
        elif move == 1:
            waiting, known, withdrawn = yield from sweep(waiting, known, withdrawn)
        elif move == 2 and waiting:
            generation, call = yield from start(waiting[0], ran if watchful else 0, take)
            if generation is None:
                known = changed(known, waiting[0], IDLE)
                withdrawn += 1
            else:
                late = 0
                if deadlines:
                    late = yield choose(2)
                if late:
                    known = changed(known, waiting[0], IDLE)
                    yield store(f"result{waiting[0]}", TOO_LATE)
                    yield from complete(waiting[0], generation)
                else:
                    known = changed(known, waiting[0], RUNNING)
                    running = (*running, (waiting[0], generation, call))
                    ran |= 1 << call
                del late
            waiting = waiting[1:]
            del generation, call
        elif move > 2 and running:
            index, generation, call = running[0] if move == 3 else running[-1]
            running = running[1:] if move == 3 else running[:-1]
            known = changed(known, index, IDLE)
            if result_first:
                yield store(f"result{index}", result_of(call))
            yield from complete(index, generation)
            if not result_first:
                yield store(f"result{index}", result_of(call))
            del index, generation, call
        del move


def start(index: int, ran: int, take: Callable[[int], Program]) -> Program:
    """Take a call and read its input; return its generation, or None, and the call."""
    generation = yield from take(index)
    if generation is None:
        return None, 0
    call = yield load(f"input{index}")
    if not call or ran & 1 << call:
        raise Violation(f"executor: runs call {call} twice, or reads another input")
    return generation, call


def broken_invariant(view: View) -> str | None:
    """Check R1, and what the outcomes promise, against what really ran."""
    if view.alive("executor") and not view.finished("executor"):
        head = view.local("executor", "head")
        tail = view.word("tail")
        capacity = view.local("executor", "capacity")
        if tail - head > capacity:
            return f"the ring holds {tail - head} indices, its capacity is {capacity} (R1)"
        ring = [view.word(f"index{at % capacity}") for at in range(head, tail)]
        if len(set(ring)) != len(ring):
            return f"the ring holds an index twice: {ring} (R1)"
    ran = view.local("executor", "return" if view.finished("executor") else "ran")
    outcomes = view.local("producer", "return" if view.finished("producer") else "outcomes")
    for call, outcome in enumerate(outcomes):
        if outcome in (CANCELLED, NEVER_RAN, EXPIRED) and ran & 1 << call:
            return f"call {call} was certain never to run, and ran"
        if outcome == DONE and not ran & 1 << call:
            return f"call {call} has a result and never ran"
    return None


def all_is_settled(view: View) -> bool:
    if not view.alive("producer"):
        return not view.alive("executor") or view.finished("executor")
    if not view.finished("producer"):
        return False
    if not view.alive("executor"):
        return True
    capacity = view.local("executor", "capacity")
    slots_are_back = all(state_of(view.word(f"state{index}")) == FREE for index in range(capacity))
    return (
        slots_are_back
        and not view.local("executor", "waiting")
        and not view.local("executor", "running")
        and view.local("executor", "head") == view.word("tail")
    )


def slot_model(
    capacity: int,
    calls: int,
    *,
    producer: Callable[[int, int], Program] = producer,
    executor: Callable[[int], Program] = executor,
    killed: str = "",
    watched: bool = True,
    invariant: Callable[[View], str | None] = broken_invariant,
) -> Model:
    states = [f"state{index}" for index in range(capacity)]
    programs = {
        "producer": functools.partial(producer, capacity, calls),
        "executor": functools.partial(executor, capacity),
    }
    return Model(
        words=slot_words(capacity),
        processes=tuple(
            Process(name, program, mortal=name == killed) for name, program in programs.items()
        ),
        good=all_is_settled,
        invariant=invariant,
        watch=dict.fromkeys(states, refuse_other_moves) if watched else {},
    )


@pytest.mark.parametrize(
    ("capacity", "calls", "least"),
    [
        pytest.param(1, 3, 10_000, id="one slot, three calls"),
        pytest.param(2, 2, 40_000, id="two slots, two calls"),
        pytest.param(2, 3, 350_000, id="two slots, three calls", marks=pytest.mark.soak),
    ],
)
def test_every_slot_comes_back_and_every_result_reaches_its_call(
    capacity: int, calls: int, least: int
) -> None:
    result = explore(slot_model(capacity, calls))
    assert result.violation is None, result
    assert result.states > least


expire = functools.partial(withdraw, only_ready=True)
expiring_producer = functools.partial(producer, expire=expire)
punctual_executor = functools.partial(executor, deadlines=True)


@pytest.mark.parametrize(
    ("capacity", "calls", "killed", "least"),
    [
        pytest.param(1, 3, "", 40_000, id="one slot, three calls"),
        pytest.param(2, 2, "", 90_000, id="two slots, two calls"),
        pytest.param(1, 2, "producer", 18_000, id="producer killed"),
        pytest.param(1, 2, "executor", 18_000, id="executor killed"),
    ],
)
def test_a_call_whose_time_is_over_never_runs_or_goes_on(
    capacity: int, calls: int, killed: str, least: int
) -> None:
    result = explore(
        slot_model(
            capacity, calls, producer=expiring_producer, executor=punctual_executor, killed=killed
        )
    )
    assert result.violation is None, result
    assert result.states > least


@pytest.mark.parametrize("killed", ["producer", "executor"])
@pytest.mark.parametrize(
    ("capacity", "calls", "least"),
    [
        pytest.param(1, 3, 25_000, id="one slot, three calls"),
        pytest.param(2, 2, 100_000, id="two slots, two calls"),
    ],
)
def test_whoever_is_killed_the_other_side_goes_on(
    capacity: int, calls: int, least: int, killed: str
) -> None:
    result = explore(slot_model(capacity, calls, killed=killed))
    assert result.violation is None, result
    assert result.states > least


# ---- controls: what the checker must find -----------------------------------------------


def publish_tail_first(capacity: int, tail: int, index: int, generation: int) -> Program:
    yield store(f"index{tail % capacity}", index)
    yield store("tail", tail + 1)
    yield store(f"state{index}", word_of(generation, READY))
    return tail + 1


def withdraw_by_plain_store(index: int) -> Program:
    word = yield load(f"state{index}")
    if state_of(word) not in (READY, TAKEN):
        return state_of(word)
    following = CANCELLED if state_of(word) == READY else ABANDONED
    yield store(f"state{index}", word_of(generation_of(word), following))
    yield add("withdrawn", 1)
    return following


def expire_by_plain_store(index: int) -> Program:
    """Give up a call that was not launched when it was looked at."""
    word = yield load(f"state{index}")
    if state_of(word) != READY:
        return state_of(word)
    yield store(f"state{index}", word_of(generation_of(word), CANCELLED))
    yield add("withdrawn", 1)
    return CANCELLED


def expire_launched(index: int) -> Program:
    """Call what was launched cancelled, although it runs."""
    state = yield from withdraw(index)
    return CANCELLED if state == ABANDONED else state


def complete_late_without_outcome(index: int, generation: int) -> Program:
    """Tell the producer before it is known that the call was late."""
    flags = yield from complete(index, generation)
    yield store(f"result{index}", 0)
    return flags


def withdraw_to_free(index: int) -> Program:
    """Take a READY slot straight back, although its index still stands in the ring."""
    word = yield load(f"state{index}")
    if state_of(word) == READY:
        wanted = word_of(generation_of(word), FREE)
        found = yield compare_and_swap(f"state{index}", word, wanted)
        if found == word:
            return CANCELLED
    return (yield from withdraw(index))


def drain_unchecked(
    capacity: int, head: int, waiting: tuple[int, ...], known: tuple[int, ...]
) -> Program:
    """Believe the ring, whatever is known of the slot."""
    tail = yield load("tail")
    while head != tail:
        index = yield load(f"index{head % capacity}")
        waiting = (*waiting, index)
        head += 1
    return head, waiting, known


def take_by_plain_store(index: int) -> Program:
    word = yield load(f"state{index}")
    if state_of(word) != READY:
        return (yield from take(index))
    yield store(f"state{index}", word & ~STATE_MASK | TAKEN)
    return generation_of(word)


def complete_any_generation(index: int, generation: int) -> Program:
    """Complete whatever call has the slot now."""
    word = yield load(f"state{index}")
    while True:
        following = FREE if state_of(word) == ABANDONED else DONE
        wanted = word_of(generation_of(word), following)
        found = yield compare_and_swap(f"state{index}", word, wanted)
        if found == word:
            return 0
        word = found


def complete_by_plain_store(index: int, generation: int) -> Program:
    word = yield load(f"state{index}")
    following = FREE if state_of(word) == ABANDONED else DONE
    yield store(f"state{index}", word_of(generation, following))
    return 0


reusing_producer = functools.partial(producer, claimable=(FREE, ABANDONED))


@pytest.mark.parametrize(
    ("model", "violation"),
    [
        pytest.param(
            slot_model(
                1,
                2,
                producer=reusing_producer,
                executor=functools.partial(
                    executor,
                    drain=drain_unchecked,
                    complete=complete_any_generation,
                    watchful=False,
                ),
                watched=False,
                invariant=lambda view: None,
            ),
            "producer: call 2 got 0x10, which is not its result",
            id="slot reused at once on timeout, and no generation check",
        ),
        pytest.param(
            slot_model(1, 2, producer=reusing_producer, watched=False),
            "executor: slot 0 has another generation than taken (R3)",
            id="slot reused at once on timeout, refused by the generation",
        ),
        pytest.param(
            slot_model(
                1, 1, executor=functools.partial(executor, complete=complete_by_plain_store)
            ),
            "executor moved a slot from ABANDONED to DONE (R2)",
            id="complete by plain store",
        ),
        pytest.param(
            slot_model(
                1,
                1,
                executor=functools.partial(executor, complete=complete_by_plain_store),
                watched=False,
            ),
            "no way out",
            id="complete by plain store leaks the slot",
        ),
        pytest.param(
            slot_model(
                1, 1, executor=functools.partial(executor, take=take_by_plain_store), watched=False
            ),
            "call 1 was certain never to run, and ran",
            id="take by plain store",
        ),
        pytest.param(
            slot_model(
                1,
                1,
                producer=functools.partial(producer, withdraw=withdraw_by_plain_store),
                watched=False,
            ),
            "call 1 was certain never to run, and ran",
            id="withdraw by plain store",
        ),
        pytest.param(
            slot_model(
                1,
                1,
                producer=functools.partial(producer, expire=expire_by_plain_store),
                watched=False,
            ),
            "call 1 was certain never to run, and ran",
            id="expire by plain store",
        ),
        pytest.param(
            slot_model(
                1,
                1,
                producer=functools.partial(producer, expire=expire_launched),
                executor=punctual_executor,
            ),
            "call 1 was certain never to run, and ran",
            id="expire gives up what was launched",
        ),
        pytest.param(
            slot_model(
                1,
                1,
                producer=expiring_producer,
                executor=functools.partial(
                    executor, deadlines=True, complete=complete_late_without_outcome
                ),
            ),
            "producer: call 1 got 0x0, which is not its result",
            id="outcome of a late call written after DONE",
        ),
        pytest.param(
            slot_model(
                1,
                2,
                producer=functools.partial(producer, withdraw=withdraw_to_free),
                watched=False,
            ),
            "executor: slot 0 stood in the ring FREE",
            id="cancelled slot reused before its index left the ring",
        ),
        pytest.param(
            slot_model(1, 1, producer=functools.partial(producer, publish=publish_tail_first)),
            "executor: slot 0 stood in the ring FREE",
            id="tail published before the slot",
        ),
        pytest.param(
            slot_model(1, 1, executor=functools.partial(executor, result_first=False)),
            "producer: call 1 got 0x0, which is not its result",
            id="result written after DONE",
        ),
    ],
)
def test_control_a_broken_life_is_noticed(model: Model, violation: str) -> None:
    result = explore(model)
    assert result.violation == violation
