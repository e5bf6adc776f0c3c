"""The native core with both its ends in one process: every operation, every refusal."""

from __future__ import annotations

import gc
import math
import mmap
import os
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    PARKED,
    PENDING,
    POLLING,
    READY,
    SPAWNED,
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
    Failure,
    Inbox,
    ProducerRing,
    Spinning,
)
from tests.rings import ADD, Served, Wire, array, outcome, shown, signature, slot_of

NEVER_NS = 1 << 62
LONG_NS = 60 * 10**9  # longer than the watchdog lets a test wait in vain


def word(generation: int, state: int) -> int:
    return generation << 8 | state


# ---- values ----


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
    (gathered,) = served.batch.gather([(stack, stack)])
    np.testing.assert_array_equal(gathered, value[np.newaxis])
    assert np.shares_memory(gathered, stack) or not gathered.size
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
    served.batch.gather([(stack, stack)])
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


def test_submit_takes_a_tuple_and_flags_and_perhaps_a_deadline() -> None:
    wire = Wire()
    fits = (1, 2)
    for arguments in [
        *(([1, 2], 0), (fits, "0"), (fits, -1), (fits,), (fits, 0, 0, 0)),
        *((fits, 0, "0"), (fits, 0, -1), (fits, 0, 1.5), (fits, 0, None), (fits, 0, 2**64)),
    ]:
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


# ---- the life of a slot, cell by cell ----
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
        "expire": (CANCELLED, CANCELLED),
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
        "expire": (CANCELLED, CANCELLED),
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
        "expire": (TAKEN, TAKEN),
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
        "expire": (DONE, DONE),
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
        "expire": (DONE, DONE),
        "finished": (["the ticket"], DONE),
        "drain": (0, DONE),
        "take": (0, DONE),
        "complete": (None, DONE),
    },
    "expired": {
        "poll": (FAILED, DONE),
        "error": (None, FREE),
        "state": (DONE, DONE),
        "arm": (-1, DONE),
        "withdraw": (DONE, FREE),
        "expire": (DONE, DONE),
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
        "expire": (OVER, CANCELLED),
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
        "expire": (OVER, CANCELLED),
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
        "expire": (OVER, ABANDONED),
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
        "expire": (OVER, FREE),
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
        self.ticket = self.wire.submit(40, 2, deadline_ns=1 if state == "expired" else 0)
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
            return ["the ticket"] * (producer.finished(False) == [self.ticket])
        if operation == "drain":
            return served.drain()
        if operation == "take":
            return served.inbox.take(Batch(1), 1, 1 << 62)
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
        lambda: producer.expire(ticket),
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
        lambda: producer.expire(ticket),
        lambda: producer.park_slot(ticket, 1),
    ):
        with pytest.raises((OverflowError, TypeError)):
            use()


# ---- full, closed, reused ----


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


def test_the_ring_goes_round_where_its_size_is_more_than_its_capacity() -> None:
    wire = Wire(capacity=3)
    served = Served(wire)

    for number in range(50):
        tickets = [wire.submit(number, i) for i in range(3)]
        served.take()
        served.answer(*(a + b for a, b in zip(*served.inputs(), strict=True)))
        assert [outcome(wire, ticket) for ticket in tickets] == [number + i for i in range(3)]

    assert wire.read(layout.TAIL) == 150


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


# ---- errors ----


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


def test_the_lowest_free_slot_is_claimed_next() -> None:
    capacity = 130  # of which the core keeps 64 in a word
    wire = Wire(capacity=capacity)
    served = Served(wire, room=capacity)
    tickets = [wire.submit(1, 1) for _ in range(capacity)]
    assert [slot_of(ticket) for ticket in tickets] == list(range(capacity))
    served.take()
    served.answer(*range(capacity))

    for slot in (129, 70, 3, 64):
        assert outcome(wire, tickets[slot]) == slot

    assert [slot_of(wire.submit(1, 1)) for _ in range(4)] == [3, 64, 70, 129]
    assert wire.producer.free_slots == 0


def test_a_result_that_cannot_be_finished_gives_its_slot_back() -> None:
    def finish(result: int) -> int:
        raise RuntimeError("no")

    wire = Wire(capacity=1, finish=finish)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)

    failure = wire.producer.poll(ticket, 0)
    assert type(failure) is Failure
    assert isinstance(failure.error, RuntimeError)
    assert wire.producer.free_slots == 1


def test_whatever_finish_raises_gives_the_slot_back() -> None:
    def finish(result: int) -> int:
        raise KeyboardInterrupt

    wire = Wire(capacity=1, finish=finish)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)

    with pytest.raises(KeyboardInterrupt):
        wire.producer.poll(ticket, 0)
    assert wire.producer.free_slots == 1


def test_what_finish_makes_of_a_result_is_what_poll_returns() -> None:
    wire = Wire(finish=lambda result: ("finished", result))
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)

    assert wire.producer.poll(ticket, 0) == ("finished", 2)


# ---- sleeping and waking ----


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
    joined = wire.producer.join_completions(THREAD)
    seen = wire.bell.look()
    wire.bell.ring()
    served.take()
    served.answer(2)

    assert wire.producer.park_slot(ticket, LONG_NS)
    wire.producer.park_completions(joined, LONG_NS)
    assert wire.bell.park(seen, LONG_NS, 1) == wire.bell.look() != seen


@pytest.mark.parametrize("timeout_ns", [0, -1, -(2**63), 1])
def test_a_park_ends_with_its_time(timeout_ns: int) -> None:
    wire = Wire()
    ticket = wire.submit(1, 1)

    assert not wire.producer.park_slot(ticket, timeout_ns)
    wire.producer.park_completions(wire.producer.join_completions(THREAD), timeout_ns)
    seen = wire.bell.look()
    assert wire.bell.park(seen, timeout_ns, 1) == seen == wire.bell.look()


def test_a_park_lets_other_threads_run_and_is_woken_by_the_other_end() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    wire.producer.arm(ticket, WAITER)

    def answer() -> None:
        served.take()
        for ring, _, threads, slots in served.answer(2):
            ring.wake(threads, slots)

    thread = threading.Thread(target=answer)
    thread.start()
    while not wire.producer.park_slot(ticket, LONG_NS):
        pass
    thread.join()

    assert outcome(wire, ticket) == 2


