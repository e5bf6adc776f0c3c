"""Who is in a batch and what becomes of him: rejected rows, deadlines, lockstep, phases."""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmbatch.protocol import layout
from shmbatch.protocol._core import (
    ABANDONED,
    ASYNC,
    CANCELLED,
    DELIVERING,
    DONE,
    FAILED,
    LOOP,
    PARKED,
    PENDING,
    RUNNING,
    STAGING,
    SUBMIT_FULL,
    TAKEN,
    THREAD,
    TICKET_SLOT_MASK,
    WAITER,
    WAITING,
    WAKE_ASYNC,
    Batch,
    Phases,
)
from tests.rings import Served, Wire, array, outcome, signature, slot_of, text

NOW_NS = 1 << 40
NEVER_NS = 2**64 - 1


def answered(wire: Wire, ticket: int) -> Any:
    """Return the value of a call that is done, or its error record."""
    value = wire.producer.poll(ticket, 0)
    assert value is not PENDING
    return wire.producer.error(ticket) if value is FAILED else value


# ---- rejected rows ----


@given(
    rows=st.lists(st.integers(0, 1), min_size=1, max_size=9),
    picks=st.lists(st.integers(0, 8), max_size=9),
)
def test_rejected_rows_leave_the_others_in_order(rows: list[int], picks: list[int]) -> None:
    """Of two producers, in any order; each gets its own record, each other its own result."""
    wires = [Wire(capacity=16) for _ in range(2)]
    served = Served(*wires)
    calls = {i: (wires[which], wires[which].submit(i, -i)) for i, which in enumerate(rows)}
    served.take()
    alive = list(served.inputs()[0])
    rejected = []

    for pick in picks[: len(alive)]:
        row = pick % len(alive)
        served.batch.reject(row, b"not %d" % alive[row])
        rejected.append(alive.pop(row))
        assert served.batch.count == len(alive)
        assert served.batch.rejected == len(rejected)
        if alive:
            assert served.inputs() == [alive, [-i for i in alive]]
    if alive:
        assert not served.batch.scatter([0] * len(rows)) or not rejected
        assert served.batch.scatter([10 * i for i in alive])
        assert served.batch.put(0, 7)
        served.batch.fail(len(alive) - 1, b"failed")
    assert served.inbox.running == len(rows)
    served.batch.complete()

    expected = {i: 10 * i for i in alive} | {i: b"not %d" % i for i in rejected}
    if alive:
        expected[alive[0]] = 7
        expected[alive[-1]] = b"failed"
    assert {i: answered(*call) for i, call in calls.items()} == expected
    assert (served.batch.count, served.batch.rejected, served.inbox.running) == (0, 0, 0)


def test_a_batch_of_rejected_rows_only_is_completed_and_taken_into_again() -> None:
    wire = Wire()
    served = Served(wire)
    tickets = [wire.submit(i, 0) for i in range(2)]
    served.take()
    for _ in tickets:
        served.batch.reject(0, b"no")

    for use in (
        lambda: served.inputs(),
        lambda: served.batch.scatter([]),
        lambda: served.inbox.take(served.batch, 1, NOW_NS),
    ):
        with pytest.raises(ValueError, match="empty"):
            use()
    with pytest.raises(IndexError):
        served.batch.reject(0, b"again")
    assert served.batch.complete() is None
    assert [answered(wire, ticket) for ticket in tickets] == [b"no"] * 2

    ticket = wire.submit(1, 1)
    served.take()
    served.answer(2)
    assert outcome(wire, ticket) == 2


# ---- parts ----


@given(
    rows=st.lists(st.integers(0, 1), min_size=2, max_size=9),
    rejects=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 8), max_size=6),
)
def test_parts_have_the_rows_in_order_and_complete_each_by_itself(
    rows: list[int], rejects: int, cuts: list[int]
) -> None:
    wires = [Wire(capacity=16) for _ in range(2)]
    served = Served(*wires)
    calls = {i: (wires[which], wires[which].submit(i, -i)) for i, which in enumerate(rows)}
    served.take()
    alive = list(served.inputs()[0])
    rejected = [alive.pop(0) for _ in range(min(rejects, len(alive) - 1))]
    for i in rejected:
        served.batch.reject(0, b"not %d" % i)
    parts = [served.batch]
    for cut in cuts:
        which = cut % len(parts)
        if parts[which].count > 1:
            parts.insert(which + 1, parts[which].split(1 + cut % (parts[which].count - 1)))
    found = [part.gather([None, None]) for part in parts]
    assert [i for xs, _ in found for i in xs] == alive
    assert all(ys == [-i for i in xs] for xs, ys in found)
    assert served.batch.rejected == len(rejected)
    for part, (xs, _) in reversed([*zip(parts, found, strict=True)]):
        assert part.scatter([10 * i for i in xs])
        part.complete()
        assert part.count == part.rejected == 0
    expected = {i: 10 * i for i in alive} | {i: b"not %d" % i for i in rejected}
    assert {i: answered(*call) for i, call in calls.items()} == expected
    assert served.inbox.running == 0


