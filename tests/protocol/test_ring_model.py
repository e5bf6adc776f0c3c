"""The native rings of one function against a model of plain Python, move by move.

The model knows for each producer which calls wait, run and are done, and for the executor whose
turn it is. After every move both must agree on everything that can be seen from outside.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmbatch.protocol._core import (
    ABANDONED,
    ASYNC,
    CANCELLED,
    DONE,
    FAILED,
    FREE,
    PENDING,
    READY,
    SPAWNED,
    SUBMIT_FULL,
    TAKEN,
    THREAD,
    WAITER,
    WAKE_ASYNC,
)
from tests.rings import ADD, Served, Wire, slot_of


@dataclass
class Call:
    number: int
    ticket: int
    flags: int
    waiter: bool = False
    outcome: Any = None


@dataclass(eq=False)
class Side:
    """What the model knows of one producer."""

    wire: Wire
    capacity: int
    in_ring: deque[Call] = field(default_factory=deque)  # published, not drained
    waiting: deque[Call] = field(default_factory=deque)  # drained
    taken: list[Call] = field(default_factory=list)
    done: list[Call] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)  # numbers, in in_ring or waiting
    abandoned: set[int] = field(default_factory=set)  # numbers, in taken
    sleeping: int = 0

    def live(self) -> list[Call]:
        calls = [*self.in_ring, *self.waiting, *self.taken, *self.done]
        return [
            call
            for call in calls
            if call.number not in self.cancelled and call.number not in self.abandoned
        ]

    def used(self) -> int:
        return len(self.in_ring) + len(self.waiting) + len(self.taken) + len(self.done)

    def sweep(self) -> bool:
        """Drop cancelled calls that have been drained; True if there were any."""
        swept = [call for call in self.waiting if call.number in self.cancelled]
        for call in swept:
            self.waiting.remove(call)
            self.cancelled.remove(call.number)
        return bool(swept)


class Rings(RuleBasedStateMachine):
    """Some producers, one executor."""

    @initialize(capacities=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def connect(self, capacities: list[int]) -> None:
        self.sides = [Side(Wire(ADD, capacity), capacity) for capacity in capacities]
        self.served = Served(*(side.wire for side in self.sides), room=8)
        self.batch: list[tuple[Side, Call]] = []
        self.turn = 0
        self.next_number = 0
        self.freed: set[int] = set()  # sides with slots that became FREE, untold

    def side(self, which: int) -> Side:
        return self.sides[which % len(self.sides)]

    # ---- the producers' moves ----

    @rule(which=st.integers(0, 2), flags=st.sampled_from([0, 0, ASYNC, SPAWNED]))
    def submit(self, which: int, flags: int) -> None:
        side = self.side(which)
        number = self.next_number
        ticket = side.wire.producer.submit((number, -number), flags)
        if side.used() == side.capacity:
            assert ticket == SUBMIT_FULL
            return
        self.next_number += 1
        side.in_ring.append(Call(number, ticket, flags))

    @rule(which=st.integers(0, 2), pick=st.integers(0, 9))
    def poll(self, which: int, pick: int) -> None:
        side = self.side(which)
        live = side.live()
        if not live:
            return
        call = live[pick % len(live)]
        outcome = side.wire.producer.poll(call.ticket, 0)
        if call not in side.done:
            assert outcome is PENDING
            return
        if isinstance(call.outcome, bytes):
            assert outcome is FAILED
            assert side.wire.producer.poll(call.ticket, 0) is FAILED
            outcome = side.wire.producer.error(call.ticket)
        assert outcome == call.outcome
        side.done.remove(call)

    @rule(which=st.integers(0, 2), pick=st.integers(0, 9))
    def withdraw(self, which: int, pick: int) -> None:
        side = self.side(which)
        live = side.live()
        if not live:
            return
        call = live[pick % len(live)]
        state = side.wire.producer.withdraw(call.ticket)
        if call in side.done:
            assert state == DONE
            side.done.remove(call)
        elif call in side.taken:
            assert state == ABANDONED
            side.abandoned.add(call.number)
        else:
            assert state == CANCELLED
            side.cancelled.add(call.number)

    @rule(which=st.integers(0, 2), pick=st.integers(0, 9))
    def arm(self, which: int, pick: int) -> None:
        side = self.side(which)
        live = side.live()
        if not live:
            return
        call = live[pick % len(live)]
        word = side.wire.producer.arm(call.ticket, WAITER)
        assert (word == -1) == (call in side.done)
        call.waiter = call not in side.done

    @rule(which=st.integers(0, 2))
    def fall_asleep_on_completions(self, which: int) -> None:
        side = self.side(which)
        side.wire.producer.join_completions(THREAD)
        side.sleeping += 1

    @rule(which=st.integers(0, 2))
    def get_up(self, which: int) -> None:
        side = self.side(which)
        side.wire.producer.leave_completions(THREAD)
        side.sleeping = max(side.sleeping - 1, 0)

    # ---- the executor's moves ----

    @rule()
    def drain(self) -> None:
        waiting = self.served.drain()
        self._drain_model()
        assert waiting == sum(len(side.waiting) for side in self.sides)

    def _drain_model(self) -> None:
        for side in self.sides:
            side.waiting.extend(side.in_ring)
            side.in_ring.clear()
            if side.sweep():
                self.freed.add(self.sides.index(side))

    @precondition(lambda self: not self.batch)
    @rule(limit=st.integers(0, 8))
    def take(self, limit: int) -> None:
        count = self.served.inbox.take(self.served.batch, limit, self.served.now_ns)
        expected = self._take_model(limit)
        assert count == len(expected)
        self.batch = expected
        if count:
            numbers = [call.number for _, call in expected]
            assert self.served.inputs() == [numbers, [-number for number in numbers]]  # I6

    def _take_model(self, limit: int) -> list[tuple[Side, Call]]:
        """Rounds of one call each (I5); cancelled ones are skipped and made up for."""
        rows: list[tuple[Side, Call]] = []
        again = True
        while again and len(rows) < limit:
            again = False
            quotas = [0] * len(self.sides)
            left = limit - len(rows)
            while left:
                hungry = [i for i, side in enumerate(self.sides) if quotas[i] < len(side.waiting)]
                if not hungry:
                    break
                if left >= len(hungry):
                    for i in hungry:
                        quotas[i] += 1
                    left -= len(hungry)
                    continue
                order = sorted(hungry, key=lambda i: (i - self.turn) % len(self.sides))
                for i in order[:left]:
                    quotas[i] += 1
                    self.turn = (i + 1) % len(self.sides)
                left = 0
            for i, side in enumerate(self.sides):
                for _ in range(quotas[i]):
                    call = side.waiting.popleft()
                    if call.number in side.cancelled:
                        side.cancelled.remove(call.number)
                        self.freed.add(i)
                        again = True
                        continue
                    side.taken.append(call)
                    rows.append((side, call))
        return rows

    @precondition(lambda self: self.batch)
    @rule(failing=st.integers(0, 1 << 8))
    def complete(self, failing: int) -> None:
        for row, (_, call) in enumerate(self.batch):
            call.outcome = 10 * call.number
            assert self.served.batch.put(row, call.outcome)
            if failing >> row & 1:
                call.outcome = b"error of %d" % call.number
                self.served.batch.fail(row, call.outcome)
        wakes = self.served.batch.complete() or []
        expected = {}
        for side, call in self.batch:
            flags, threads, slots = expected.get(side, (0, side.sleeping, []))
            if call.number in side.abandoned:
                side.abandoned.remove(call.number)
            else:
                side.done.append(call)
                flags |= WAKE_ASYNC if call.flags & ASYNC else 0
                slots = [*slots, slot_of(call.ticket)] if call.waiter else slots
            side.taken.remove(call)
            expected[side] = (flags, threads, slots)
        merged: dict[Any, tuple[int, int, list[int]]] = {}
        for ring, flags, threads, slots in wakes:
            before = merged.get(ring, (0, 0, []))
            merged[ring] = (before[0] | flags, threads, before[2] + slots)
        assert merged == {
            side.wire.executor: (flags, threads, slots)
            for side, (flags, threads, slots) in expected.items()
            if flags or threads or slots
        }
        self.batch = []

    @rule()
    def tell_of_freed_slots(self) -> None:
        assert bool(self.served.inbox.attention) == bool(self.freed)
        wakes = self.served.inbox.pop_attention() or []
        assert {ring: threads for ring, _, threads, _ in wakes} == {
            self.sides[i].wire.executor: self.sides[i].sleeping
            for i in self.freed
            if self.sides[i].sleeping
        }
        self.freed.clear()

    # ---- what is always so ----

    @invariant()
    def both_agree_on_every_slot(self) -> None:
        for side in getattr(self, "sides", ()):
            assert side.wire.producer.free_slots == side.capacity - side.used()  # R1
            states = dict.fromkeys(range(side.capacity), FREE)
            for calls, state in (
                ([*side.in_ring, *side.waiting], READY),
                (side.taken, TAKEN),
                (side.done, DONE),
            ):
                for call in calls:
                    states[slot_of(call.ticket)] = (
                        CANCELLED
                        if call.number in side.cancelled
                        else ABANDONED
                        if call.number in side.abandoned
                        else state
                    )
            words = [side.wire.read(side.wire.state_offset(slot)) for slot in states]
            assert [word & 7 for word in words] == list(states.values())

    @invariant()
    def exactly_the_finished_calls_are_listed(self) -> None:
        for side in getattr(self, "sides", ()):
            finished = side.wire.producer.finished(False)
            assert sorted(finished) == sorted(call.ticket for call in side.done)
            spawned = side.wire.producer.finished(True)
            assert sorted(spawned) == sorted(
                call.ticket for call in side.done if call.flags & SPAWNED
            )

    @invariant()
    def no_two_live_calls_share_a_slot_or_a_ticket(self) -> None:
        for side in getattr(self, "sides", ()):
            calls = [*side.in_ring, *side.waiting, *side.taken, *side.done]
            assert len({slot_of(call.ticket) for call in calls}) == len(calls) <= side.capacity

    def teardown(self) -> None:
        """I2: whatever happened, everybody gets his outcome and every slot comes back."""
        if not hasattr(self, "sides"):
            return
        for _ in range(20):
            if self.batch:
                self.complete(0)
            self.drain()
            self.take(8)
        for side in self.sides:
            for call in list(side.done):
                assert call.outcome is not None
                side.wire.producer.withdraw(call.ticket)
            assert side.wire.producer.free_slots == side.capacity


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
