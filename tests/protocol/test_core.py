"""The native core with both its ends in one process: every operation, every refusal."""

from __future__ import annotations

import gc
import math
import mmap
import os
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from shmbatch.contract.columns import MAX_NDIM, Column
from shmbatch.contract.signature import MAX_PARAMETERS
from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.protocol import _core, layout
from shmbatch.protocol._core import (
    ABANDONED,
    ASYNC,
    CANCELLED,
    CLOSED,
    DONE,
    DRAINING,
    FAILED,
    FREE,
    LOOP,
    MAX_CAPACITY,
    MAX_COLUMNS,
    OPEN,
    PARKED,
    PENDING,
    POLLING,
    READY,
    SUBMIT_CLOSED,
    SUBMIT_FORKED,
    SUBMIT_FULL,
    SUBMIT_MISFIT,
    TAKEN,
    THREAD,
    WAITER,
    WAKE_ASYNC,
    WAKE_VIOLATION,
    Batch,
    Bell,
    ExecutorRing,
    Inbox,
    ProducerRing,
)
from tests.rings import ADD, Served, Wire, array, outcome, signature, slot_of

LONG_NS = 60 * 10**9  # longer than the watchdog lets a test wait in vain


def word(generation: int, state: int) -> int:
    return generation << 8 | state


# ---- values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("int", value) for value in (0, -1, 2**63 - 1, -(2**63))),
        *(("float", value) for value in (0.5, -0.0, math.inf, -math.inf, 5e-324, 1.8e308)),
        *(("bool", value) for value in (True, False)),
    ],
)
def test_a_scalar_arrives_and_returns_as_it_was(kind: Any, value: Any) -> None:
    wire = Wire(signature(kind, result=kind))
    served = Served(wire)

    ticket = wire.submit(value)
    served.take()
    (column,) = served.inputs(1)
    assert column == [value]
    assert type(column[0]) is type(value)
    served.answer(value)

    result = outcome(wire, ticket)
    assert result == value
    assert type(result) is type(value)
    assert math.copysign(1, result) == math.copysign(1, value)


def test_the_bits_of_a_nan_survive() -> None:
    wire = Wire(signature("float", result="float"))
    served = Served(wire)
    nan = struct.unpack("=d", struct.pack("=Q", 0xFFF8_0000_0000_BEEF))[0]

    ticket = wire.submit(nan)
    served.take()
    served.answer(served.inputs(1)[0][0])

    assert struct.pack("=d", outcome(wire, ticket)) == struct.pack("=d", nan)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0,), (2, 0, 3), (20_000,)])
def test_an_array_arrives_and_returns_as_it_was(shape: tuple[int, ...]) -> None:
    """The last shape is long enough to be copied without the GIL."""
    wire = Wire(signature(array("float64", *shape), result=array("float64", *shape)))
    served = Served(wire)
    value = np.random.default_rng(1).random(shape)
    stack = np.zeros((16, *shape))

    ticket = wire.submit(value)
    served.take()
    (gathered,) = served.batch.gather([stack])
    assert gathered is stack
    np.testing.assert_array_equal(stack[0], value)
    assert served.batch.scatter(np.array(stack[:1]))
    served.batch.complete()

    result = outcome(wire, ticket)
    assert type(result) is np.ndarray
    assert result.flags.owndata
    np.testing.assert_array_equal(result, value)


def test_bytes_of_a_dtype_that_numpy_lacks_travel_raw() -> None:
    column = array("bfloat16", 3, library="torch")
    wire = Wire(signature(column, result=column))
    served = Served(wire)
    stack = np.zeros((16, 3), "uint16")

    first = wire.submit(memoryview(b"abcdef").cast("c"))
    second = wire.submit(memoryview(b"ghijkl").cast("c"))
    served.take()
    served.batch.gather([stack])
    assert served.batch.scatter(memoryview(stack[:2].tobytes()).cast("c"))
    served.batch.complete()

    assert outcome(wire, first).tobytes() == b"abcdef"
    assert outcome(wire, second).tobytes() == b"ghijkl"