def test_a_batch_is_split_between_two_of_its_rows() -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    wire.submit(2, 2)
    served.take()
    for at in (-1, 0, 2, 3):
        with pytest.raises(IndexError, match="between two of its rows"):
            served.batch.split(at)
    rest = served.batch.split(1)
    assert (served.batch.count, rest.count, rest.capacity) == (1, 1, 1)
    assert served.batch.capacity > 1
    served.batch.complete()
    rest.complete()


def test_calls_that_nobody_waits_for_leave_a_batch() -> None:
    wire, gone = Wire(), Wire()
    served = Served(wire, gone)
    kept, given_up = wire.submit(1, 1), wire.submit(2, 2)
    gone.submit(3, 3)
    served.take()
    assert served.batch.drop_abandoned() == 3
    assert wire.producer.withdraw(given_up) == ABANDONED
    served.inbox.detach(gone.executor)
    assert served.batch.drop_abandoned() == 1
    assert (served.batch.count, served.batch.rejected) == (1, 2)
    assert served.inputs() == [[1], [1]]
    served.answer(7)
    assert outcome(wire, kept) == 7
    assert wire.producer.free_slots == wire.where.capacity  # the slot of the other came back


def test_whoever_waits_for_a_rejected_call_is_woken_with_the_others() -> None:
    sleeping, listening, done = Wire(), Wire(), Wire()
    served = Served(sleeping, listening, done)
    tickets = [sleeping.submit(0, 0) for _ in range(3)]
    for ticket in tickets[:2]:
        sleeping.producer.arm(ticket, WAITER)
    sleeping.producer.join_completions(THREAD)
    listening.submit(0, 0, flags=ASYNC)
    done.submit(0, 0)
    served.take()
    served.batch.reject(3, b"why")
    served.batch.reject(0, b"why")

    heard: dict[Any, tuple[int, int, list[int]]] = {}
    for ring, flags, threads, slots in served.answer(0, 0, 0):
        before = heard.get(ring, (0, 0, []))
        heard[ring] = (before[0] | flags, max(before[1], threads), sorted(before[2] + slots))

    assert heard == {
        sleeping.executor: (0, 1, sorted(map(slot_of, tickets[:2]))),
        listening.executor: (WAKE_ASYNC, 0, []),
    }


def test_a_rejected_call_may_have_been_given_up() -> None:
    wire = Wire(capacity=2)
    served = Served(wire)
    tickets = [wire.submit(i, 0) for i in range(2)]
    served.take()
    assert wire.producer.withdraw(tickets[0]) == ABANDONED
    served.batch.reject(0, b"why")
    served.answer(5)

    assert wire.producer.free_slots == 1
    assert outcome(wire, tickets[1]) == 5


def test_stacks_are_gathered_and_scattered_past_rejected_rows() -> None:
    column = array("int32", 2)
    wire = Wire(signature(column, result=column), capacity=8)
    served = Served(wire)
    tickets = [wire.submit(np.full(2, i, "int32")) for i in range(6)]
    stack = np.zeros((16, 2), "int32")
    served.take()
    for row in (4, 1):
        served.batch.reject(row, b"why")

    (rows,) = served.batch.gather([(stack, stack)])
    assert rows[:, 0].tolist() == [0, 2, 3, 5]
    assert not served.batch.scatter(np.zeros((6, 2), "int32"))
    assert served.batch.scatter(rows * 2)
    served.batch.complete()

    results = [answered(wire, ticket) for ticket in tickets]
    assert [results.pop(row) for row in (4, 1)] == [b"why"] * 2
    assert [result.tolist() for result in results] == [[0, 0], [4, 4], [6, 6], [10, 10]]


def test_where_rows_stand_is_told_in_runs_of_neighbouring_slots() -> None:
    column = array("int32", 2)
    wire = Wire(signature(column, result=column), capacity=8)
    served = Served(wire)
    tickets = [wire.submit(np.full(2, i, "int32")) for i in range(6)]
    assert served.batch.runs() == []
    served.take()
    slots = [ticket & TICKET_SLOT_MASK for ticket in tickets]
    assert [slot - slots[0] for slot in slots] == list(range(6))

    assert served.batch.runs() == [(wire.executor, slots[0], 6)]
    for row in (4, 1):
        served.batch.reject(row, b"why")
    assert served.batch.runs() == [
        (wire.executor, slots[0], 1),
        (wire.executor, slots[2], 2),
        (wire.executor, slots[5], 1),
    ]


