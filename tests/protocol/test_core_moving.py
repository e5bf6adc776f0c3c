"""A producer's end goes over to the segment of another executor: every state a call can be in."""

from __future__ import annotations

import gc
import mmap
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.protocol import layout
from shmbatch.protocol._core import (
    ABANDONED,
    ASYNC,
    CANCELLED,
    FAILED,
    LOOP,
    PARKED,
    PENDING,
    READY,
    SPAWNED,
    TAKEN,
    THREAD,
    WAKE_ASYNC,
)
from tests.rings import ADD, Served, Wire, array, outcome, signature, text

GONE = b"it died"
LONG_NS = 60 * 10**9  # longer than the watchdog lets a test wait in vain


class Succeeded:
    """A wire whose producer may move to the segment of a second executor."""

    def __init__(self, contract: Any = ADD, capacity: int = 4) -> None:
        self.first = Wire(contract, capacity)
        self.second = Wire(contract, capacity)
        self.producer = self.first.producer
        self.woken: list[int] = []
        self.before, self.after = Served(self.first), Served(self.second)

    def move(self, most_runs: int = 1) -> int:
        """Return how many calls were published again."""
        wire = self.second
        again, asleep = self.producer.move(
            wire.memory, wire.bell_memory, self.woken.append, GONE, most_runs
        )
        self.asleep = asleep
        return again


def test_a_call_that_was_not_taken_runs_at_the_next_executor() -> None:
    both = Succeeded()
    ticket = both.first.submit(3, 4)

    assert both.move() == 1

    assert both.producer.state(ticket) == READY
    assert both.after.take() == 1
    assert both.after.inputs() == [[3], [4]]
    both.after.answer(7)
    assert outcome(both.first, ticket) == 7


def test_a_call_that_was_taken_fails_with_the_record() -> None:
    both = Succeeded()
    ticket = both.first.submit(3, 4)
    both.before.take()

    assert both.move() == 0

    assert both.producer.poll(ticket, 0) is FAILED
    assert both.producer.error(ticket) == GONE
    assert both.producer.free_slots == 4
    assert both.after.take() == 0


def test_a_call_that_was_taken_runs_again_if_it_may_but_not_for_ever() -> None:
    both = Succeeded()
    ticket = both.first.submit(3, 4)
    both.before.take()
    assert both.move(3) == 1
    assert both.after.take() == 1

    third = Wire()
    again = Served(third)
    assert both.producer.move(third.memory, third.bell_memory, int, GONE, 3) == (1, 0)
    assert again.take() == 1
    fourth = Wire()
    assert both.producer.move(fourth.memory, fourth.bell_memory, int, GONE, 3) == (0, 0)

    assert both.producer.poll(ticket, 0) is FAILED
    assert both.producer.error(ticket) == GONE


def test_a_slot_used_again_may_run_as_often_as_any() -> None:
    both = Succeeded(capacity=1)
    lost = both.first.submit(1, 1)
    both.before.take()
    both.move(2)
    both.after.take()
    both.after.answer(2)
    assert outcome(both.first, lost) == 2

    both.first.submit(2, 2)
    both.after.take()
    third = Wire(capacity=1)

    assert both.producer.move(third.memory, third.bell_memory, int, GONE, 2) == (1, 0)


def test_results_and_errors_that_were_there_are_kept() -> None:
    both = Succeeded()
    tickets = [both.first.submit(x, 1) for x in range(2)]
    both.before.take()
    both.before.batch.put(0, 41)
    both.before.batch.fail(1, b"wrong")
    both.before.batch.complete()

    assert both.move() == 0

    assert outcome(both.first, tickets[0]) == 41
    assert both.producer.poll(tickets[1], 0) is FAILED
    assert both.producer.error(tickets[1]) == b"wrong"
    assert both.producer.free_slots == 4


def test_a_call_that_had_expired_stays_so() -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1, deadline_ns=5)
    both.before.take()

    both.move()

    assert both.producer.poll(ticket, 0) is FAILED
    assert both.producer.error(ticket) is None


def test_a_deadline_goes_over_with_its_call() -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1, deadline_ns=5)

    both.move()

    assert both.after.take() == 0
    assert both.producer.poll(ticket, 0) is FAILED
    assert both.producer.error(ticket) is None


@pytest.mark.parametrize("taken", [False, True])
def test_a_call_that_was_given_up_is_not_heard_of_again(taken: bool) -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1)
    if taken:
        both.before.take()
    assert both.producer.withdraw(ticket) == (ABANDONED if taken else CANCELLED)
    assert both.producer.free_slots == 3

    assert both.move(3) == 0

    assert both.producer.free_slots == 4
    assert both.after.take() == 0
    with pytest.raises(ValueError, match="over"):
        both.producer.poll(ticket, 0)