IMAGE = array("float32", 2, 3)
RAW = array("bfloat16", 3, library="torch")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((signature("int"), value) for value in (True, 1.0, "1", None, np.int64(1), 2**63)),
        (signature("int"), -(2**63) - 1),
        *((signature("float"), value) for value in (1, True, None, np.float64(1))),
        *((signature("bool"), value) for value in (1, 0, None, np.True_)),
        *((signature(IMAGE), value) for value in (None, 1.0, [[0.0] * 3] * 2, b"x" * 24)),
        (signature(IMAGE), np.zeros((2, 3), "float64")),
        (signature(IMAGE), np.zeros((2, 3), "int32")),
        (signature(IMAGE), np.zeros((2, 3), ">f4")),
        (signature(IMAGE), np.zeros((3, 2), "float32")),
        (signature(IMAGE), np.zeros(6, "float32")),
        (signature(IMAGE), np.zeros((1, 2, 3), "float32")),
        (signature(IMAGE), np.zeros((3, 2), "float32").T),
        (signature(IMAGE), np.zeros((4, 3), "float32")[::2]),
        (signature(IMAGE), np.zeros((2, 3), "float32").view(np.matrix)),
        (signature(IMAGE), np.zeros((2, 3), "datetime64[s]")),  # has no buffer at all
        (signature(array("float32", 0)), np.zeros((0, 0), "float32")),
        (signature(RAW), np.zeros(3, "uint16")),
        (signature(RAW), memoryview(b"abcdef")),  # format B
        (signature(RAW), memoryview(b"abcdefg").cast("c")),
        (signature(RAW), memoryview(b"abcdefghijkl").cast("c")[::2]),
    ],
)
def test_a_value_that_is_not_exactly_of_its_type_is_left_to_python(
    column: Any, value: Any
) -> None:
    wire = Wire(column)

    assert wire.producer.submit((value,), 0) == SUBMIT_MISFIT
    assert wire.producer.free_slots == 4
    assert wire.read(layout.TAIL) == 0


@pytest.mark.parametrize("values", [(), (1,), (1, 2, 3)])
def test_a_wrong_number_of_values_is_left_to_python(values: tuple[int, ...]) -> None:
    assert Wire().producer.submit(values, 0) == SUBMIT_MISFIT


def test_buffers_are_let_go_whatever_becomes_of_the_call() -> None:
    wire = Wire(signature(RAW, "int"), capacity=1)
    data = bytearray(b"abcdef")

    for values, expected in [
        ((memoryview(data).cast("c"), "no int"), SUBMIT_MISFIT),
        ((memoryview(data).cast("c"), 1), None),
        ((memoryview(data).cast("c"), 2), SUBMIT_FULL),
    ]:
        ticket = wire.producer.submit(values, 0)
        assert (ticket == expected) if expected is not None else (ticket >= 0)
    del values
    data.clear()  # BufferError if a view of it were still held


def test_submit_takes_a_tuple_and_flags() -> None:
    wire = Wire()
    for arguments in [([1, 2], 0), ((1, 2), "0"), ((1, 2), -1), ((1, 2),), ((1, 2), 0, 0)]:
        with pytest.raises(TypeError):
            wire.producer.submit(*arguments)  # type: ignore[arg-type]
    assert wire.producer.free_slots == 4


def test_a_program_may_have_as_many_parameters_as_the_core_has_columns() -> None:
    assert MAX_PARAMETERS == MAX_COLUMNS

    wire = Wire(signature(*["int"] * MAX_COLUMNS))
    served = Served(wire)
    wire.submit(*range(MAX_COLUMNS))
    served.take()

    assert served.inputs(MAX_COLUMNS) == [[i] for i in range(MAX_COLUMNS)]


def test_the_largest_number_of_axes_is_copied() -> None:
    wire = Wire(signature(array("int8", *[1] * MAX_NDIM)))

    wire.submit(np.ones([1] * MAX_NDIM, "int8"))


# ---- the life of a slot, cell by cell ----------------------------------------------------------
#
# Every cell is what the operation returns and the state that it leaves, ValueError where the
# ticket is over. drain, take and complete are the executor's; take does not drain first.