def test_a_column_without_room_is_left_where_it_is() -> None:
    column = array("int32", 2)
    wire = Wire(signature(column, column, result=column), capacity=8)
    served = Served(wire)
    for i in range(3):
        wire.submit(np.full(2, i, "int32"), np.full(2, 10 * i, "int32"))
    served.take()
    left, gathered = np.full((4, 2), -1, "int32"), np.full((4, 2), -1, "int32")

    rows, others = served.batch.gather([(None, left), (gathered, gathered)])

    assert rows.tolist() == [[-1, -1]] * 3
    assert others[:, 0].tolist() == [0, 10, 20]


def test_one_run_of_a_ring_that_lends_its_slots_is_a_slice_of_them() -> None:
    column = array("int32", 2)
    wires = [Wire(signature(column, "int", result=column), capacity=8) for _ in range(2)]
    served = Served(*wires)
    lent, room = np.zeros((8, 2), "int32"), np.zeros((16, 2), "int32")
    wires[0].executor.lend((lent, None))
    lent[:, 0] = range(8)  # not what stands in the slots, and so told apart

    def rows(*producers: int) -> list[int]:
        for number in producers:
            wires[number].submit(np.full(2, 100 * (number + 1), "int32"), number)
        served.take()
        stack, numbers = served.batch.gather([(room, room), None])
        assert sorted(numbers) == sorted(producers)
        assert served.batch.scatter(np.zeros((len(producers), 2), "int32"))
        served.batch.complete()
        return stack[:, 0].tolist()  # type: ignore[no-any-return]

    assert rows(0, 0, 0) == [0, 1, 2]
    assert rows(0) == [3]
    assert rows(1, 1) == [200, 200]
    assert sorted(rows(1, 0)) == [100, 200]
    assert rows(0, 0) == [5, 6]


@pytest.mark.parametrize(
    "stacks", [None, (), (None,), (None, None, None), (np.zeros(7), None), (None, np.zeros(8))]
)
def test_only_arrays_are_lent_and_of_all_slots(stacks: Any) -> None:
    wire = Wire(signature(array("int32", 2), "int"), capacity=8)
    with pytest.raises(ValueError, match=r"^(expected a tuple|only arrays are lent)"):
        wire.executor.lend(stacks)
    with pytest.raises(TypeError):
        wire.executor.lend((0, None))


@pytest.mark.parametrize(
    ("row", "record"), [(-1, b""), (1, b""), (2**70, b""), ("0", b""), (0, "no bytes"), (0, None)]
)
def test_a_row_that_does_not_exist_cannot_be_rejected(row: Any, record: Any) -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()

    with pytest.raises((IndexError, OverflowError, TypeError)):
        served.batch.reject(row, record)
    with pytest.raises(TypeError):
        served.batch.reject(0)  # type: ignore[call-arg]

    assert (served.batch.count, served.batch.rejected) == (1, 0)
    served.answer(2)
    assert outcome(wire, ticket) == 2


def test_the_record_of_a_rejected_row_is_cut_to_its_room() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1)
    served.take()
    served.batch.reject(0, b"x" * 5000)
    served.batch.complete()

    assert wire.producer.error(ticket) == b"x" * wire.where.error_nbytes


def test_rejected_rows_of_a_batch_that_is_dropped_are_let_go() -> None:
    wire = Wire()
    served = Served(wire)
    for _ in range(3):
        wire.submit(1, 1)
    served.take()
    served.batch.reject(1, b"why")
    served.inbox.detach(wire.executor)
    memory = wire.memory
    del wire

    with pytest.raises(BufferError):
        memory.close()
    served.batch = Batch(1)
    memory.close()


# ---- deadlines ----


def deadlined(*deadlines_ns: int, capacity: int = 8) -> tuple[Wire, Served, list[int]]:
    """Return a wire with calls numbered from 0, and the executor that drained them."""
    wire = Wire(capacity=capacity)
    served = Served(wire)
    served.now_ns = NOW_NS
    tickets = [wire.submit(i, 0, deadline_ns=at_ns) for i, at_ns in enumerate(deadlines_ns)]
    return wire, served, tickets


@pytest.mark.parametrize("deadline_ns", [1, NOW_NS - 1])
def test_a_call_that_is_late_never_runs_and_is_no_error(deadline_ns: int) -> None:
    wire, served, (ticket,) = deadlined(deadline_ns, capacity=1)

    assert served.drain() == 1
    assert served.take() == 0
    assert served.inbox.expired == 1
    assert served.inbox.running == 0
    assert served.batch.complete() is None
    assert wire.producer.state(ticket) == DONE
    assert wire.producer.submit((1, 1), 0) == SUBMIT_FULL

    assert wire.producer.poll(ticket, 0) is FAILED
    assert wire.producer.poll(ticket, 60 * 10**9) is FAILED
    assert wire.producer.free_slots == 0
    assert wire.producer.error(ticket) is None
    assert wire.producer.free_slots == 1
    with pytest.raises(ValueError, match="over"):
        wire.producer.error(ticket)