def test_calls_keep_their_order() -> None:
    both = Succeeded(capacity=4)
    chance = random.Random(3)
    waiting: list[tuple[int, int]] = []
    for number in range(40):  # so that slots are used again and again, in any order
        if len(waiting) == 4:
            ticket, _ = waiting.pop(chance.randrange(4))
            both.producer.withdraw(ticket)
            both.before.drain()
        waiting.append((both.first.submit(number, 0), number))

    both.move()

    both.after.take()
    assert both.after.inputs()[0] == [value for _, value in waiting]


def test_calls_that_ran_come_before_those_that_did_not() -> None:
    both = Succeeded(capacity=4)
    ran = [both.first.submit(number, 0) for number in (1, 2)]
    both.before.take()
    for _ in range(8):  # the ring has forgotten where those stood
        both.producer.withdraw(both.first.submit(9, 9))
        both.before.drain()
    both.first.submit(3, 0)

    both.move(3)

    both.after.take()
    assert both.after.inputs()[0] == [1, 2, 3]
    assert [both.producer.state(ticket) for ticket in ran] == [TAKEN, TAKEN]


def test_new_calls_come_after_those_that_went_over() -> None:
    both = Succeeded()
    both.first.submit(1, 0)
    both.move()
    both.first.submit(2, 0)
    both.after.take()
    assert both.after.inputs()[0] == [1, 2]


def test_an_event_loop_that_waits_is_told_by_the_next_executor() -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1)
    both.producer.arm(ticket, ASYNC)

    both.move()
    both.after.take()
    wakes = both.after.answer(2)

    assert [flags for _, flags, _, _ in wakes] == [WAKE_ASYNC]


def test_those_who_sleep_on_completions_are_counted_in_the_new_segment() -> None:
    both = Succeeded()
    both.producer.join_completions(THREAD)
    both.producer.join_completions(LOOP)
    both.move()
    both.first.submit(1, 1)
    both.after.take()
    (wake,) = both.after.answer(2)
    assert (wake[1], wake[2]) == (WAKE_ASYNC, 1)
    both.producer.leave_completions(THREAD)
    both.producer.leave_completions(LOOP)
    assert both.second.read(layout.COMPLETIONS) & 0xFFFF == 0


def test_who_has_looked_before_a_move_does_not_sleep_after_it() -> None:
    both = Succeeded()
    joined = both.producer.join_completions(THREAD)
    both.move()
    both.producer.park_completions(joined, LONG_NS)  # returns at once
    both.producer.leave_completions(THREAD)


def test_an_executor_that_sleeps_is_to_be_woken_by_who_moved() -> None:
    """Not from inside, where a signal handler could raise as if nothing had moved."""
    both = Succeeded()
    both.first.submit(1, 1)
    assert both.second.bell.arm(both.second.bell.look(), PARKED, 1)

    both.move()

    assert both.asleep == PARKED
    assert both.woken == []


def test_a_thread_that_sleeps_on_its_call_wakes_and_finds_it_done() -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1)
    found: list[bool] = []
    asleep = threading.Event()

    def wait() -> None:
        asleep.set()
        while not both.producer.park_slot(ticket, LONG_NS):
            pass
        found.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    asleep.wait()
    while both.first.read(both.first.state_offset(0)) & 0x08 == 0:  # it has announced its sleep
        pass
    both.move()
    both.after.take()
    for _, _, _, slots in both.after.answer(5):
        both.second.executor.wake(0, slots)
    thread.join()
    assert found
    assert outcome(both.first, ticket) == 5


def test_values_of_every_length_arrive() -> None:
    both = Succeeded((text(40), text(40)), capacity=3)
    tickets = [both.first.submit(value) for value in ("", "é" * 20, "x" * 40)]
    both.move()
    both.after.take()
    assert both.after.batch.gather([None]) == [["", "é" * 20, "x" * 40]]
    both.after.answer("a", "b", "")
    third = Wire((text(40), text(40)), 3)
    both.producer.move(third.memory, third.bell_memory, int, GONE, 1)
    assert [outcome(both.first, ticket) for ticket in tickets] == ["a", "b", ""]