def test_who_sleeps_on_futexes_is_woken_by_complete_itself() -> None:
    wire = Wire()
    wire.executor.wakes = True
    served = Served(wire)
    ticket = wire.submit(1, 1)
    joined = wire.producer.join_completions(THREAD)
    woken: list[str] = []

    def sleep_on_the_slot() -> None:
        while not wire.producer.park_slot(ticket, LONG_NS):
            pass
        woken.append("slot")

    def sleep_on_completions() -> None:
        while wire.read(layout.COMPLETIONS) == joined:
            wire.producer.park_completions(joined, LONG_NS)
        woken.append("completions")

    threads = [threading.Thread(target=each) for each in (sleep_on_the_slot, sleep_on_completions)]
    for thread in threads:
        thread.start()
    state = wire.where.controls + slot_of(ticket) * layout.CONTROL_NBYTES
    while not wire.read(state) & WAITER:
        pass
    served.take()

    assert not served.answer(2)
    for thread in threads:
        thread.join()
    assert sorted(woken) == ["completions", "slot"]


def test_a_producer_wakes_its_own_sleepers_for_what_the_executor_does_not_know() -> None:
    wire = Wire()
    ticket = wire.submit(1, 1)
    wire.producer.wake_completions()
    assert wire.read(layout.COMPLETIONS) == 0  # nobody has joined
    joined = wire.producer.join_completions(THREAD)
    awake = []

    def sleep_on_the_slot() -> None:
        try:
            while True:
                wire.producer.park_slot(ticket, LONG_NS)
        except ValueError:
            awake.append("slot")

    def sleep_on_completions() -> None:
        wire.producer.park_completions(joined, LONG_NS)
        awake.append("completions")

    threads = [threading.Thread(target=each) for each in (sleep_on_the_slot, sleep_on_completions)]
    for thread in threads:
        thread.start()
    assert wire.producer.withdraw(ticket) == CANCELLED
    wire.producer.wake_slot(ticket)  # though its call is over
    wire.producer.wake_completions()
    for thread in threads:
        thread.join()

    assert sorted(awake) == ["completions", "slot"]
    assert wire.read(layout.COMPLETIONS) != joined
    for slot in (4, 2**17 - 1):
        with pytest.raises(ValueError, match="no slot"):
            wire.producer.wake_slot(slot)


@pytest.fixture
def cooperative_threads() -> Iterator[None]:
    """Threads change only where one of them lets go of the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def while_spinning(*steps: Callable[[], object]) -> Iterator[None]:
    """Have another thread do this once this one has let go of the interpreter."""

    def do_all() -> None:
        gate.acquire()
        for step in steps:
            step()

    gate = threading.Lock()
    gate.acquire()
    thread = threading.Thread(target=do_all)
    thread.start()
    gate.release()
    yield
    thread.join()


@pytest.mark.usefixtures("cooperative_threads")
def test_a_spinning_poll_lets_other_threads_run_and_counts_that_it_won() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    wire.producer.spinning = spinning = Spinning(LONG_NS, True)
    assert wire.producer.poll(ticket, 1) is PENDING
    assert spinning.won == 0

    with while_spinning(served.take, lambda: served.answer(2)):
        assert wire.producer.poll(ticket, LONG_NS) == 2

    assert spinning.won == 1


@pytest.mark.usefixtures("cooperative_threads")
def test_a_spinning_poll_yields_to_another_thread_that_took_the_result() -> None:
    """The slot may carry the next call by then; its result is not this caller's."""
    wire = Wire(capacity=1)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    taken: list[int] = []

    def answer_and_take() -> None:
        served.take()
        served.answer(2)
        taken.append(wire.producer.poll(ticket, 0))
        wire.submit(3, 3)
        served.take()
        served.answer(6)

    with while_spinning(answer_and_take):
        assert wire.producer.poll(ticket, LONG_NS) is PENDING

    assert taken == [2]


def test_the_bell_says_how_the_executor_waits() -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))

    assert bell.ring() == 0
    for bit in (PARKED, POLLING):
        seen = bell.look()
        assert bell.arm(seen, bit, 1)
        assert bell.look() == seen | bit
        assert bell.ring() == bit
        assert bell.ring() == bit  # until the sleeper takes it back: a second ring wakes too
        bell.disarm()
        assert bell.ring() == 0


def test_the_bell_is_not_armed_once_it_rang() -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))
    seen = bell.look()
    bell.ring()

    assert not bell.arm(seen, PARKED, 1)
    assert bell.ring() == 0


@pytest.mark.parametrize("learns", [False, True])
def test_a_spin_for_what_the_bell_has_rung_for_ends_at_once(learns: bool) -> None:
    """However many calls it waits for: nobody knows which of them rang before."""
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))
    seen = bell.look()
    bell.ring()

    rung = bell.look()
    for how in (Spinning(ns, learns) for ns in (LONG_NS, 1, 0)):
        assert bell.spin(how, seen, NEVER_NS, 3) == rung != seen
        assert (how.won, how.vain) == (0, 0)


@pytest.mark.parametrize("learns", [False, True])
def test_a_spin_ends_when_its_time_is_over(learns: bool) -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))
    seen = bell.look()
    never, shortly, late = (Spinning(ns, learns) for ns in (0, 1, LONG_NS))

    assert bell.spin(never, seen, NEVER_NS, 1) == seen
    assert bell.spin(shortly, seen, NEVER_NS, 1) == seen
    assert bell.spin(late, seen, 0, 1) == seen  # it is later than that already

    assert (never.vain, shortly.vain) == (0, 1)
    assert late.vain == 0  # it had no time: a batch is due
    assert (never.won, shortly.won, late.won) == (0, 0, 0)


@pytest.mark.usefixtures("cooperative_threads")
@pytest.mark.parametrize(("learns", "rings"), [(True, 3), (False, 1)])
def test_who_learns_spins_on_until_as_many_calls_came_as_it_waits_for(
    learns: bool, rings: int
) -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell, producers = Bell(memory), Bell(memory)
    how = Spinning(LONG_NS, learns)
    seen = bell.look()

    with while_spinning(*[producers.ring] * rings):
        assert bell.spin(how, seen, NEVER_NS, 3) > seen

    assert bell.look() - seen == 4 * rings
    assert (how.won, how.vain) == (1, 0)


@pytest.mark.usefixtures("cooperative_threads")
def test_too_few_calls_end_no_spin_before_its_time() -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell, producers = Bell(memory), Bell(memory)
    how = Spinning(5_000_000, True)
    seen = bell.look()

    with while_spinning(producers.ring, producers.ring):
        assert bell.spin(how, seen, NEVER_NS, 3) == seen

    assert bell.look() != seen
    assert (how.won, how.vain) == (0, 1)