@pytest.mark.parametrize("deadline_ns", [0, NOW_NS, NOW_NS + 1, 2**63, NEVER_NS])
def test_a_call_that_is_just_in_time_runs(deadline_ns: int) -> None:
    wire, served, (ticket,) = deadlined(deadline_ns)

    assert served.take() == 1
    assert served.inbox.expired == 0
    served.now_ns += 1 << 50  # it may take as long as it likes now
    served.drain()
    served.answer(3)

    assert outcome(wire, ticket) == 3


def test_late_calls_are_made_up_for_by_those_behind_them() -> None:
    wire, served, tickets = deadlined(1, 0, 1, 1, NOW_NS, NEVER_NS, 1, 0)

    assert served.take(3) == 3
    assert served.inputs()[0] == [1, 4, 5]
    assert served.inbox.expired == 3
    served.answer(*range(3))
    assert served.take(3) == 1
    assert served.inputs()[0] == [7]
    served.answer(9)

    assert served.inbox.expired == 4
    results = [answered(wire, ticket) for ticket in tickets]
    assert results == [None, 0, None, None, 1, 2, None, 9]
    assert wire.producer.free_slots == 8


def test_a_slot_of_a_late_call_carries_the_next_one() -> None:
    wire, served, (late,) = deadlined(1, capacity=1)

    for number in range(10):
        served.take()
        assert wire.producer.error(late) is None
        ticket = wire.submit(number, 0)
        served.take()
        assert served.inputs()[0] == [number]
        served.answer(number)
        assert outcome(wire, ticket) == number
        late = wire.submit(0, 0, deadline_ns=1)
    assert served.inbox.expired == 10


def test_only_late_calls_are_late_whichever_producer_they_are_of() -> None:
    wires = [Wire(capacity=4) for _ in range(3)]
    served = Served(*wires)
    served.now_ns = NOW_NS
    tickets = [
        (wire, wire.submit(i, which, deadline_ns=(which + i) % 2))
        for i in range(4)
        for which, wire in enumerate(wires)
    ]

    assert served.take() == 6
    assert served.inbox.expired == 6
    served.answer(*[sum(row) for row in zip(*served.inputs(), strict=True)])

    results = [answered(wire, ticket) for wire, ticket in tickets]
    assert results == [
        None if (which + i) % 2 else which + i for i in range(4) for which in range(3)
    ]


def test_threads_and_event_loops_are_told_of_late_calls_and_slot_sleepers_are_not() -> None:
    """Whoever sleeps on the slot sleeps until the deadline at most."""
    sleeping, gathering, listening, awaiting, unheard = wires = [Wire() for _ in range(5)]
    served = Served(*wires)
    served.now_ns = NOW_NS
    ticket = sleeping.submit(0, 0, deadline_ns=1)
    sleeping.producer.arm(ticket, WAITER)
    gathering.submit(0, 0, deadline_ns=1)
    gathering.producer.join_completions(THREAD)
    listening.submit(0, 0, deadline_ns=1)
    listening.producer.join_completions(LOOP)
    awaiting.submit(0, 0, flags=ASYNC, deadline_ns=1)
    unheard.submit(0, 0, flags=ASYNC)
    joined = gathering.read(layout.COMPLETIONS)

    assert served.take() == 1
    assert served.inbox.attention
    assert served.inbox.pop_attention() == [
        (gathering.executor, 0, 1, []),
        (listening.executor, WAKE_ASYNC, 0, []),
        (awaiting.executor, WAKE_ASYNC, 0, []),
    ]
    assert gathering.read(layout.COMPLETIONS) != joined  # or he who is about to park sleeps on
    assert not served.inbox.attention
    assert served.inbox.pop_attention() is None
    assert served.answer(0) == [(unheard.executor, WAKE_ASYNC, 0, [])]


def test_a_thread_asleep_on_completions_hears_that_its_call_is_late() -> None:
    wire, served, (ticket,) = deadlined(1)
    joined = wire.producer.join_completions(THREAD)
    thread = threading.Thread(
        target=wire.producer.park_completions, args=(joined, 60 * 10**9), daemon=True
    )
    thread.start()

    served.take()
    for ring, _, threads, _ in served.inbox.pop_attention() or []:
        assert threads == 1
        ring.wake(threads, [])
    thread.join()

    assert wire.producer.error(ticket) is None


@pytest.mark.parametrize("drained", [True, False])
def test_a_call_given_up_after_its_deadline_counts_as_late_before_it_as_cancelled(
    drained: bool,
) -> None:
    wire, served, tickets = deadlined(1, 1, 0, 0)
    if drained:
        served.drain()
    assert wire.producer.withdraw(tickets[0]) == CANCELLED
    assert wire.producer.expire(tickets[1]) == CANCELLED
    assert wire.producer.withdraw(tickets[2]) == CANCELLED

    assert served.take() == 1
    assert served.inputs()[0] == [3]
    assert (served.inbox.expired, served.inbox.cancelled) == (2, 1)


