"""Slots that are lent to their own process: whose they are, and for how long."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbatch.protocol._core import (
    CLOSED,
    PENDING,
    SUBMIT_CLOSED,
    SUBMIT_FORKED,
    SUBMIT_FULL,
    SUBMIT_LENT,
    SUBMIT_MISFIT,
    Call,
    Lent,
    Loan,
)
from tests.rings import Served, Wire, array, outcome, signature

ROW = array("float32", 4)
ROWS = signature(ROW, "int", result=ROW)
GONE = b"it died"


def reserved(wire: Wire, tell: Any = int) -> Loan:
    loan = wire.producer.reserve(tell)
    assert not isinstance(loan, int), loan
    return loan


def floats(lent: Lent) -> np.ndarray:
    return np.ndarray(4, np.float32, lent)  # type: ignore[call-overload, no-any-return]


class Spawned(Call):
    """As the client's own; nobody minds if one is dropped."""

    __slots__ = ()

    def _dropped(self) -> None:
        pass


def call_of(wire: Wire, ticket: int) -> Spawned:
    return Spawned(SimpleNamespace(ring=wire.producer), ticket, None)


def spawned(wire: Wire, loan: Loan, *values: Any) -> Any:
    """Publish what is reserved; return the call's ticket, or why there is none."""
    connection = SimpleNamespace(ring=wire.producer)
    call = loan.spawn(Spawned, connection, None, values, 0)
    return call if isinstance(call, int) else call._ticket


def lent(wire: Wire, served: Served, value: float = 7, tell: Any = int) -> Lent:
    """Have a call made and answered with *value*, and its result lent."""
    ticket = wire.submit(np.zeros(4, np.float32), 0)
    served.take()
    served.answer(np.full(4, value, np.float32))
    got = call_of(wire, ticket)._lend(0, tell)
    assert type(got) is Lent
    return got


# ---- an input ----


def test_what_is_written_in_place_is_the_input_and_is_not_copied() -> None:
    wire = Wire(ROWS)
    served = Served(wire)
    loan = reserved(wire)
    assert wire.producer.free_slots == 3
    row = floats(loan.value(0))
    row[:] = 5
    ticket = spawned(wire, loan, row, 9)
    row_before_it_is_taken = np.frombuffer(wire.memory, np.float32, 4, wire.where.columns[0])
    assert row_before_it_is_taken.tolist() == [5] * 4
    assert np.shares_memory(row, row_before_it_is_taken)
    assert served.take() == 1
    stack = np.zeros((16, 4), np.float32)
    rows, numbers = served.batch.gather([(stack, stack), None])
    assert (rows[0].tolist(), numbers) == ([5] * 4, [9])
    served.answer(rows[0])
    assert outcome(wire, ticket).tolist() == [5] * 4
    assert wire.producer.free_slots == 4


def test_a_value_from_elsewhere_is_copied_in() -> None:
    wire = Wire(ROWS)
    served = Served(wire)
    ticket = spawned(wire, reserved(wire), np.full(4, 3, np.float32), 9)
    served.take()
    stack = np.zeros((16, 4), np.float32)
    rows, _ = served.batch.gather([(stack, stack), None])
    assert rows[0].tolist() == [3] * 4
    served.answer(rows[0])
    outcome(wire, ticket)


def test_a_misfit_keeps_the_slot_and_a_call_ends_the_loan() -> None:
    wire = Wire(ROWS)
    loan = reserved(wire)
    row = floats(loan.value(0))
    assert spawned(wire, loan, row, "nine") == SUBMIT_MISFIT
    assert spawned(wire, loan, row) == SUBMIT_MISFIT
    row[:] = 1
    assert spawned(wire, loan, row, 9) >= 0
    for again in (lambda: spawned(wire, loan, row, 9), lambda: spawned(wire, loan, row, "x")):
        with pytest.raises(ValueError, match="the loan is over"):
            again()
    loan.close()
    assert wire.producer.free_slots == 3  # the call has it


def test_a_slot_comes_back_on_closing_and_when_nobody_has_its_loan() -> None:
    wire = Wire(ROWS)
    loan = reserved(wire)
    row = floats(loan.value(0))
    loan.close()
    loan.close()
    assert wire.producer.free_slots == 4
    with pytest.raises(ValueError, match="the loan is over"):
        spawned(wire, loan, row, 9)
    loan = reserved(wire)
    row = floats(loan.value(0))
    del loan
    assert wire.producer.free_slots == 3  # the array has it
    del row
    assert wire.producer.free_slots == 4