@pytest.mark.usefixtures("cooperative_threads")
def test_a_spin_goes_on_while_calls_come() -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell, producers = Bell(memory), Bell(memory)
    how = Spinning(1_000_000_000, True)
    seen = bell.look()

    def ring_later() -> None:
        time.sleep(0.3)  # four times: longer than a spin
        producers.ring()

    with while_spinning(*[ring_later] * 4):
        assert bell.spin(how, seen, NEVER_NS, 4) != seen

    assert (how.won, how.vain) == (1, 0)


@pytest.mark.usefixtures("cooperative_threads")
def test_a_spin_ends_although_calls_come_and_come() -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell, producers = Bell(memory), Bell(memory)
    how = Spinning(5_000_000, True)
    seen = bell.look()
    is_over = threading.Event()

    def ring_until_it_is_over() -> None:
        while not is_over.wait(0.001):
            producers.ring()

    with while_spinning(ring_until_it_is_over):
        word = bell.spin(how, seen, NEVER_NS, 1 << 20)
        is_over.set()  # before anything can fail, or the thread would ring for ever

    assert word == seen
    assert (how.won, how.vain) == (0, 1)


@pytest.mark.usefixtures("cooperative_threads")
def test_the_executors_own_ring_ends_its_spin_whatever_it_waits_for() -> None:
    bell = Bell(mmap.mmap(-1, layout.BELL_NBYTES))
    seen = bell.look()

    with while_spinning(bell.ring):
        assert bell.spin(Spinning(LONG_NS, True), seen, NEVER_NS, 3) > seen


@pytest.mark.usefixtures("cooperative_threads")
def test_a_spin_counts_rings_beyond_the_end_of_the_word() -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell, producers = Bell(memory), Bell(memory)
    struct.pack_into("=I", memory, layout.BELL_WORD, 2**32 - 4)

    with while_spinning(producers.ring, producers.ring):
        assert bell.spin(Spinning(LONG_NS, True), 2**32 - 4, NEVER_NS, 2) == 4


def test_the_executor_sleeps_on_until_as_many_calls_came_as_it_waits_for() -> None:
    woken: list[int] = []
    wire = Wire(capacity=8, wake=woken.append)
    bell = wire.bell
    tickets = [wire.submit(0, 0)]

    assert bell.arm(bell.look(), PARKED, 3)
    tickets += [wire.submit(0, 0), wire.submit(0, 0)]
    assert woken == []
    tickets.append(wire.submit(0, 0))
    assert woken == [PARKED]
    tickets.append(wire.submit(0, 0))
    assert woken == [PARKED] * 2  # it may not have got up yet

    bell.disarm()
    assert bell.arm(bell.look(), PARKED, 1 << 20)
    wire.submit(0, 0)
    assert len(woken) == 2
    wire.producer.withdraw(tickets[0])  # urgent, as everything is that is no call
    assert bell.ring() == PARKED
    assert len(woken) == 3


@pytest.mark.parametrize("rings", [0, (1 << 30) - 2, (1 << 30) - 1])
def test_the_count_of_rings_may_go_round(rings: int) -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    woken: list[int] = []
    wire = Wire(bell=memory, wake=woken.append)
    struct.pack_into("=I", memory, layout.BELL_WORD, rings << 2)

    assert wire.bell.arm(rings << 2, PARKED, 3)
    for _ in range(2):
        wire.submit(0, 0)
    assert woken == []
    wire.submit(0, 0)
    assert woken == [PARKED]


def test_submit_wakes_an_executor_that_sleeps_and_only_then() -> None:
    woken: list[int] = []
    wire = Wire(wake=woken.append)

    wire.submit(1, 1)
    assert woken == []
    wire.bell.arm(wire.bell.look(), PARKED, 1)
    ticket = wire.submit(2, 2)
    assert woken == [PARKED]
    wire.producer.withdraw(ticket)  # its slot shall come back soon
    assert woken == [PARKED, PARKED]


def test_a_wake_that_raises_gives_the_call_up() -> None:
    def wake(sleeping: int) -> None:
        raise KeyboardInterrupt

    wire = Wire(wake=wake, capacity=2)
    served = Served(wire)
    wire.bell.arm(wire.bell.look(), PARKED, 1)

    with pytest.raises(KeyboardInterrupt):
        wire.producer.submit((1, 1), 0)

    assert served.take() == 0
    assert wire.producer.free_slots == 2


def test_finished_calls_are_listed_until_they_are_polled() -> None:
    wire = Wire(capacity=4)
    served = Served(wire)
    spawned = wire.submit(0, 0, flags=SPAWNED | ASYNC)
    other = wire.submit(1, 1)
    wire.submit(2, 2, flags=SPAWNED)
    assert wire.producer.finished(False) == []

    served.take(2)
    served.answer(0, 1)
    assert wire.producer.finished(False) == [spawned, other]
    assert wire.producer.finished(True) == [spawned]
    outcome(wire, spawned)

    assert wire.producer.finished(False) == [other]
    assert wire.producer.finished(True) == []


def test_a_result_that_another_thread_is_reading_is_pending() -> None:
    """While numpy makes the array, or a large copy runs, other threads may look."""
    wire = Wire(signature("int", result=array("float64", 2)), capacity=1)
    seen: list[Any] = []

    def allocate() -> Any:
        seen.append(wire.producer.poll(ticket, 0))
        with pytest.raises(ValueError, match="another thread is taking"):
            wire.producer.withdraw(ticket)
        with pytest.raises(ValueError, match="another thread is taking"):
            wire.producer.expire(ticket)
        seen.append(wire.producer.finished(False))
        with pytest.raises(ValueError, match="no error"):
            wire.producer.error(ticket)
        return np.empty(2)

    wire.producer = reader(wire, allocate)
    served = Served(wire)
    ticket = wire.submit(1)
    served.take()
    served.answer(np.array([1.0, 2.0]))

    np.testing.assert_array_equal(wire.producer.poll(ticket, 0), [1.0, 2.0])
    assert seen == [PENDING, []]
    assert wire.producer.free_slots == 1


@pytest.mark.parametrize("made", [None, b"x" * 16, np.empty(3), np.empty((2, 2))[:, 0]])
def test_an_allocated_array_that_does_not_fit_is_refused(made: Any) -> None:
    wire = Wire(signature("int", result=array("float64", 2)), capacity=1)
    wire.producer = reader(wire, lambda: made)
    served = Served(wire)
    ticket = wire.submit(1)
    served.take()
    served.answer(np.array([1.0, 2.0]))

    with pytest.raises((TypeError, ValueError, BufferError)):
        wire.producer.poll(ticket, 0)
    assert wire.producer.free_slots == 1