def test_a_late_result_can_be_dropped_as_any_other() -> None:
    wire, served, (ticket,) = deadlined(1, capacity=1)
    served.take()

    assert wire.producer.withdraw(ticket) == DONE
    assert wire.producer.free_slots == 1


def test_a_sealed_inbox_still_tells_late_calls_apart() -> None:
    wire, served, tickets = deadlined(1, 0)
    served.drain()
    served.inbox.seal()

    assert served.take() == 1
    assert served.inbox.expired == 1
    served.answer(4)
    assert [answered(wire, ticket) for ticket in tickets] == [None, 4]


@pytest.mark.parametrize("deadline_ns", [0, 1, NEVER_NS])
def test_a_deadline_that_was_overwritten_harms_nobody_else(deadline_ns: int) -> None:
    hostile, honest = Wire(), Wire()
    served = Served(hostile, honest)
    served.now_ns = NOW_NS
    mine, late, theirs = (
        honest.submit(1, 1),
        honest.submit(1, 1, deadline_ns=1),
        hostile.submit(2, 2),
    )
    control = hostile.where.controls + slot_of(theirs) * layout.CONTROL_NBYTES
    struct.pack_into("=Q", hostile.memory, control + layout.CONTROL_DEADLINE_NS, deadline_ns)

    count = served.take()
    served.answer(*[5] * count)

    assert answered(honest, mine) == 5
    assert answered(honest, late) is None
    assert answered(hostile, theirs) == (None if deadline_ns == 1 else 5)


def test_an_outcome_that_nobody_knows_is_no_value() -> None:
    """Only the executor stores it, and it is our own; still it must not crash a producer."""
    wire, served, (ticket,) = deadlined(0)
    served.take()
    served.answer(3)
    control = wire.where.controls + slot_of(ticket) * layout.CONTROL_NBYTES
    wire.write(control + layout.CONTROL_OUTCOME, 3)

    assert wire.producer.poll(ticket, 0) is FAILED
    assert isinstance(wire.producer.error(ticket), bytes)


# ---- expire ----


def test_a_call_that_is_expired_in_time_never_runs_and_one_launched_goes_on() -> None:
    woken: list[int] = []
    wire = Wire(capacity=3, wake=woken.append)
    served = Served(wire)
    running, waiting, done = [wire.submit(i, 0) for i in range(3)]
    served.take(1)
    assert wire.producer.expire(running) == TAKEN
    assert wire.producer.expire(running) == TAKEN
    assert wire.producer.state(running) == TAKEN
    wire.bell.arm(wire.bell.look(), PARKED, 1 << 20)

    assert wire.producer.expire(waiting) == CANCELLED
    assert woken == [PARKED]  # its slot is to come back soon
    with pytest.raises(ValueError, match="over"):
        wire.producer.expire(waiting)
    served.answer(10)
    assert wire.producer.expire(running) == DONE
    assert len(woken) == 1
    assert served.take() == 1
    assert served.inputs()[0] == [2]
    served.answer(12)

    assert wire.producer.expire(done) == DONE
    assert outcome(wire, running) == 10
    assert outcome(wire, done) == 12
    assert wire.producer.free_slots == 3


def test_expiring_a_launched_call_leaves_who_waits_for_it() -> None:
    wire = Wire()
    served = Served(wire)
    ticket = wire.submit(1, 1, flags=ASYNC)
    wire.producer.arm(ticket, WAITER)
    served.take()

    assert wire.producer.expire(ticket) == TAKEN

    assert served.answer(2) == [(wire.executor, WAKE_ASYNC, 0, [slot_of(ticket)])]


def test_a_wake_that_raises_while_a_call_expires_has_given_it_up() -> None:
    def wake(sleeping: int) -> None:
        raise KeyboardInterrupt

    wire = Wire(capacity=1, wake=wake)
    served = Served(wire)
    ticket = wire.submit(1, 1)
    wire.bell.arm(wire.bell.look(), PARKED, 1)

    with pytest.raises(KeyboardInterrupt):
        wire.producer.expire(ticket)

    assert served.take() == 0
    assert wire.producer.free_slots == 1


# ---- lockstep ----


@dataclass(eq=False)
class Peer:
    """What the model knows of one producer: numbers of calls, and the most of them lately."""

    wire: Wire
    published: list[int] = field(default_factory=list)  # tickets, oldest first
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)
    peak: int = 0

    def outstanding(self) -> int:
        return len(self.waiting) + len(self.running)