def test_memory_is_for_writing_only_until_it_may_be_somebody_elses() -> None:
    wire = Wire(ROWS)
    for is_called in (False, True):
        loan = reserved(wire)
        value = loan.value(0)
        assert not memoryview(value).readonly
        row = floats(value)
        row.flags.writeable = False
        if is_called:
            spawned(wire, loan, row, 1)
        loan.close()
        assert memoryview(value).readonly
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            row.flags.writeable = True


def test_half_of_the_slots_may_be_lent_and_no_more() -> None:
    wire = Wire(ROWS, 5)
    served = Served(wire)
    reservation = reserved(wire)
    result = lent(wire, served)
    assert wire.producer.reserve(int) == SUBMIT_LENT
    ticket = wire.submit(np.zeros(4, np.float32), 0)
    served.take()
    served.answer(np.zeros(4, np.float32))
    assert call_of(wire, ticket)._lend(0, int) is None
    outcome(wire, ticket)
    del result
    other = reserved(wire)
    reservation.close()
    del other
    assert wire.producer.free_slots == 5
    assert Wire(ROWS, 1).producer.reserve(int) == SUBMIT_LENT


def test_a_ring_that_is_full_closed_or_dead_has_none() -> None:
    wire = Wire(ROWS)
    loan = reserved(wire)
    row = floats(loan.value(0))
    tickets = [wire.submit(np.zeros(4, np.float32), 0) for _ in range(3)]
    assert wire.producer.reserve(int) == SUBMIT_FULL
    wire.producer.dead = True
    assert spawned(wire, loan, row, 9) == SUBMIT_CLOSED
    wire.producer.dead = False
    wire.producer.withdraw(tickets[0])
    Served(wire).take()
    wire.executor.set_status(CLOSED)
    assert wire.producer.reserve(int) == SUBMIT_CLOSED
    assert spawned(wire, loan, row, 9) == SUBMIT_CLOSED
    loan.close()
    assert wire.producer.free_slots == 2


def test_there_is_no_loan_but_of_a_slot_nor_a_value_but_of_a_parameter() -> None:
    for kind in (Loan, Lent):
        with pytest.raises(TypeError, match="cannot create"):
            kind()
    loan = reserved(Wire(ROWS))
    for wrong in (-1, 2, 1 << 40):
        with pytest.raises(ValueError, match="there is no column"):
            loan.value(wrong)
    with pytest.raises(TypeError):
        loan.value("x")  # type: ignore[arg-type]
    for arguments in ((int, None, None, (1,), 0), (Spawned, None, None, [1], 0), (Spawned, None)):
        with pytest.raises(TypeError):
            loan.spawn(*arguments)  # type: ignore[call-overload]


def test_a_value_of_no_bytes_may_be_lent() -> None:
    empty = array("float32", 0, 3)
    wire = Wire(signature(empty, result=empty))
    value = reserved(wire).value(0)
    assert memoryview(value).nbytes == 0


# ---- a result ----


def test_a_result_stands_in_its_slot_as_long_as_anybody_looks_at_it() -> None:
    wire = Wire(ROWS, 4)
    served = Served(wire)
    row = floats(lent(wire, served, 7))
    column = row[1:3]
    del row
    for _ in range(12):  # the slot is not used again
        ticket = wire.submit(np.zeros(4, np.float32), 0)
        served.take()
        served.answer(np.zeros(4, np.float32))
        outcome(wire, ticket)
    assert column.tolist() == [7, 7]
    assert wire.producer.free_slots == 3
    del column
    assert wire.producer.free_slots == 4


def test_a_call_whose_result_is_lent_is_over() -> None:
    wire = Wire(ROWS)
    served = Served(wire)
    ticket = wire.submit(np.zeros(4, np.float32), 0)
    call = call_of(wire, ticket)
    assert call._lend(0, int) is PENDING
    assert call._lend(1000, int) is PENDING
    served.take()
    assert call._lend(0, int) is PENDING
    served.answer(np.zeros(4, np.float32))
    row = call._lend(0, int)
    assert type(row) is Lent
    assert call._state == 3
    assert call._lend(0, int) is None
    assert call_of(wire, ticket)._lend(0, int) is None
    with pytest.raises(ValueError, match="the ticket's call is over"):
        wire.producer.poll(ticket, 0)
    assert wire.producer.finished(False) == []


