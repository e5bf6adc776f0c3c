"""Every cell of the batcher's table, and what holds for any history of it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.executor import batcher as module
from shmbatch.executor.batcher import NEVER_NS, Batcher, SealReason

MS = 1_000_000
SIZE, ALL, DEADLINE, DRAIN = SealReason

WAITING = {"none": [0], "max_batch_size or more": [4, 5, 1000], "fewer": [1, 3]}
# calls that are still to come until everybody has as many outstanding as lately
ABSENT = {"nobody": [0], "some": [1, 2, 1000], "any": [0, 1, 1000]}
DRAINING = {"yes": [True], "no": [False], "any": [True, False]}
# nanoseconds for which the oldest call has waited; 5 ms is wait_ns
WAITED = {
    "any": [0, 5 * MS, 5 * MS - 1],
    "-": [0],
    "wait_ns or longer": [5 * MS, 5 * MS + 1, 500 * MS],
    "less": [0, 1, 5 * MS - 1],
}

assert module.__doc__ is not None
ROWS = [re.split(r"  +", line.strip()) for line in module.__doc__.splitlines()]
ROWS = [row for row in ROWS if row[0] in WAITING]


def test_the_table_has_been_read() -> None:
    assert len(ROWS) == 6
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize(("waiting", "absent", "draining", "waited", "due"), ROWS)
def test_a_batch_is_due_as_the_table_says(
    waiting: str, absent: str, draining: str, waited: str, due: str
) -> None:
    now_ns = 100 * MS
    for count, still_to_come, is_draining, waited_ns in itertools.product(
        WAITING[waiting], ABSENT[absent], DRAINING[draining], WAITED[waited]
    ):
        batcher = Batcher(max_batch_size=4, wait_ns=5 * MS, lockstep=True)
        batcher.observe(count, now_ns - waited_ns, now_ns, is_draining, still_to_come)
        assert batcher.reason == (None if due == "no" else SealReason[due])


def test_without_lockstep_some_are_always_absent() -> None:
    for count, absent, waited_ns, draining in itertools.product(
        (0, 1, 3, 4, 9), (0, 1, 1000), WAITED["any"], (True, False)
    ):
        plain, reference = Batcher(4, 5 * MS), Batcher(4, 5 * MS, lockstep=True)
        plain.observe(count, 100 * MS - waited_ns, 100 * MS, draining, absent)
        reference.observe(count, 100 * MS - waited_ns, 100 * MS, draining, 1000)
        for batcher in (plain, reference):
            assert batcher.reason is not ALL
        assert (plain.reason, plain.due_ns, plain.missing) == (
            reference.reason,
            reference.due_ns,
            reference.missing,
        )


def test_a_lone_call_is_due_when_its_wait_is_over() -> None:
    batcher = Batcher(4, 5 * MS)

    batcher.observe(1, 7 * MS, 8 * MS, False)
    assert (batcher.reason, batcher.due_ns, batcher.missing) == (None, 12 * MS, 3)
    batcher.observe(1, 7 * MS, 12 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (DEADLINE, 12 * MS)


def test_later_calls_never_move_the_deadline() -> None:
    batcher = Batcher(100, 5 * MS)

    for count in range(1, 50):
        batcher.observe(count, 0, count * 1000, False)
        assert batcher.due_ns == 5 * MS
        assert batcher.missing == 100 - count


def test_without_a_wait_a_lone_call_is_due_at_once() -> None:
    batcher = Batcher(4, 0)

    batcher.observe(1, 7 * MS, 7 * MS, False)

    assert (batcher.reason, batcher.due_ns) == (DEADLINE, 7 * MS)


def test_a_full_batch_is_due_since_it_was_first_seen_full() -> None:
    batcher = Batcher(2, 5 * MS)

    batcher.observe(2, 0, 1 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (SIZE, 1 * MS)
    batcher.observe(3, 0, 2 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (SIZE, 1 * MS)
    assert batcher.missing <= 0


def test_what_is_left_after_a_seal_is_full_since_later() -> None:
    """Or a function with a backlog would keep every other function out."""
    batcher = Batcher(2, 50 * MS)
    batcher.observe(4, 0, 1 * MS, False)

    assert batcher.sealed() is SIZE
    batcher.observe(2, 0, 9 * MS, False)

    assert batcher.due_ns == 9 * MS


def test_the_calls_of_a_backlog_keep_their_own_deadlines() -> None:
    batcher = Batcher(2, 5 * MS)
    batcher.observe(4, 0, 20 * MS, False)
    batcher.sealed()

    batcher.observe(2, 3 * MS, 30 * MS, False)

    assert (batcher.reason, batcher.due_ns) == (SIZE, 8 * MS)


def test_cancelled_calls_make_a_full_batch_wait_again() -> None:
    batcher = Batcher(2, 5 * MS)

    batcher.observe(2, 0, 1 * MS, False)
    batcher.observe(1, 0, 2 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (None, 5 * MS)
    batcher.observe(2, 0, 3 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (SIZE, 3 * MS)
    batcher.observe(0, NEVER_NS, 4 * MS, False)
    assert (batcher.reason, batcher.due_ns, batcher.missing) == (None, NEVER_NS, 2)
    batcher.observe(2, 4 * MS, 4 * MS, False)
    assert (batcher.reason, batcher.due_ns) == (SIZE, 4 * MS)


def test_draining_makes_whatever_waits_due_now() -> None:
    batcher = Batcher(4, 5 * MS)

    batcher.observe(1, 7 * MS, 8 * MS, True)

    assert (batcher.reason, batcher.due_ns) == (DRAIN, 8 * MS)


def test_a_batch_for_which_all_are_there_is_due_since_that_was_first_seen() -> None:
    batcher = Batcher(4, 5 * MS, lockstep=True)

    batcher.observe(1, 0, 1 * MS, False, 1)
    assert (batcher.reason, batcher.due_ns) == (None, 5 * MS)
    batcher.observe(2, 0, 2 * MS, False, 0)
    assert (batcher.reason, batcher.due_ns) == (ALL, 2 * MS)
    batcher.observe(4, 0, 3 * MS, False, 0)
    assert (batcher.reason, batcher.due_ns) == (SIZE, 2 * MS)
    batcher.observe(3, 0, 4 * MS, False, 2)  # somebody has got a result, another has withdrawn
    assert (batcher.reason, batcher.due_ns) == (None, 5 * MS)
    batcher.observe(3, 0, 20 * MS, False, 0)
    assert (batcher.reason, batcher.due_ns) == (ALL, 5 * MS)
    assert batcher.sealed() is ALL
    batcher.observe(1, 19 * MS, 21 * MS, False, 0)
    assert (batcher.reason, batcher.due_ns) == (ALL, 21 * MS)


@pytest.mark.parametrize(
    ("waiting", "absent", "missing"),
    [(0, 0, 1), (0, 2, 2), (0, 4, 4), (0, 9, 4), (1, 2, 2), (1, 9, 3), (3, 1, 1), (3, 9, 1)],
)
def test_in_lockstep_so_many_calls_more_may_make_a_batch_due(
    waiting: int, absent: int, missing: int
) -> None:
    """None waits and none is awaited: whoever calls next is due at once."""
    batcher = Batcher(4, 5 * MS, lockstep=True)

    batcher.observe(waiting, 0, 0, False, absent)

    assert (batcher.reason, batcher.missing) == (None, missing)


def test_only_what_is_due_is_sealed() -> None:
    batcher = Batcher(4, 5 * MS)
    batcher.observe(1, 0, 0, False)

    with pytest.raises(AssertionError, match="due"):
        batcher.sealed()


def test_every_reason_has_a_hash_of_its_own_identity() -> None:
    assert {reason: reason.value for reason in SealReason} == {
        SIZE: "size",
        ALL: "all",
        DEADLINE: "deadline",
        DRAIN: "drain",
    }


@given(
    max_batch_size=st.integers(1, 8),
    wait_ns=st.integers(0, 20),
    lockstep=st.booleans(),
    history=st.lists(st.tuples(*map(st.integers, [0] * 4, [12, 9, 30, 15]), st.booleans())),
)
def test_the_decision_depends_on_what_waits_now_alone(
    max_batch_size: int,
    wait_ns: int,
    lockstep: bool,
    history: list[tuple[int, int, int, int, bool]],
) -> None:
    """No history makes a difference but since when a batch has been full, or all were there."""
    batcher = Batcher(max_batch_size, wait_ns, lockstep)
    now_ns = 1000

    for waiting, absent, waited_ns, step_ns, draining in history:
        now_ns += step_ns
        batcher.observe(waiting, now_ns - waited_ns, now_ns, draining, absent)
        fresh = Batcher(max_batch_size, wait_ns, lockstep)
        fresh.observe(waiting, now_ns - waited_ns, now_ns, draining, absent)

        assert batcher.reason is fresh.reason
        assert batcher.missing == fresh.missing <= max_batch_size - waiting or waiting == 0
        assert batcher.due_ns <= fresh.due_ns
        if batcher.reason not in (SIZE, ALL):
            assert batcher.due_ns == fresh.due_ns
        if batcher.reason is not None:
            assert batcher.due_ns <= now_ns
            if step_ns % 2:
                assert batcher.sealed() is batcher.reason
        elif waiting:
            assert batcher.missing > 0
            assert now_ns < batcher.due_ns <= now_ns + wait_ns