class Lockstep(RuleBasedStateMachine):
    """Producers come, call, give up and go; how many calls are still to come?"""

    @initialize()
    def start(self) -> None:
        self.served = Served(room=64)
        self.peers: list[Peer] = []
        self.rows: list[tuple[Peer, int]] = []
        self.gone: list[Peer] = []

    @precondition(lambda self: len(self.peers) < 4)
    @rule(capacity=st.integers(1, 5))
    def attach(self, capacity: int) -> None:
        peer = Peer(Wire(capacity=capacity))
        self.served.inbox.attach(peer.wire.executor, 0)
        self.peers.append(peer)

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 3))
    def detach(self, which: int) -> None:
        peer = self.peers.pop(which % len(self.peers))
        self.served.inbox.detach(peer.wire.executor)
        self.gone.append(peer)

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 3), late=st.booleans(), calls=st.integers(1, 3))
    def submit(self, which: int, late: bool, calls: int) -> None:
        peer = self.peers[which % len(self.peers)]
        for _ in range(calls):
            ticket = peer.wire.producer.submit((0, 0), 0, int(late))
            assert ticket >= 0 or ticket == SUBMIT_FULL
            if ticket >= 0:
                peer.published.append(ticket)

    @precondition(lambda self: self.peers)
    @rule(which=st.integers(0, 3), pick=st.integers(0, 4), expire=st.booleans())
    def give_up(self, which: int, pick: int, expire: bool) -> None:
        peer = self.peers[which % len(self.peers)]
        own = [*peer.published, *peer.waiting, *peer.running]
        own = [ticket for ticket in own if ticket not in peer.given_up]
        if own:
            ticket = own[pick % len(own)]
            launched = ticket in peer.running
            if expire:
                state = peer.wire.producer.expire(ticket)
                assert state == (TAKEN if launched else CANCELLED)
                launched = False
                if state == TAKEN:
                    return
            else:
                state = peer.wire.producer.withdraw(ticket)
                assert state == (ABANDONED if launched else CANCELLED)
            peer.given_up.add(ticket)

    @rule()
    def drain(self) -> None:
        absent = 0
        for peer in self.peers:
            peer.waiting += peer.published
            peer.published.clear()
            peer.waiting = [ticket for ticket in peer.waiting if ticket not in peer.given_up]
            absent += max(0, peer.peak - peer.outstanding())

        assert self.served.drain() == sum(len(peer.waiting) for peer in self.peers)
        assert self.served.inbox.absent == absent

    @rule()
    def forget_absent(self) -> None:
        for peer in self.peers:
            peer.peak = peer.outstanding()
        self.served.inbox.forget_absent()
        assert self.served.inbox.absent == 0

    @precondition(lambda self: not self.rows)
    @rule()
    def take(self) -> None:
        expired = self.served.inbox.expired
        count = self.served.inbox.take(self.served.batch, 64, NOW_NS)
        for peer in self.peers:
            for ticket in peer.waiting:
                control = peer.wire.where.controls + slot_of(ticket) * layout.CONTROL_NBYTES
                late = peer.wire.memory[control + layout.CONTROL_DEADLINE_NS]
                if ticket in peer.given_up:
                    expired += bool(late)
                elif late:
                    expired += 1
                    assert peer.wire.producer.error(ticket) is None
                else:
                    peer.running.append(ticket)
                    self.rows.append((peer, ticket))
            peer.waiting.clear()
            peer.peak = max(peer.peak, peer.outstanding())
        assert (count, self.served.inbox.expired) == (len(self.rows), expired)

    @precondition(lambda self: self.rows)
    @rule()
    def complete(self) -> None:
        self.served.answer(*range(len(self.rows)))
        for i, (peer, ticket) in enumerate(self.rows):
            peer.running.remove(ticket)
            if ticket not in peer.given_up:
                assert outcome(peer.wire, ticket) == i
            elif peer.peak > 1:
                peer.peak -= 1
        self.rows.clear()

    @invariant()
    def what_is_pending_and_what_runs_is_known_at_any_moment(self) -> None:
        if hasattr(self, "served"):
            inbox = self.served.inbox
            assert inbox.pending() == sum(len(p.published) + len(p.waiting) for p in self.peers)
            assert inbox.running == sum(len(peer.running) for peer in self.peers)
            assert inbox.count == len(self.peers)


TestLockstep = Lockstep.TestCase
TestLockstep.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_in_a_closed_loop_nobody_is_absent_once_all_have_called_again() -> None:
    wires = [Wire() for _ in range(3)]
    served = Served(*wires)

    for absences in ([0, 0, 0], *[[2, 1, 0]] * 4):  # at first nobody knows how many will come
        tickets = []
        for wire, absent in zip(wires, absences, strict=True):
            tickets.append(wire.submit(1, 1))
            served.drain()
            assert served.inbox.absent == absent
        assert served.take() == 3
        served.drain()
        assert served.inbox.absent == 0  # they wait for their results and cannot call
        served.answer(0, 0, 0)
        served.drain()
        assert served.inbox.absent == 3
        for wire, ticket in zip(wires, tickets, strict=True):
            outcome(wire, ticket)
    served.inbox.detach(wires[0].executor)
    served.drain()
    assert served.inbox.absent == 2
    served.inbox.forget_absent()
    served.drain()
    assert served.inbox.absent == 0


