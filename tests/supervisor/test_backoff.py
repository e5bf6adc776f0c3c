"""When a supervisor starts the next executor, and when it gives up; no clock, no process."""

from __future__ import annotations

import itertools

import pytest

from shmbatch.supervisor.backoff import STARTS_MAX, STEADY_NS, Backoff

MS = 1_000_000


def test_one_that_served_for_a_while_is_followed_at_once() -> None:
    backoff = Backoff()
    assert [backoff.ended(STEADY_NS) for _ in range(100)] == [0] * 100


def test_pauses_double_from_a_tenth_of_a_second_up_to_five() -> None:
    backoff = Backoff()
    pauses = [backoff.ended(STEADY_NS - 1) for _ in range(9)]
    assert pauses == [each * MS for each in (100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000)]


def test_who_serves_for_a_while_makes_pauses_short_again() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.ended(0)
    assert (backoff.ended(STEADY_NS), backoff.ended(0)) == (0, 100 * MS)


def test_starts_that_fail_one_after_another_are_given_up() -> None:
    backoff = Backoff()
    pauses = list(
        itertools.takewhile(lambda each: each is not None, iter(lambda: backoff.ended(None), 0))
    )
    assert pauses == [each * MS for each in (100, 200, 400, 800)]
    assert len(pauses) == STARTS_MAX - 1


@pytest.mark.parametrize("served_ns", [0, STEADY_NS])
def test_one_that_served_ends_the_row_of_failed_starts(served_ns: int) -> None:
    backoff = Backoff()
    for _ in range(20):
        for _ in range(STARTS_MAX - 1):
            assert backoff.ended(None) is not None
        assert backoff.ended(served_ns) is not None