OVER = ValueError
TABLE: dict[str, dict[str, tuple[Any, int]]] = {
    "published": {
        "poll": (PENDING, READY),
        "error": (OVER, READY),
        "state": (READY, READY),
        "arm": (word(1, READY) | WAITER, READY),
        "withdraw": (CANCELLED, CANCELLED),
        "finished": ([], READY),
        "drain": (1, READY),
        "take": (0, READY),
        "complete": (None, READY),
    },
    "waiting": {
        "poll": (PENDING, READY),
        "error": (OVER, READY),
        "state": (READY, READY),
        "arm": (word(1, READY) | WAITER, READY),
        "withdraw": (CANCELLED, CANCELLED),
        "finished": ([], READY),
        "drain": (1, READY),
        "take": (1, TAKEN),
        "complete": (None, READY),
    },
    "taken": {
        "poll": (PENDING, TAKEN),
        "error": (OVER, TAKEN),
        "state": (TAKEN, TAKEN),
        "arm": (word(1, TAKEN) | WAITER, TAKEN),
        "withdraw": (ABANDONED, ABANDONED),
        "finished": ([], TAKEN),
        "drain": (0, TAKEN),
        "take": (0, TAKEN),
        "complete": (None, DONE),
    },
    "done": {
        "poll": (42, FREE),
        "error": (OVER, DONE),
        "state": (DONE, DONE),
        "arm": (-1, DONE),
        "withdraw": (DONE, FREE),
        "finished": (["the ticket"], DONE),
        "drain": (0, DONE),
        "take": (0, DONE),
        "complete": (None, DONE),
    },
    "failed": {
        "poll": (FAILED, DONE),
        "error": (b"why", FREE),
        "state": (DONE, DONE),
        "arm": (-1, DONE),
        "withdraw": (DONE, FREE),
        "finished": (["the ticket"], DONE),
        "drain": (0, DONE),
        "take": (0, DONE),
        "complete": (None, DONE),
    },
    "cancelled": {
        "poll": (OVER, CANCELLED),
        "error": (OVER, CANCELLED),
        "state": (OVER, CANCELLED),
        "arm": (OVER, CANCELLED),
        "withdraw": (OVER, CANCELLED),
        "finished": ([], CANCELLED),
        "drain": (0, FREE),
        "take": (0, CANCELLED),
        "complete": (None, CANCELLED),
    },
    "cancelled waiting": {
        "poll": (OVER, CANCELLED),
        "error": (OVER, CANCELLED),
        "state": (OVER, CANCELLED),
        "arm": (OVER, CANCELLED),
        "withdraw": (OVER, CANCELLED),
        "finished": ([], CANCELLED),
        "drain": (0, FREE),
        "take": (0, FREE),
        "complete": (None, CANCELLED),
    },
    "abandoned": {
        "poll": (OVER, ABANDONED),
        "error": (OVER, ABANDONED),
        "state": (OVER, ABANDONED),
        "arm": (OVER, ABANDONED),
        "withdraw": (OVER, ABANDONED),
        "finished": ([], ABANDONED),
        "drain": (0, ABANDONED),
        "take": (0, ABANDONED),
        "complete": (None, FREE),
    },
    "over": {
        "poll": (OVER, FREE),
        "error": (OVER, FREE),
        "state": (OVER, FREE),
        "arm": (OVER, FREE),
        "withdraw": (OVER, FREE),
        "finished": ([], FREE),
        "drain": (0, FREE),
        "take": (0, FREE),
        "complete": (None, FREE),
    },
}


class Life:
    """A wire of one slot, in a given state."""

    def __init__(self, state: str) -> None:
        self.wire = Wire(capacity=1)
        self.served = Served(self.wire)
        self.ticket = self.wire.submit(40, 2)
        producer, served = self.wire.producer, self.served
        if state in ("published", "cancelled"):
            pass
        elif state in ("waiting", "cancelled waiting"):
            served.drain()
        else:
            served.take()
        if state.startswith("cancelled") or state == "abandoned":
            producer.withdraw(self.ticket)
        if state in ("done", "failed", "over"):
            served.batch.put(0, 42)
            if state == "failed":
                served.batch.fail(0, b"why")
            served.batch.complete()
        if state == "over":
            producer.poll(self.ticket, 0)
        if state in ("taken", "abandoned"):
            served.batch.put(0, 42)

    def do(self, operation: str) -> Any:
        producer, served = self.wire.producer, self.served
        if operation == "poll":
            return producer.poll(self.ticket, 0)
        if operation == "arm":
            return producer.arm(self.ticket, WAITER)
        if operation == "finished":
            return ["the ticket"] * (producer.finished() == [self.ticket])
        if operation == "drain":
            return served.drain()
        if operation == "take":
            return served.inbox.take(Batch(1), 1)
        if operation == "complete":
            return served.batch.complete()
        return getattr(producer, operation)(self.ticket)