def test_a_producer_with_several_calls_is_waited_for_until_it_has_made_them_all() -> None:
    wire, other = Wire(capacity=8), Wire(capacity=8)
    served = Served(wire, other)
    tickets = [wire.submit(i, 0) for i in range(5)]
    other.submit(0, 0)
    served.take()
    served.answer(*range(6))
    for ticket in tickets:
        outcome(wire, ticket)

    for missing in (5, 4, 3):
        served.drain()
        assert served.inbox.absent == missing + 1
        wire.submit(0, 0)
    other.submit(0, 0)
    served.drain()
    assert served.inbox.absent == 2
    served.inbox.forget_absent()
    for _ in range(3):
        wire.submit(0, 0)  # more than it had: this is the new peak
    served.drain()
    assert served.inbox.absent == 0
    served.take()
    served.answer(*[0] * served.batch.count)
    served.drain()
    assert served.inbox.absent == 7


def test_a_producer_that_broke_the_rules_is_not_waited_for() -> None:
    hostile, honest = Wire(), Wire()
    served = Served(hostile, honest)
    for wire in (hostile, honest):
        wire.submit(1, 1)
    served.take()
    hostile.write(layout.TAIL, 1000)
    served.answer(0, 0)

    served.drain()

    assert served.inbox.absent == 1
    assert served.inbox.pending() == 0


@pytest.mark.parametrize("tail", [0, 5, 1000, 2**31, 2**32 - 1])
def test_a_lie_about_published_calls_is_bounded_where_they_are_counted(tail: int) -> None:
    wire = Wire(capacity=4)
    served = Served(wire)
    wire.write(layout.TAIL, tail)

    assert 0 <= served.inbox.pending() <= 4


def test_a_sealed_inbox_has_nothing_pending_that_it_has_not_drained() -> None:
    wire = Wire()
    served = Served(wire)
    wire.submit(1, 1)
    assert served.inbox.pending() == 1
    served.drain()
    served.inbox.seal()
    wire.submit(2, 2)

    assert served.inbox.pending() == 1


# ---- phases ----

BUCKETS = 976


def bounds(bucket: int) -> tuple[int, int]:
    """Return where a bucket begins, and how wide it is."""
    if bucket < 16:
        return bucket, 1
    octave = bucket // 16 - 1
    return (16 + bucket % 16) << octave, 1 << octave


def buckets(phases: Phases, phase: int) -> dict[int, int]:
    """Return the buckets that are not empty."""
    counts = phases.read(phase)[2]
    assert len(counts) == 8 * BUCKETS
    return {i: n for i, n in enumerate(struct.unpack(f"={BUCKETS}Q", counts)) if n}


def test_the_buckets_follow_each_other_and_cover_every_duration() -> None:
    following = 0
    for bucket in range(BUCKETS):
        start, width = bounds(bucket)
        assert start == following
        following = start + width
    assert following == 2**64


edges = st.integers(0, BUCKETS - 1).flatmap(
    lambda i: st.sampled_from([bounds(i)[0], sum(bounds(i)) - 1])
)


@given(waits=st.lists(edges | st.integers(0, 2**64 - 2), min_size=1, max_size=4))
def test_every_duration_is_counted_in_its_bucket(waits: list[int]) -> None:
    phases = Phases()
    expected: dict[int, int] = {}
    for wait_ns in waits:
        wire = Wire()
        served = Served(wire, phases=phases)
        served.now_ns = max(waits)
        wire.stamp(wire.submit(1, 1), served.now_ns - wait_ns)
        served.take()
        (bucket,) = [i for i in range(BUCKETS) if 0 <= wait_ns - bounds(i)[0] < bounds(i)[1]]
        expected[bucket] = expected.get(bucket, 0) + 1

    assert buckets(phases, WAITING) == expected
    assert phases.read(WAITING)[:2] == (sum(waits) % 2**64, max(waits))
    for phase in (STAGING, RUNNING, DELIVERING):
        assert phases.read(phase) == (0, 0, bytes(8 * BUCKETS))


def timed_batch(served: Served, wire: Wire, calls: int, *, gathers: bool = True) -> int:
    """Run one batch by the real clock; return how long it took."""
    for _ in range(calls):
        wire.submit(1, 1)
    served.now_ns = started_ns = time.monotonic_ns()
    assert served.take() == calls
    if gathers:
        served.inputs()
        served.batch.scatter([0] * calls)
    else:
        for row in range(calls):
            served.batch.fail(row, b"why")
    served.batch.complete()
    took_ns = time.monotonic_ns() - started_ns
    for ticket in wire.producer.finished(False):
        wire.producer.withdraw(ticket)
    return took_ns