def test_an_input_that_is_being_written_is_published_in_the_new_segment() -> None:
    """A large one is copied without the GIL; whoever moves meanwhile makes that copy again."""
    image = array("uint8", 4 << 20)
    for number in range(1, 11):
        both = Succeeded(signature(image, result=image), capacity=2)
        value = np.full(4 << 20, number, np.uint8)
        thread = threading.Thread(target=both.producer.submit, args=((value,), 0))
        thread.start()
        moves = 0
        while thread.is_alive() and moves < 50:  # moving faster than it copies, it never ends
            moves += 1
            between = Wire(both.first.signature, 2)
            both.producer.move(between.memory, between.bell_memory, int, GONE, 1)
        thread.join()
        assert both.move() == 1
        assert both.after.take() == 1
        stack = np.zeros((2, 4 << 20), np.uint8)
        (rows,) = both.after.batch.gather([(stack, stack)])
        assert (rows[0] == number).all()


def test_the_old_memory_is_let_go_of() -> None:
    both = Succeeded()

    class Memory(mmap.mmap):
        pass

    held = Memory(-1, both.first.where.nbytes)
    gone = weakref.ref(held)
    both.producer.move(held, both.second.bell_memory, int, GONE, 1)
    both.move()
    del held
    gc.collect()
    assert gone() is None


def spoilt(name: str) -> Callable[[Succeeded], object]:
    def too_small(both: Succeeded) -> object:
        memory = mmap.mmap(-1, both.first.where.nbytes + mmap.PAGESIZE)
        return both.producer.move(memory, both.second.bell_memory, int, GONE, 1)

    def no_bell(both: Succeeded) -> object:
        return both.producer.move(both.second.memory, mmap.mmap(-1, 64), int, GONE, 1)

    def never(both: Succeeded) -> object:
        return both.producer.move(both.second.memory, both.second.bell_memory, int, GONE, 0)

    def record(both: Succeeded) -> object:
        long = b"x" * (both.first.where.error_nbytes + 1)
        return both.producer.move(both.second.memory, both.second.bell_memory, int, long, 1)

    moves: dict[str, Callable[[Succeeded], object]] = {
        each.__name__: each for each in (too_small, no_bell, never, record)
    }
    return moves[name]


@pytest.mark.parametrize("how", ["too_small", "no_bell", "never", "record"])
def test_a_move_that_cannot_be_leaves_all_as_it_was(how: str) -> None:
    both = Succeeded()
    ticket = both.first.submit(1, 1)
    with pytest.raises(ValueError, match=r"differ|fit|range"):
        spoilt(how)(both)
    assert both.producer.moves == 0
    both.before.take()
    both.before.answer(2)
    assert outcome(both.first, ticket) == 2


@given(
    st.lists(
        st.sampled_from(["submit", "take", "complete", "withdraw", "poll", "move"]), max_size=60
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_whatever_happens_each_call_ends_once_with_its_own_result(
    steps: list[str], most_runs: int, chance: random.Random
) -> None:
    """Calls are echoed; the books are kept beside, and balance in the end."""
    contract = signature("int", result="int")
    wire = Wire(contract, 4)
    producer, served = wire.producer, Served(wire)
    pending: dict[int, int] = {}  # ticket to input
    runs: dict[int, int] = {}
    number = 0

    def take() -> None:
        if served.batch.count == 0 and served.take():
            for value in served.inputs(1)[0]:
                runs[value] = runs.get(value, 0) + 1

    def complete() -> None:
        if served.batch.count:
            served.answer(*served.inputs(1)[0])

    def poll() -> None:
        for ticket, value in list(pending.items()):
            result = producer.poll(ticket, 0)
            if result is FAILED:
                assert producer.error(ticket) == GONE
                assert runs[value] == most_runs
            elif result is not PENDING:
                assert result == value
            else:
                continue
            del pending[ticket]

    for step in steps:
        if step == "submit" and producer.free_slots:
            pending[producer.submit((number,), SPAWNED)] = number
            number += 1
        elif step == "take":
            take()
        elif step == "complete":
            complete()
        elif step == "withdraw" and pending:
            ticket = chance.choice(list(pending))
            value = pending.pop(ticket)
            if producer.withdraw(ticket) == CANCELLED:
                assert runs.get(value, 0) < most_runs
                runs[value] = most_runs  # it must not run again
        elif step == "poll":
            poll()
        elif step == "move":
            successor = Wire(contract, 4)
            producer.move(successor.memory, successor.bell_memory, int, GONE, most_runs)
            served = Served(successor)
    complete()
    take()
    complete()
    poll()
    assert not pending
    assert producer.free_slots == 4
    assert all(count <= most_runs for count in runs.values())