@pytest.mark.parametrize("operation", TABLE["over"])
@pytest.mark.parametrize("state", TABLE)
def test_every_operation_does_in_every_state_what_the_table_says(
    state: str, operation: str
) -> None:
    life = Life(state)
    expected, next_state = TABLE[state][operation]

    if expected is OVER:
        with pytest.raises(ValueError, match=r"^the (ticket's call is over|call has no error)"):
            life.do(operation)
    else:
        assert life.do(operation) == expected

    assert life.wire.read(life.wire.state_offset(0)) & 7 == next_state
    assert life.wire.producer.free_slots == (next_state == FREE)
    life.served.drain()
    assert life.served.inbox.pop_attention() is None or next_state == FREE


@pytest.mark.parametrize("state", TABLE)
def test_from_every_state_a_slot_comes_back_and_carries_the_next_call(state: str) -> None:
    life = Life(state)
    producer = life.wire.producer

    if state not in ("cancelled", "cancelled waiting", "abandoned", "over"):
        producer.withdraw(life.ticket)
    life.served.drain()
    life.served.batch.complete()
    ticket = life.wire.submit(1, 2)
    life.served.take()
    life.served.answer(3)

    assert ticket != life.ticket
    assert outcome(life.wire, ticket) == 3
    with pytest.raises(ValueError, match="over"):
        producer.poll(life.ticket, 0)


@pytest.mark.parametrize("ticket", [1, 2**17 - 1, 2**17, 2**40, 2**63])
def test_a_ticket_that_was_never_given_out_is_refused(ticket: int) -> None:
    producer = Wire(capacity=1).producer

    for use in (
        lambda: producer.poll(ticket, 0),
        lambda: producer.error(ticket),
        lambda: producer.state(ticket),
        lambda: producer.arm(ticket, WAITER),
        lambda: producer.withdraw(ticket),
    ):
        with pytest.raises(ValueError, match="over"):
            use()


@pytest.mark.parametrize("ticket", [-1, 2**64, "1", None])
def test_what_is_no_ticket_is_refused(ticket: Any) -> None:
    producer = Wire().producer

    for use in (
        lambda: producer.poll(ticket, 0),
        lambda: producer.error(ticket),
        lambda: producer.state(ticket),
        lambda: producer.arm(ticket, WAITER),
        lambda: producer.withdraw(ticket),
        lambda: producer.park_slot(ticket, 0, 1),
    ):
        with pytest.raises((OverflowError, TypeError)):
            use()


# ---- full, closed, reused ------------------------------------------------------------------


def test_a_full_ring_takes_nothing_until_a_result_was_taken_out() -> None:
    wire = Wire(capacity=2)
    served = Served(wire)

    tickets = [wire.submit(i, i) for i in range(2)]
    assert wire.producer.submit((2, 2), 0) == SUBMIT_FULL
    served.take()
    assert wire.producer.submit((2, 2), 0) == SUBMIT_FULL
    served.answer(10, 11)
    assert wire.producer.submit((2, 2), 0) == SUBMIT_FULL
    assert outcome(wire, tickets[1]) == 11

    assert wire.producer.submit((2, 2), 0) >= 0
    assert outcome(wire, tickets[0]) == 10


def test_a_submit_that_finds_the_ring_full_collects_withdrawn_slots() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)

    wire.producer.withdraw(wire.submit(1, 1))
    assert wire.producer.submit((2, 2), 0) == SUBMIT_FULL
    served.drain()

    assert wire.producer.submit((2, 2), 0) >= 0


@pytest.mark.parametrize("status", [DRAINING, CLOSED])
def test_a_closing_connection_takes_no_calls_and_still_gives_results(status: int) -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 2)

    wire.executor.set_status(status)

    assert wire.producer.status == status
    assert wire.producer.submit((1, 2), 0) == SUBMIT_CLOSED
    served.take()
    served.answer(3)
    assert outcome(wire, ticket) == 3


def test_the_ring_survives_the_wrap_of_its_tail() -> None:
    """Four billion calls later; the words are set, as nobody can wait for that."""
    wire = Wire(capacity=3)
    near = 2**32 - 5
    # A fresh pair of ends on the same memory cannot start there, so the indices go round first:
    # the tail is private to the producer, and this drives it across the ring's own end.
    served = Served(wire)
    for round_number in range(50):
        tickets = [wire.submit(round_number, i) for i in range(3)]
        served.take()
        served.answer(*(a + b for a, b in zip(*served.inputs(), strict=True)))
        assert [outcome(wire, ticket) for ticket in tickets] == [
            round_number + i for i in range(3)
        ]
    assert wire.read(layout.TAIL) == 150 < near