def reader(wire: Wire, allocate: Callable[[], Any]) -> ProducerRing:
    """Return a producer's end whose result arrays are made by *allocate*."""
    *shared, columns = wire.arguments()
    *before, _, itemsize = columns[-1]
    columns = (*columns[:-1], (*before, allocate, itemsize))
    return ProducerRing(*shared, columns, wire.bell_memory, lambda sleeping: None, None)


# ---- fork ----


def in_a_forked_child(check: Callable[[], bool]) -> bool:
    """Say what *check* says in a child that is nothing but a fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-timeout has a thread
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def belongs_to_the_parent(use: Callable[[], object]) -> bool:
    try:
        use()
    except RuntimeError as error:
        return str(error) == "the ring belongs to the parent process"
    return False


def test_a_forked_child_cannot_move_its_parents_ring() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    wire.producer.join_completions(THREAD)
    before = bytes(wire.memory)

    def check() -> bool:
        producer = wire.producer
        return (
            producer.forked
            and producer.submit((2, 2), 0) == SUBMIT_FORKED
            and belongs_to_the_parent(lambda: producer.arm(ticket, WAITER))
            and belongs_to_the_parent(lambda: producer.withdraw(ticket))
            and belongs_to_the_parent(lambda: producer.expire(ticket))
            and belongs_to_the_parent(lambda: producer.error(ticket))
            and producer.submit((2, 2), 0, 1) == SUBMIT_FORKED
            and belongs_to_the_parent(lambda: producer.poll(ticket, 0))
            and producer.join_completions(THREAD) == -1
            and producer.leave_completions(THREAD) is None
            and producer.wake_completions() is None
            and producer.free_slots == 3
            and bytes(wire.memory) == before
            and wire.bell.look() == 4  # one ring, the parent's
        )

    assert in_a_forked_child(check)
    assert not wire.producer.forked
    assert bytes(wire.memory) == before
    served.take()
    served.answer(2)
    assert outcome(wire, ticket) == 2


def test_a_forked_child_may_have_a_ring_of_its_own_and_fork_again() -> None:
    parents = Wire()

    def check() -> bool:
        wire = Wire()
        served = Served(wire)
        ticket = wire.submit(1, 1)
        served.take()
        served.answer(2)
        return (
            not wire.producer.forked
            and wire.producer.poll(ticket, 0) == 2
            and parents.producer.forked
            and in_a_forked_child(lambda: wire.producer.forked and parents.producer.forked)
        )

    assert in_a_forked_child(check)


# ---- Inbox and Batch ----


def test_a_batch_has_its_rows_in_the_order_of_publication() -> None:
    wire = Wire(capacity=8)
    served = Served(wire)
    for i in range(8):
        wire.submit(i, -i)

    assert served.take(3) == 3
    assert served.inputs() == [[0, 1, 2], [0, -1, -2]]
    served.answer(0, 0, 0)
    assert served.take(16) == 5
    assert served.inputs()[0] == [3, 4, 5, 6, 7]


def test_scattered_slots_are_gathered_and_scattered_row_by_row() -> None:
    """Slots that are no neighbours, of two producers, among them one that was skipped."""
    column = array("int32", 2)
    wires = [Wire(signature(column, result=column), capacity=8) for _ in range(2)]
    served = Served(*wires)
    tickets = [
        (wire, wire.submit(np.array([i, 10 * i], "int32")), i) for i in range(8) for wire in wires
    ]
    for wire, ticket, i in tickets:
        if i in (1, 4, 5):
            wire.producer.withdraw(ticket)
    stack = np.zeros((16, 2), "int32")

    assert served.take() == 10
    assert served.batch.gather([(stack, "the first ten and more")]) == ["the first "]
    assert served.batch.scatter(stack[:10] * 2)
    served.batch.complete()

    for wire, ticket, i in tickets:
        if i not in (1, 4, 5):
            np.testing.assert_array_equal(outcome(wire, ticket), [2 * i, 20 * i])


def test_producers_take_turns() -> None:
    """I5, where one of them has much more to do than the others."""
    greedy, modest, late = (Wire(capacity=16) for _ in range(3))
    served = Served(greedy, modest, late)
    for i in range(16):
        greedy.submit(i, 0)
    for i in range(3):
        modest.submit(i, 1)

    batches = []
    while served.take(4):
        batches.append(served.inputs()[1].count(1))
        served.answer(*[0] * served.batch.count)

    assert batches == [2, 1, 0, 0, 0]


def test_whoever_was_served_last_is_last_in_the_next_turn() -> None:
    wires = [Wire(capacity=8) for _ in range(3)]
    served = Served(*wires)
    for number, wire in enumerate(wires):
        for i in range(4):
            wire.submit(number, i)

    turns = []
    while served.take(1):
        turns.append(served.inputs()[0][0])
        served.answer(0)

    assert turns == [0, 1, 2] * 4


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_turns_go_on_when_a_producer_leaves(leaves: int) -> None:
    wires = [Wire(capacity=8) for _ in range(3)]
    served = Served(*wires)
    for number, wire in enumerate(wires):
        for i in range(4):
            wire.submit(number, i)
    turns = []

    for _ in range(2):  # 0 and 1 were served, 2 is next
        served.take(1)
        served.answer(0)
    served.inbox.detach(wires[leaves].executor)
    while served.take(1):
        turns.append(served.inputs()[0][0])
        served.answer(0)

    staying = [number for number in (2, 0, 1) if number != leaves]
    assert turns[:4] == staying * 2
    assert len(turns) == {0: 7, 1: 7, 2: 6}[leaves]


def test_a_producer_that_leaves_takes_its_waiting_calls_along() -> None:
    gone, stays = Wire(), Wire()
    served = Served(gone, stays)
    gone.submit(1, 1)
    stays.submit(2, 2)
    assert served.drain() == 2

    served.inbox.detach(gone.executor)
    served.inbox.detach(gone.executor)  # again: no effect

    assert served.inbox.count == 1
    assert served.take() == 1
    assert served.inputs()[0] == [2]


def test_rows_of_a_producer_that_left_live_until_completed() -> None:
    """The batch keeps the memory mapped, though nobody else holds it."""
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 2)
    served.take()
    memory = wire.memory
    served.inbox.detach(wire.executor)
    del wire
    gc.collect()

    with pytest.raises(BufferError):
        memory.close()
    assert served.inputs() == [[1], [2]]
    served.answer(3)

    memory.close()


def test_calls_cancelled_between_drain_and_take_are_made_up_for() -> None:
    wire = Wire(capacity=8)
    served = Served(wire)
    tickets = [wire.submit(i, 0) for i in range(6)]
    assert served.drain() == 6
    wire.producer.withdraw(tickets[0])
    wire.producer.withdraw(tickets[2])

    assert served.inbox.take(served.batch, 3, 1 << 62) == 3
    assert served.inputs()[0] == [1, 3, 4]


def test_the_oldest_publication_is_reported_and_never_later_than_now() -> None:
    wires = [Wire(), Wire()]
    served = Served(*wires)
    served.now_ns = 1_000
    assert served.drain() == 0
    assert served.inbox.oldest_ns == 2**64 - 1

    served.now_ns = 5_000
    for at_ns, wire in ((3_000, wires[0]), (2_000, wires[1]), (9_000, wires[1])):
        wire.stamp(wire.submit(1, 1), at_ns)
    assert served.drain() == 3
    assert served.inbox.oldest_ns == 2_000

    served.inbox.take(served.batch, 2, 1 << 62)
    served.answer(0, 0)
    served.now_ns = 6_000
    assert served.drain() == 1
    assert served.inbox.oldest_ns == 5_000  # its own stamp is later than the look that found it


def test_no_call_is_older_than_the_look_that_did_not_find_it() -> None:
    """Or a producer could forge its stamps and be the earliest due for ever."""
    wire = Wire()
    served = Served(wire)
    served.now_ns = 5_000
    assert served.drain() == 0

    wire.stamp(wire.submit(1, 1), 0)
    served.now_ns = 6_000
    assert served.drain() == 1
    assert served.inbox.oldest_ns == 5_000


def test_a_ring_is_attached_with_the_time_before_which_it_had_no_calls() -> None:
    wire = Wire()
    served = Served()
    served.inbox.attach(wire.executor, 4_000)
    wire.stamp(wire.submit(1, 1), 0)
    served.now_ns = 6_000
    assert served.drain() == 1
    assert served.inbox.oldest_ns == 4_000


def test_a_sealed_inbox_runs_what_waits_and_finds_no_more() -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    assert served.drain() == 1
    served.inbox.seal()
    wire.submit(2, 2)

    assert served.drain() == 1
    assert served.take() == 1
    served.answer(0)
    assert served.drain() == 0


def test_a_take_needs_an_empty_batch_with_room() -> None:
    wire = Wire()
    served = Served(wire, room=2)
    wire.submit(1, 1)
    served.drain()

    for batch, limit in [(served.batch, 3), (None, 1), (served.inbox, 1)]:
        with pytest.raises(ValueError, match="empty Batch with room"):
            served.inbox.take(batch, limit, 1 << 62)  # type: ignore[arg-type]
    assert served.inbox.take(served.batch, 0, 1 << 62) == 0
    assert served.inbox.take(served.batch, 2, 1 << 62) == 1
    with pytest.raises(ValueError, match="empty Batch with room"):
        served.inbox.take(served.batch, 1, 1 << 62)


def test_an_empty_batch_has_nothing_to_gather_or_to_complete() -> None:
    batch = Batch(4)

    for use in (lambda: batch.gather([None, None]), lambda: batch.scatter([])):
        with pytest.raises(ValueError, match="empty"):
            use()
    with pytest.raises(IndexError):
        batch.put(0, 1)
    assert batch.complete() is None
    with pytest.raises(MemoryError):
        Batch(0)


@pytest.mark.parametrize("row", [-1, 1, 2**70, "0"])
def test_a_row_that_does_not_exist_is_refused(row: Any) -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    served.take()

    with pytest.raises((IndexError, OverflowError, TypeError)):
        served.batch.put(row, 1)
    with pytest.raises((IndexError, OverflowError, TypeError)):
        served.batch.fail(row, b"")
    with pytest.raises(TypeError):
        served.batch.fail(0, "no bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "results", [(1, 2), [1], [1, 2, 3], [1, 2.0], [1, True], [1, 2**63], [1, None], None, "12"]
)
def test_results_that_are_not_exactly_what_was_declared_are_left_to_python(results: Any) -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    wire.submit(2, 2)
    served.take()

    assert not served.batch.scatter(results)


@pytest.mark.parametrize(
    "stack",
    [
        [np.zeros(3)],
        [np.zeros(3), np.zeros(4)],
        [np.zeros(3), [0.0] * 3],
        (np.zeros(3), np.zeros(3)),
        np.zeros((2, 3), "float32"),
        np.zeros((1, 3)),
        np.zeros((3, 3)),
        np.zeros((2, 4)),
        np.zeros(6),
        np.zeros((2, 3, 1)),
        np.zeros((3, 2)).T,
        np.zeros((2, 3), ">f8"),
        np.zeros((2, 3), "datetime64[s]"),
        np.zeros((2, 3)).view(np.matrix),
        np.float64(1),
        None,
    ],
)
def test_a_stack_that_is_not_exactly_what_was_declared_is_left_to_python(stack: Any) -> None:
    wire = Wire(signature("int", result=array("float64", 3)))
    served = Served(wire)
    wire.submit(1)
    wire.submit(2)
    served.take()

    assert not served.batch.scatter(stack)


def test_a_list_of_arrays_is_stacked() -> None:
    column = array("float64", 3)
    wire = Wire(signature("int", result=column))
    served = Served(wire)
    tickets = [wire.submit(i) for i in range(2)]
    served.take()

    assert served.batch.scatter([np.full(3, 1.0), np.full(3, 2.0)])
    served.batch.complete()

    assert [outcome(wire, ticket).tolist() for ticket in tickets] == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("buffers", [[], [None], [None] * 3, (None, None), None])
def test_gather_wants_one_buffer_a_column(buffers: Any) -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    served.take()

    with pytest.raises(ValueError, match="a pair, or None, a column"):
        served.batch.gather(buffers)


@pytest.mark.parametrize(
    "buffer", [np.zeros((1, 3)), np.zeros((3, 2)).T, b"x" * 48, 7, np.zeros(5)]
)
def test_gather_refuses_a_buffer_that_is_short_scattered_or_read_only(buffer: Any) -> None:
    wire = Wire(signature("int", array("float64", 3)))
    served = Served(wire)
    for i in range(2):
        wire.submit(i, np.zeros(3))
    served.take()

    for pair in ((buffer, []), buffer, (buffer,)):
        with pytest.raises((ValueError, TypeError, BufferError)):
            served.batch.gather([None, pair])


def test_a_twin_that_is_no_sequence_is_refused() -> None:
    wire = Wire(signature(array("float64", 3)))
    served = Served(wire)
    wire.submit(np.zeros(3))
    served.take()

    with pytest.raises(TypeError):
        served.batch.gather([(np.zeros((2, 3)), None)])


def test_a_batch_gets_a_slice_of_the_twin_even_if_it_is_all_of_it() -> None:
    wire = Wire(signature(array("float64", 1)))
    served = Served(wire)
    host, twin = np.zeros((2, 1)), np.zeros((2, 1))

    for calls in (2, 1):
        for _ in range(calls):
            wire.submit(np.full(1, float(calls)))
        served.take()
        (rows,) = served.batch.gather([(host, twin)])
        assert rows.base is twin
        assert rows.shape == (calls, 1)
        served.answer(*[0] * calls)
    assert host.tolist() == [[1], [2]]


def test_arguments_of_the_wrong_number_or_type_are_refused() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    calls: list[Callable[[], object]] = [
        lambda: wire.producer.poll(ticket),  # type: ignore[call-arg]
        lambda: wire.producer.poll(ticket, "0"),  # type: ignore[arg-type]
        lambda: wire.producer.arm(ticket, "0"),  # type: ignore[arg-type]
        lambda: wire.producer.join_completions("THREAD"),  # type: ignore[arg-type]
        lambda: wire.producer.leave_completions("THREAD"),  # type: ignore[arg-type]
        lambda: wire.producer.park_completions(0, "0"),  # type: ignore[arg-type]
        lambda: wire.executor.set_status("OPEN"),  # type: ignore[arg-type]
        lambda: wire.executor.wake(0, ["0"]),  # type: ignore[list-item]
        lambda: wire.producer.park_slot(ticket, "0"),  # type: ignore[arg-type]
        lambda: wire.bell.spin(Spinning(0, True), "0", 0, 0),  # type: ignore[arg-type]
        lambda: wire.bell.spin(None, 0, 0, 0),  # type: ignore[arg-type]
        lambda: setattr(wire.producer, "spinning", 5),
        lambda: delattr(wire.producer, "spinning"),
        lambda: Spinning("0", True),  # type: ignore[arg-type]
        lambda: wire.bell.arm(0, None, 1),  # type: ignore[arg-type]
        lambda: wire.bell.park(None, 0, 1),  # type: ignore[arg-type]
        lambda: served.inbox.attach(wire.producer, 0),  # type: ignore[arg-type]
        lambda: served.inbox.drain("0"),  # type: ignore[arg-type]
        lambda: served.inbox.take(served.batch),  # type: ignore[call-arg]
        lambda: Inbox(1),  # type: ignore[call-arg]
        lambda: Batch("1"),  # type: ignore[arg-type]
        lambda: Bell(1),  # type: ignore[arg-type]
        lambda: _core.set_timer_slack("1"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="no slot 4"):
        wire.executor.wake(0, [4])


# ---- layouts that do not fit ----


def shared_arguments(**changes: Any) -> tuple[Any, ...]:
    """The arguments of both ends for `ADD` in four slots, with some of them changed."""
    where = segment_layout(ADD, 4)
    names = ("memory", "capacity", "indices", "controls", "errors", "error_nbytes", "columns")
    arguments = dict(
        zip(names, ring_arguments(mmap.mmap(-1, where.nbytes), ADD, where), strict=True)
    )
    return tuple((arguments | changes).values())


WHERE = segment_layout(ADD, 4)
INT = (0, WHERE.columns[0], 8, int, "", (), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": b"read only" * 1000},
        {"memory": bytearray(100)},
        {"memory": memoryview(bytearray(1 << 16))[::2]},
        {"memory": memoryview(mmap.mmap(-1, 1 << 16))[8:]},  # not on a cache line
        {"memory": mmap.mmap(-1, 320)},  # no room for the header
        {"memory": None},
        {"capacity": 0},
        {"capacity": MAX_CAPACITY + 1},
        {"capacity": 2**32 - 1},
        {"capacity": 2**31},
        {"capacity": 5_000},  # more than there is memory for
        {"indices": -64},
        {"indices": layout.INDICES + 4},
        {"indices": 1 << 40},
        {"indices": sys.maxsize - 63},
        {"controls": -64},
        {"controls": WHERE.controls + 32},
        {"controls": WHERE.nbytes - 192},
        {"errors": -64},
        {"errors": WHERE.errors + 64},
        {"error_nbytes": -1},
        {"error_nbytes": 16_384},
        {"error_nbytes": sys.maxsize},
        {"columns": ()},
        {"columns": (INT,) * (MAX_COLUMNS + 2)},
        {"columns": [INT, INT]},
        {"columns": (INT, None)},
        {"columns": (INT, ())},
        {"columns": (INT, (4, *INT[1:]))},
        {"columns": (INT, (-1, *INT[1:]))},
        {"columns": (INT, (0, WHERE.columns[0] + 8, *INT[2:]))},
        {"columns": (INT, (0, -64, *INT[2:]))},
        {"columns": (INT, (0, WHERE.nbytes, *INT[2:]))},
        {"columns": (INT, (0, WHERE.nbytes + 64, *INT[2:]))},
        {"columns": (INT, (0, sys.maxsize - 63, *INT[2:]))},
        {"columns": (INT, (0, WHERE.columns[0], 4, *INT[3:]))},
        {"columns": (INT, (3, WHERE.columns[0], -8, *INT[3:]))},
        {"columns": (INT, (3, WHERE.columns[0], sys.maxsize, *INT[3:]))},
        {"columns": (INT, (3, WHERE.columns[0], 8, np.ndarray, "l" * 8, (1,), None))},
        {"columns": (INT, (3, WHERE.columns[0], 8, np.ndarray, "l", (1,) * 65, None))},
        {"columns": (INT, (3, WHERE.columns[0], 8, np.ndarray, "l", ("1",), None))},
        {"columns": (INT, (3, WHERE.columns[0], 8, np.ndarray, "l", [1], None))},
    ],
    ids=shown,
)
def test_a_layout_that_does_not_fit_is_refused_by_both_ends(changes: dict[str, Any]) -> None:
    arguments = shared_arguments(**changes)
    refusals = (ValueError, TypeError, BufferError, OverflowError, SystemError)

    with pytest.raises(refusals):
        ExecutorRing(*arguments, layout.LAYOUT_VERSION)
    with pytest.raises(refusals):
        ProducerRing(*arguments, mmap.mmap(-1, 4096), lambda bits: None, None)


@pytest.mark.parametrize("memory", [b"", bytearray(8), memoryview(mmap.mmap(-1, 4096))[8:], None])
def test_a_bell_that_does_not_fit_is_refused(memory: Any) -> None:
    with pytest.raises((ValueError, TypeError, BufferError)):
        Bell(memory)
    with pytest.raises((ValueError, TypeError, BufferError)):
        ProducerRing(*shared_arguments(), memory, lambda bits: None, None)


def test_a_zero_size_column_may_stand_at_the_very_end() -> None:
    ExecutorRing(
        *shared_arguments(columns=(INT, (3, WHERE.nbytes, 0, np.ndarray, "d", (0,), None))),
        layout.LAYOUT_VERSION,
    )


# ---- a hostile producer ----


class Siege:
    """A hostile and an honest producer of one function, each with calls in one inbox."""

    def __init__(self) -> None:
        self.hostile = Wire(capacity=4)
        self.honest = Wire(capacity=4)
        self.served = Served(self.hostile, self.honest)
        self.wicked = [self.hostile.submit(100 + i, 0) for i in range(2)]
        self.good = [self.honest.submit(i, 0) for i in range(2)]
        self.accused: list[ExecutorRing] = []

    def drain(self) -> None:
        self.served.drain()
        self.hear(self.served.inbox.pop_attention())

    def take(self) -> None:
        self.served.inbox.take(self.served.batch, 16, self.served.now_ns)
        self.hear(self.served.inbox.pop_attention())

    def complete(self) -> None:
        if self.served.batch.count:
            self.served.batch.scatter([x + 1 for x in self.served.inputs()[0]])
        self.hear(self.served.batch.complete())

    def hear(self, wakes: Any) -> None:
        for ring, flags, _, _ in wakes or ():
            if flags & WAKE_VIOLATION:
                self.accused.append(ring)

    def run(self) -> None:
        """Serve until everybody has what he will get, disconnecting whoever is accused."""
        self.complete()
        for _ in range(3):
            self.drain()
            self.take()
            self.complete()
            for ring in self.accused:
                self.served.inbox.detach(ring)

    def honest_is_well(self) -> bool:
        results = [self.honest.producer.poll(ticket, 0) for ticket in self.good]
        again = self.honest.submit(7, 0)
        self.run()
        return results == [1, 2] and outcome(self.honest, again) == 8


EVERY_WORD = [
    word(generation, state) | flags
    for generation in (0, 1, 2, 0xFFFFFF)
    for state in range(8)
    for flags in (0, WAITER | ASYNC, 0xE0)
]


@pytest.mark.parametrize("stage", ["published", "waiting", "taken"])
def test_a_state_word_overwritten_at_any_stage_harms_nobody_else(stage: str) -> None:
    for scribble in EVERY_WORD:
        siege = Siege()
        if stage != "published":
            siege.drain()
        if stage == "taken":
            siege.take()
        siege.hostile.write(siege.hostile.state_offset(0), scribble)

        siege.run()

        state, generation = scribble & 7, scribble >> 8
        if stage == "taken":
            legal = generation == 1 and state in (TAKEN, ABANDONED)
        else:
            legal = state in (READY, CANCELLED)
        assert set(siege.accused) == (set() if legal else {siege.hostile.executor}), hex(scribble)
        assert siege.honest_is_well(), hex(scribble)


@pytest.mark.parametrize("by", [5, 6, 1000, 2**31, 2**32 - 1, 2**32 - 2, 2**32 - 3])
def test_a_tail_too_far_is_a_violation(by: int) -> None:
    """More calls than there are slots; or fewer than were there, which looks the same."""
    siege = Siege()
    siege.drain()
    siege.hostile.write(layout.TAIL, (2 + by) % 2**32)

    siege.run()

    assert set(siege.accused) == {siege.hostile.executor}
    assert siege.honest_is_well()


@pytest.mark.parametrize("index", [4, 5, 2**17, 2**31, 2**32 - 1])
def test_an_index_out_of_range_is_a_violation(index: int) -> None:
    siege = Siege()
    siege.hostile.write(layout.INDICES + 4, index)

    siege.run()

    assert set(siege.accused) == {siege.hostile.executor}
    assert siege.honest_is_well()


@pytest.mark.parametrize("stage", ["published", "waiting", "taken"])
def test_an_index_that_comes_twice_is_a_violation(stage: str) -> None:
    siege = Siege()
    if stage != "published":
        siege.drain()
    if stage == "taken":
        siege.take()
    siege.hostile.submit(200, 0)
    siege.hostile.write(layout.INDICES + 8, 1)

    siege.run()

    assert set(siege.accused) == {siege.hostile.executor}
    assert siege.honest_is_well()


def test_a_running_slot_that_is_published_again_is_a_violation_at_once() -> None:
    """Its state word says READY again, but the executor knows better than to run it twice."""
    siege = Siege()
    siege.drain()
    siege.take()
    siege.hostile.submit(200, 0)
    siege.hostile.write(layout.INDICES + 8, 1)
    siege.hostile.write(siege.hostile.state_offset(1), word(1, READY))

    siege.drain()

    assert siege.accused == [siege.hostile.executor]
    siege.run()
    assert siege.honest_is_well()


def test_an_index_whose_slot_is_not_ready_is_a_violation() -> None:
    siege = Siege()
    siege.hostile.submit(200, 0)
    siege.hostile.write(layout.INDICES + 8, 3)  # FREE

    siege.run()

    assert set(siege.accused) == {siege.hostile.executor}
    assert siege.honest_is_well()


def test_a_violation_is_reported_until_its_ring_is_detached() -> None:
    siege = Siege()
    siege.hostile.write(layout.TAIL, 1000)

    for _ in range(3):
        siege.drain()
    assert siege.accused == [siege.hostile.executor] * 3
    siege.served.inbox.detach(siege.hostile.executor)
    siege.drain()

    assert len(siege.accused) == 3


@pytest.mark.parametrize("count", [1, 5, 2**31, 2**32 - 1])
def test_a_lie_about_withdrawals_changes_nothing(count: int) -> None:
    siege = Siege()
    siege.hostile.write(layout.WITHDRAWN, count)

    siege.run()

    assert siege.accused == []
    assert [siege.hostile.producer.poll(ticket, 0) for ticket in siege.wicked] == [101, 102]
    assert siege.honest_is_well()


def test_a_lie_about_sleepers_costs_at_most_255_wakes() -> None:
    siege = Siege()
    siege.hostile.write(layout.COMPLETIONS, 0xFFFF_FFFF)
    siege.drain()
    siege.take()
    siege.served.batch.scatter([0] * siege.served.batch.count)

    assert siege.served.batch.complete() == [(siege.hostile.executor, WAKE_ASYNC, 255, [])]


@pytest.mark.parametrize("stamp_ns", [0, 2**63, 2**64 - 1])
def test_a_lie_about_the_time_of_publication_is_bounded_by_now(stamp_ns: int) -> None:
    siege = Siege()
    siege.hostile.stamp(siege.wicked[0], stamp_ns)

    siege.served.drain()

    assert siege.served.inbox.oldest_ns <= siege.served.now_ns
    siege.run()
    assert siege.honest_is_well()


def test_the_header_is_never_read_back() -> None:
    """Everything but the words that the other end stores: magic, version, capacity, reserved."""
    siege = Siege()
    for offset in (*range(0, 64, 4), *range(320, 384, 4)):
        siege.hostile.write(offset, 0xFFFF_FFFF)

    siege.run()

    assert siege.accused == []
    assert siege.honest_is_well()


def test_a_length_of_an_error_record_that_was_overwritten_is_bounded() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.batch.fail(0, b"why")
    served.batch.complete()
    wire.write(wire.where.controls + layout.CONTROL_ERROR_NBYTES, 0xFFFF_FFFF)

    record = wire.producer.error(ticket)

    assert record == b"why".ljust(wire.where.error_nbytes, b"\0")


def test_bytes_of_a_bool_that_were_overwritten_are_still_a_bool() -> None:
    wire = Wire(signature("bool", result="bool"))
    served = Served(wire)
    wire.submit(True)
    wire.write(wire.where.columns[0] + 4, 7)

    served.take()

    assert served.inputs(1) == [[True]]


# ---- nothing leaks ----


def round_of_everything(keep: list[Any]) -> None:
    """Use every operation once, refusals among them, on connections that then go away."""
    first, second = Wire(keep[0], capacity=4), Wire(keep[0], capacity=4)
    served = Served(first, second)
    value, raw, stack = keep[1:]
    tickets = [
        wire.submit(i, value, raw, flags=ASYNC) for i in range(4) for wire in (first, second)
    ]
    assert first.producer.submit((5, value, raw), 0) == SUBMIT_FULL
    assert first.producer.submit((5, value.T, raw), 0) == SUBMIT_MISFIT
    assert first.producer.submit((5, value, None), 0) == SUBMIT_MISFIT
    first.producer.withdraw(tickets[0])
    first.producer.arm(tickets[2], WAITER)
    first.producer.join_completions(THREAD)
    served.take(4)
    half = np.empty((16, 3), "uint16")
    served.batch.gather([None, (stack, stack), (half, half)])
    with pytest.raises(ValueError, match="bytes"):
        served.batch.gather([None, (stack[:1], stack), (half, half)])
    with pytest.raises(ValueError, match="contiguous"):
        served.batch.gather([None, (stack.T, stack), (half, half)])
    with pytest.raises(TypeError):
        served.batch.gather([None, (stack, None), (half, half)])
    with pytest.raises(TypeError, match="pair"):
        served.batch.gather([None, (stack, stack), half])
    assert served.batch.scatter(np.zeros((4, 2, 3)))
    assert not served.batch.scatter(np.zeros((4, 3, 2)))
    assert served.batch.put(0, value)
    assert not served.batch.put(0, None)
    served.batch.fail(1, b"why" * 100)
    served.batch.complete()
    served.inbox.pop_attention()
    for wire in (first, second):
        for ticket in wire.producer.finished(False):
            if wire.producer.poll(ticket, 0) is FAILED:
                wire.producer.error(ticket)
    with pytest.raises(ValueError, match="over"):
        first.producer.poll(tickets[0], 0)
    second.write(layout.TAIL, 1000)
    served.drain()
    served.inbox.pop_attention()
    served.inbox.detach(second.executor)
    served.take(4)  # a batch that is dropped uncompleted
    with pytest.raises(ValueError, match="fit"):
        Wire(keep[0], capacity=4, bell=mmap.mmap(-1, 32))
    with pytest.raises((ValueError, SystemError, TypeError)):
        ExecutorRing(*shared_arguments(columns=(INT, INT, ())), 1)


def test_nothing_is_left_of_connections_that_are_gone() -> None:
    column = array("float64", 2, 3)
    raw_column = Column("x", "array", "torch", "bfloat16", (3,))
    keep: list[Any] = [
        signature("int", column, raw_column, result=column),
        np.zeros((2, 3)),
        memoryview(bytearray(6)).cast("c"),
        np.zeros((16, 2, 3)),
    ]
    singletons = [None, True, int, np.ndarray, memoryview, PENDING, FAILED, *keep]
    singletons += [ExecutorRing, ProducerRing, Batch, Bell, Inbox]
    for _ in range(20):
        round_of_everything(keep)
    gc.collect()
    references = [sys.getrefcount(each) for each in singletons]
    blocks, objects = sys.getallocatedblocks(), len(gc.get_objects())

    rounds = 200
    for _ in range(rounds):
        round_of_everything(keep)
    gc.collect()

    grown = [
        (each, sys.getrefcount(each) - before)
        for each, before in zip(singletons, references, strict=True)
        if sys.getrefcount(each) - before >= rounds // 2
    ]
    assert grown == []
    assert sys.getallocatedblocks() - blocks < rounds // 2
    assert len(gc.get_objects()) - objects < rounds // 2


def test_a_connection_is_flat_over_ten_thousand_calls() -> None:
    wire = Wire(capacity=4)
    served = Served(wire)

    def calls(count: int) -> None:
        for i in range(count):
            ticket = wire.submit(1 << 40 | i, 2)
            served.take()
            served.batch.scatter([x + y for x, y in zip(*served.inputs(), strict=True)])
            if i % 3 == 0:
                served.batch.fail(0, b"why")
            served.batch.complete()
            if wire.producer.poll(ticket, 0) is FAILED:
                wire.producer.error(ticket)

    calls(100)
    gc.collect()
    blocks = sys.getallocatedblocks()
    calls(10_000)
    gc.collect()

    assert sys.getallocatedblocks() - blocks < 100