def test_each_phase_of_a_batch_counts_for_each_of_its_calls() -> None:
    phases = Phases()
    wire = Wire(capacity=8)
    served = Served(wire, phases=phases)

    took_ns = 0
    for calls in (1, 8, 3):
        took_ns += calls * timed_batch(served, wire, calls)

    total_ns = 0
    for phase in (WAITING, STAGING, RUNNING, DELIVERING):
        sum_ns, max_ns, _ = phases.read(phase)
        counted = buckets(phases, phase)
        assert sum(counted.values()) == 12
        least = sum(n * bounds(i)[0] for i, n in counted.items())
        assert least <= sum_ns < least + sum(n * bounds(i)[1] for i, n in counted.items())
        start, width = bounds(max(counted))
        assert start <= max_ns < start + width
        if phase != WAITING:
            total_ns += sum_ns
    assert 0 < total_ns <= took_ns


def test_phases_are_those_of_their_own_batch() -> None:
    """A long wait between two batches is part of neither."""
    phases = Phases()
    wire = Wire(capacity=8)
    served = Served(wire, phases=phases)
    took_ns = timed_batch(served, wire, 1)
    until_ns = time.monotonic_ns() + 20_000_000
    while time.monotonic_ns() < until_ns:
        pass
    took_ns += timed_batch(served, wire, 1)

    assert sum(phases.read(phase)[0] for phase in (STAGING, RUNNING, DELIVERING)) <= took_ns


def test_a_batch_that_failed_before_it_was_gathered_was_not_staged() -> None:
    phases = Phases()
    wire = Wire(capacity=8)
    served = Served(wire, phases=phases)

    timed_batch(served, wire, 3, gathers=False)

    assert sum(buckets(phases, WAITING).values()) == 3
    for phase in (STAGING, RUNNING, DELIVERING):
        assert phases.read(phase) == (0, 0, bytes(8 * BUCKETS))


def test_calls_that_never_ran_are_counted_in_no_phase() -> None:
    phases = Phases()
    wire = Wire(capacity=8)
    served = Served(wire, phases=phases)
    served.now_ns = time.monotonic_ns()
    wire.submit(0, 0, deadline_ns=1)
    wire.producer.withdraw(wire.submit(0, 0))
    for _ in range(3):
        wire.submit(0, 0)
    served.now_ns = time.monotonic_ns()
    served.take()
    served.batch.reject(1, b"why")
    served.inputs()
    served.answer(0, 0)

    counted = [sum(buckets(phases, phase).values()) for phase in range(4)]
    assert counted == [3, 2, 2, 2]


def test_several_batches_may_share_phases_and_one_may_have_none() -> None:
    phases = Phases()
    wire = Wire(capacity=8)
    both = [Served(wire, phases=phases), Served(Wire(), phases=phases)]
    timed_batch(both[0], wire, 2)
    other = Wire()
    both[1].inbox.attach(other.executor, 0)
    timed_batch(both[1], other, 1)
    timed_batch(Served(third := Wire()), third, 1)

    assert [sum(buckets(phases, phase).values()) for phase in range(4)] == [3] * 4


@pytest.mark.parametrize("phase", [-1, 4, 2**64, "0", None])
def test_a_phase_that_does_not_exist_is_refused(phase: Any) -> None:
    with pytest.raises((ValueError, OverflowError, TypeError)):
        Phases().read(phase)


def test_only_phases_are_told_how_long_it_took() -> None:
    for given_instead in (1, "phases", [], Batch(1)):
        with pytest.raises(TypeError, match="Phases"):
            Batch(1, given_instead)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Phases(1)  # type: ignore[call-arg]
    assert Batch(1, None).count == 0


def test_calls_with_values_of_every_length_are_timed_alike() -> None:
    phases = Phases()
    wire = Wire((text(1 << 20), text(16)), capacity=4)
    served = Served(wire, phases=phases)
    for length in (0, 1 << 20):
        wire.submit("x" * length)
    served.now_ns = time.monotonic_ns()
    served.take()
    served.batch.gather([None])
    assert served.batch.scatter(["", "y"])
    served.batch.complete()

    assert all(sum(buckets(phases, phase).values()) == 2 for phase in range(4))


def test_after_the_first_batches_one_in_eight_is_timed_and_counts_for_all() -> None:
    wire = Wire()
    phases = Phases()
    served = Served(wire, phases=phases)
    for batches in range(1, 1024 + 16 + 1):
        ticket = wire.submit(1, 2)
        served.take()
        served.inputs()
        served.answer(3)
        outcome(wire, ticket)
        if batches in (1024, 1024 + 1, 1024 + 8, 1024 + 9):
            counted = batches if batches == 1024 else 1024 + 8 * -(-(batches - 1024) // 8)
            for phase in (STAGING, RUNNING, DELIVERING):
                assert sum(struct.unpack("=976Q", phases.read(phase)[2])) == counted
            assert sum(struct.unpack("=976Q", phases.read(WAITING)[2])) == batches