def test_generations_tell_the_calls_of_one_slot_apart() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)
    seen = set()

    for number in range(100):
        ticket = wire.submit(number, 0)
        seen.add(ticket)
        served.take()
        served.answer(number)
        assert outcome(wire, ticket) == number

    assert len(seen) == 100
    assert {slot_of(ticket) for ticket in seen} == {0}


def test_a_late_result_of_an_abandoned_call_reaches_nobody() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)

    wire.producer.withdraw(wire.submit(1, 1))
    served.take()  # cancelled: nothing to take
    late = wire.submit(2, 2)
    served.take()
    wire.producer.withdraw(late)
    served.answer(4)
    ticket = wire.submit(3, 3)

    assert wire.producer.poll(ticket, 0) is PENDING
    served.take()
    served.answer(6)
    assert outcome(wire, ticket) == 6


def test_a_stale_ticket_stays_stale_while_its_slot_is_being_filled_again() -> None:
    """Large inputs are copied without the GIL: another thread sees the slot half claimed."""
    nbytes = 64 << 20
    wire = Wire(signature(array("uint8", nbytes)), capacity=1)
    served = Served(wire)
    value = np.ones(nbytes, "uint8")
    stale = wire.submit(value)
    served.take()
    served.answer(1)
    assert outcome(wire, stale) == 1

    tickets: list[int] = []
    thread = threading.Thread(target=lambda: tickets.append(wire.submit(value)))
    thread.start()
    while wire.producer.free_slots:
        pass  # until the other thread has claimed the slot
    with pytest.raises(ValueError, match="over"):
        wire.producer.withdraw(stale)
    thread.join()

    assert wire.producer.submit((value,), 0) == SUBMIT_FULL
    served.take()
    served.answer(2)
    assert outcome(wire, tickets[0]) == 2
    assert wire.producer.free_slots == 1


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 5000])
def test_an_error_record_is_cut_to_its_room(nbytes: int) -> None:
    wire = Wire(capacity=4)
    served = Served(wire)
    record = bytes(i % 251 for i in range(nbytes))

    ticket = wire.submit(1, 2)
    served.take()
    served.batch.fail(0, record)
    served.batch.complete()

    assert wire.where.error_nbytes == 4096
    assert wire.producer.poll(ticket, 0) is FAILED
    assert wire.producer.error(ticket) == record[:4096]


def test_one_failed_row_leaves_its_neighbours_alone() -> None:
    wire = Wire()
    served = Served(wire)
    tickets = [wire.submit(i, i) for i in range(3)]

    served.take()
    assert served.batch.scatter([10, 11, 12])
    served.batch.fail(1, b"bad")
    served.batch.complete()

    assert outcome(wire, tickets[0]) == 10
    assert wire.producer.error(tickets[1]) == b"bad"
    assert outcome(wire, tickets[2]) == 12


def test_the_outcome_of_a_row_is_not_handed_on_to_the_next_batch() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)

    ticket = wire.submit(1, 1)
    served.take()
    served.batch.fail(0, b"bad")
    served.batch.complete()
    wire.producer.error(ticket)
    ticket = wire.submit(2, 2)
    served.take()
    served.answer(4)

    assert outcome(wire, ticket) == 4


def test_a_result_that_cannot_be_finished_gives_its_slot_back() -> None:
    def finish(result: int) -> int:
        raise RuntimeError("no")

    wire = Wire(capacity=1, finish=finish)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)

    with pytest.raises(RuntimeError, match="no"):
        wire.producer.poll(ticket, 0)
    assert wire.producer.free_slots == 1


def test_what_finish_makes_of_a_result_is_what_poll_returns() -> None:
    wire = Wire(finish=lambda result: ("finished", result))
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)

    assert wire.producer.poll(ticket, 0) == ("finished", 2)


# ---- sleeping and waking -----------------------------------------------------------------------