def test_only_an_array_that_is_there_is_lent() -> None:
    failed = Wire(ROWS)
    served = Served(failed)
    ticket = failed.submit(np.zeros(4, np.float32), 0)
    served.take()
    served.batch.fail(0, b"wrong")
    served.batch.complete()
    assert call_of(failed, ticket)._lend(0, int) is None
    assert failed.producer.error(ticket) == b"wrong"

    numbers = Wire(signature("int", result="int"))
    served = Served(numbers)
    ticket = numbers.submit(1)
    served.take()
    served.answer(2)
    assert call_of(numbers, ticket)._lend(0, int) is None
    assert outcome(numbers, ticket) == 2


# ---- whoever waits for a slot, moves, forks ----


def test_whoever_queues_is_told_of_a_slot_that_comes_back() -> None:
    wire = Wire(ROWS, 4)
    served = Served(wire)
    told: list[int] = []

    def tell() -> None:
        told.append(wire.producer.free_slots)

    loan, result = reserved(wire, tell), lent(wire, served, 1, tell)
    del result
    assert told == []  # nobody queues
    result = lent(wire, served, 1, tell)
    wire.producer.queueing = True
    del result
    assert told == [3]
    loan.close()
    assert told == [3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_slot_comes_back_although_telling_so_raises() -> None:
    wire = Wire(ROWS, 4)
    wire.producer.queueing = True

    def tell() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        reserved(wire, tell).close()
    loan = reserved(wire, tell)
    del loan
    assert wire.producer.free_slots == 4


def test_when_the_ring_moves_loans_stay_behind() -> None:
    first, second = Wire(ROWS), Wire(ROWS)
    before, after = Served(first), Served(second)
    producer = first.producer
    loan, result = reserved(first), lent(first, before, 7)
    written, row = floats(loan.value(0)), floats(result)
    written[:] = 5
    pending = first.submit(np.ones(4, np.float32), 1)

    assert producer.move(second.memory, second.bell_memory, int, GONE, 1)[0] == 1

    assert producer.free_slots == 3
    assert spawned(first, loan, written, 9) == SUBMIT_CLOSED
    again = floats(loan.value(0))
    assert np.shares_memory(again, written)
    tickets = [first.submit(np.full(4, x, np.float32), 1) for x in range(3)]
    after.take()
    stack = np.zeros((16, 4), np.float32)
    rows, _ = after.batch.gather([(stack, stack), None])
    after.answer(*rows)
    assert [outcome(first, each).tolist() for each in (pending, *tickets)] == [
        [1] * 4,
        *([x] * 4 for x in range(3)),
    ]
    assert (written.tolist(), row.tolist()) == ([5] * 4, [7] * 4)
    loan.close()
    del row, result, loan, written, again
    assert producer.free_slots == 4
    halves = [producer.reserve(int) for _ in range(3)]
    assert [isinstance(each, int) for each in halves] == [False, False, True]


def test_an_input_in_place_goes_along_when_the_ring_moves_while_another_is_copied() -> None:
    """The other one is large, and copied without the GIL."""
    image = array("uint8", 4 << 20)
    for number in range(1, 6):
        wire, last = (Wire(signature(ROW, image, result=ROW), 2) for _ in range(2))
        served = Served(last)
        loan = reserved(wire)
        value = loan.value(0)
        values = floats(value), np.full(4 << 20, number, np.uint8)
        values[0][:] = number
        thread = threading.Thread(target=spawned, args=(wire, loan, *values))
        thread.start()
        while not memoryview(value).readonly:
            pass  # it has not begun
        wire.producer.move(last.memory, last.bell_memory, int, GONE, 1)
        thread.join()
        assert served.take() == 1
        rows, images = np.zeros((1, 4), np.float32), np.zeros((1, 4 << 20), np.uint8)
        served.batch.gather([(rows, rows), (images, images)])
        assert rows.tolist() == [[number] * 4]
        assert (images == number).all()


def test_a_forked_child_takes_nothing_and_gives_nothing_back() -> None:
    wire = Wire(ROWS, 4)
    served = Served(wire)
    loan, result = reserved(wire), floats(lent(wire, served, 7))
    state = wire.read(wire.state_offset(1))
    child = os.fork()
    if child == 0:
        try:
            row = floats(loan.value(0))
            facts = [
                wire.producer.reserve(int) == SUBMIT_FORKED,
                spawned(wire, loan, row, 1) == SUBMIT_FORKED,
                result.tolist() == [7] * 4,
            ]
            loan.close()
            del result, loan
            facts.append(wire.producer.free_slots == 2)
            os._exit(0 if all(facts) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert wire.read(wire.state_offset(1)) == state
    assert spawned(wire, loan, floats(loan.value(0)), 1) >= 0


STEPS = ("reserve", "write", "spawn", "close", "drop", "submit", "take", "complete")


@given(
    st.integers(1, 5),
    st.lists(st.sampled_from((*STEPS, "poll", "lend", "forget", "move")), max_size=60),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_whatever_happens_a_slot_is_one_users_and_what_is_lent_stays(
    capacity: int, steps: list[str], chance: random.Random
) -> None:
    """Calls are echoed, and at moves nothing is lost; the books are kept beside."""
    wire = Wire(signature(ROW, result=ROW), capacity)
    producer, served = wire.producer, Served(wire)
    stack = np.zeros((16, 4), np.float32)
    calls: dict[int, float] = {}  # of tickets that are not over
    reserved_: list[tuple[Loan, np.ndarray, int]] = []  # with how often the ring had moved
    borrowed: list[tuple[np.ndarray, float, int]] = []
    numbers = iter(range(1, 1000))

    def take() -> None:
        if served.batch.count == 0:
            served.take()

    def complete() -> None:
        if served.batch.count:
            (rows,) = served.batch.gather([(stack, stack)])
            served.answer(*rows.copy())

    def any_of(what: list[Any]) -> Any:
        return what.pop(chance.randrange(len(what)))

    for step in steps:
        if step == "reserve":
            loan = producer.reserve(int)
            if not isinstance(loan, int):
                row = floats(loan.value(0))
                row[:] = next(numbers)
                reserved_.append((loan, row, producer.moves))
        elif step == "write":
            for _, row, _ in reserved_:
                row[:] = next(numbers)
        elif step in ("spawn", "close", "drop") and reserved_:
            loan, row, moves = any_of(reserved_)
            if step == "spawn":
                value = float(row[0])
                ticket = spawned(wire, loan, row)
                assert (ticket == SUBMIT_CLOSED) == (moves != producer.moves)
                if ticket != SUBMIT_CLOSED:
                    calls[ticket] = value
            elif step == "close":
                loan.close()
        elif step == "submit" and producer.free_slots:
            value = float(next(numbers))
            calls[wire.submit(np.full(4, value, np.float32))] = value
        elif step == "take":
            take()
        elif step == "complete":
            complete()
        elif step == "poll":
            for ticket in list(calls):
                result = producer.poll(ticket, 0)
                if result is not PENDING:
                    assert result.tolist() == [calls.pop(ticket)] * 4
        elif step == "lend":
            for ticket in list(calls):
                value_or_not = call_of(wire, ticket)._lend(0, int)
                if type(value_or_not) is Lent:
                    borrowed.append((floats(value_or_not), calls.pop(ticket), producer.moves))
                    break
        elif step == "forget" and borrowed:
            any_of(borrowed)
        elif step == "move":
            complete()
            wire = Wire(wire.signature, capacity)
            before, served = served, Served(wire)
            producer.move(wire.memory, wire.bell_memory, int, GONE, 2)
            wire.producer = producer
            del before
        loan = row = value_or_not = array_ = None
        lent_now = [each for each in (*reserved_, *borrowed) if each[2] == producer.moves]
        assert producer.free_slots == capacity - len(calls) - len(lent_now)
        assert len(lent_now) <= capacity // 2
        for array_, value, _ in borrowed:
            assert array_.tolist() == [value] * 4


def test_nothing_is_left_of_many_loans() -> None:
    wire = Wire(ROWS, 4)
    served = Served(wire)
    before = sys.getrefcount(wire.memory), sys.getrefcount(wire.producer)
    for number in range(200):
        loan = reserved(wire)
        row = floats(loan.value(0))
        if number % 2:
            ticket = spawned(wire, loan, row, 1)
            served.take()
            served.answer(row)
            outcome(wire, ticket)
        row = floats(lent(wire, served))
        del loan, row
    gc.collect()
    assert wire.producer.free_slots == 4
    assert (sys.getrefcount(wire.memory), sys.getrefcount(wire.producer)) == before