def test_completing_says_who_sleeps_on_what() -> None:
    waiting, listening, gathering, asleep = (Wire() for _ in range(4))
    served = Served(waiting, listening, gathering, asleep)

    tickets = [waiting.submit(i, i) for i in range(3)]
    waiting.producer.arm(tickets[0], WAITER)
    waiting.producer.arm(tickets[2], WAITER)
    listening.submit(1, 1, flags=ASYNC)
    gathering.submit(1, 1)
    gathering.producer.join_completions(THREAD)
    gathering.producer.join_completions(THREAD)
    gathering.producer.join_completions(LOOP)
    asleep.submit(1, 1)
    served.take()

    assert served.answer(*[0] * 6) == [
        (waiting.executor, 0, 0, [slot_of(tickets[0]), slot_of(tickets[2])]),
        (listening.executor, WAKE_ASYNC, 0, []),
        (gathering.executor, WAKE_ASYNC, 2, []),
    ]


def test_nobody_is_woken_for_a_call_that_was_withdrawn() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1, flags=ASYNC)
    wire.producer.arm(ticket, WAITER)
    served.take()

    wire.producer.withdraw(ticket)

    assert served.answer(2) == []


def test_sleepers_on_completions_hear_of_slots_that_withdrawals_freed() -> None:
    wire, idle = Wire(capacity=1), Wire()
    served = Served(wire, idle)
    wire.producer.withdraw(wire.submit(1, 1))
    wire.producer.join_completions(THREAD)

    served.drain()

    assert served.inbox.attention
    assert served.inbox.pop_attention() == [(wire.executor, 0, 1, [])]
    assert not served.inbox.attention
    assert served.inbox.pop_attention() is None


def test_at_most_255_of_a_kind_are_counted_as_sleepers() -> None:
    wire = Wire()
    producer = wire.producer

    for kind, mask in ((THREAD, 0xFF00), (LOOP, 0xFF)):
        for _ in range(255):
            assert producer.join_completions(kind) >= 0
        assert producer.join_completions(kind) == -1
        assert wire.read(layout.COMPLETIONS) & mask == mask
    for kind in (THREAD, LOOP):
        for _ in range(300):  # more than joined: never below zero
            producer.leave_completions(kind)
    assert wire.read(layout.COMPLETIONS) == 0


def test_the_completion_word_differs_after_every_batch() -> None:
    """A sleeper parks on what join returned; it must not fit any more once a batch is done."""
    wire = Wire()
    served = Served(wire)
    joined = wire.producer.join_completions(THREAD)
    assert joined == wire.read(layout.COMPLETIONS)

    for _ in range(3):
        wire.submit(1, 1)
        served.take()
        served.answer(2)
        assert wire.read(layout.COMPLETIONS) != joined


def test_a_park_on_a_word_that_has_changed_returns_at_once() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    armed = wire.producer.arm(ticket, WAITER)
    joined = wire.producer.join_completions(THREAD)
    seen = wire.bell.look()
    assert wire.bell.arm(seen, PARKED)
    wire.bell.ring()
    served.take()
    served.answer(2)

    wire.producer.park_slot(ticket, armed, LONG_NS)
    wire.producer.park_completions(joined, LONG_NS)
    wire.bell.park(seen | PARKED, LONG_NS)


@pytest.mark.parametrize("timeout_ns", [0, -1, -(2**63), 1])
def test_a_park_ends_with_its_time(timeout_ns: int) -> None:
    wire = Wire()
    ticket = wire.submit(1, 1)

    wire.producer.park_slot(ticket, wire.producer.arm(ticket, WAITER), timeout_ns)
    wire.producer.park_completions(wire.producer.join_completions(THREAD), timeout_ns)
    wire.bell.park(wire.bell.look(), timeout_ns)


def test_a_park_lets_other_threads_run_and_is_woken_by_the_other_end() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    wire.producer.arm(ticket, WAITER)

    def answer() -> None:
        served.take()
        for ring, _, threads, slots in served.answer(2):
            for slot in slots:
                ring.wake_slot(slot)
            if threads:
                ring.wake_completions()

    thread = threading.Thread(target=answer)
    thread.start()
    while (armed := wire.producer.arm(ticket, WAITER)) >= 0:
        wire.producer.park_slot(ticket, armed, LONG_NS)
    thread.join()

    assert outcome(wire, ticket) == 2


def test_a_spinning_poll_lets_other_threads_run_and_is_counted_when_it_won() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    assert wire.producer.poll(ticket, 1) is PENDING
    assert wire.producer.spins_won == 0

    def answer() -> None:
        served.take()
        served.answer(2)

    thread = threading.Thread(target=answer)
    thread.start()
    assert wire.producer.poll(ticket, LONG_NS) == 2
    thread.join()

    assert wire.producer.spins_won in (0, 1)  # 0: it was done before the first look


def test_a_spin_that_wins_is_counted() -> None:
    """The result comes while the caller spins: it is completed by hand in shared memory."""
    wire = Wire()
    ticket = wire.submit(1, 1)
    offset = wire.state_offset(slot_of(ticket))
    spinning = threading.Event()

    def finish_by_hand() -> None:
        spinning.wait()
        wire.write(offset, word(1, DONE))

    thread = threading.Thread(target=finish_by_hand)
    thread.start()
    spinning.set()
    won = 0
    while (result := wire.producer.poll(ticket, LONG_NS)) is PENDING:
        pass
    thread.join()
    won = wire.producer.spins_won

    assert result == 0
    assert won in (0, 1)


def test_the_bell_says_how_the_executor_waits() -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))

    assert bell.ring() == 0
    for bit in (PARKED, POLLING):
        seen = bell.look()
        assert bell.arm(seen, bit)
        assert bell.look() == seen | bit
        assert bell.ring() == bit
        assert bell.ring() == bit  # until the sleeper takes it back: a second ring wakes too
        bell.disarm()
        assert bell.ring() == 0


def test_the_bell_is_not_armed_once_it_rang() -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))
    seen = bell.look()
    bell.ring()

    assert not bell.arm(seen, PARKED)
    assert bell.spin(seen, LONG_NS)
    assert not bell.spin(bell.look(), 0)
    assert not bell.spin(bell.look(), 1)
    assert bell.ring() == 0


def test_submit_wakes_an_executor_that_sleeps_and_only_then() -> None:
    woken: list[int] = []
    wire = Wire(wake=woken.append)

    wire.submit(1, 1)
    assert woken == []
    wire.bell.arm(wire.bell.look(), PARKED)
    ticket = wire.submit(2, 2)
    assert woken == [PARKED]
    wire.producer.withdraw(ticket)  # its slot shall come back soon
    assert woken == [PARKED, PARKED]


def test_a_wake_that_raises_gives_the_call_up() -> None:
    def wake(sleeping: int) -> None:
        raise KeyboardInterrupt

    wire = Wire(wake=wake, capacity=2)
    served = Served(wire)
    wire.bell.arm(wire.bell.look(), PARKED)

    with pytest.raises(KeyboardInterrupt):
        wire.producer.submit((1, 1), 0)

    assert served.take() == 0
    assert wire.producer.free_slots == 2


def test_a_result_that_another_thread_is_reading_is_pending() -> None:
    """While numpy makes the array, or a large copy runs, other threads may look."""
    wire = Wire(signature("int", result=array("float64", 2)), capacity=1)
    served = Served(wire)
    ticket = wire.submit(1)
    served.take()
    served.answer(np.array([1.0, 2.0]))
    seen: list[Any] = []

    def allocate() -> Any:
        seen.append(wire.producer.poll(ticket, 0))
        seen.append(wire.producer.withdraw(ticket))
        seen.append(wire.producer.finished())
        with pytest.raises(ValueError, match="no error"):
            wire.producer.error(ticket)
        return np.empty(2)

    producer = reader(wire, allocate)
    assert producer.submit((1,), 0) == ticket  # a second producer's end, in the same state
    np.testing.assert_array_equal(producer.poll(ticket, 0), [1.0, 2.0])
    assert seen == []
    wire.producer = producer
    wire.write(wire.state_offset(0), word(2, DONE))
    ticket = producer.submit((1,), 0)
    wire.write(wire.state_offset(0), word(2, DONE))
    np.testing.assert_array_equal(producer.poll(ticket, 0), [1.0, 2.0])
    assert seen == [PENDING, DONE, []]


def reader(wire: Wire, allocate: Callable[[], Any]) -> ProducerRing:
    """Return a producer's end whose result arrays are made by *allocate*."""
    *shared, columns = ring_arguments(wire.memory, wire.signature, wire.where)
    columns = (*columns[:-1], (*columns[-1][:-1], allocate))
    return ProducerRing(*shared, columns, wire.bell_memory, lambda sleeping: None, None)
