"""One batch put together by hand: which rows the function sees, and who gets what."""

from __future__ import annotations

import pytest

from shmbatch import errors
from shmbatch.testing import SealReason, run_batch
from tests.testing.functions import Counter, refuses, rows_seen, scaled, spreading


def test_calls_run_as_one_batch_in_their_order() -> None:
    made = run_batch(scaled, [(1.0, 1), (2.0, 2), (3.0, 3)])

    assert made.results == [1.0, 4.0, 9.0]
    assert made.batch.calls == (1, 2, 3)
    assert made.batch.reason is SealReason.DRAIN


def test_calls_stand_in_the_rows_that_are_chosen_for_them() -> None:
    made = run_batch(rows_seen, [(7,), (8,)], at=[3, 1], fill=(0,))

    assert made.results == [[0, 8, 0, 7], [0, 8, 0, 7]]


def test_a_batch_is_padded_to_the_size_that_is_allowed_or_chosen() -> None:
    assert run_batch(rows_seen, [(7,)]).results == [[7, 7]]
    assert run_batch(rows_seen, [(7,)], size=3).results == [[7, 7, 7]]
    assert run_batch(rows_seen, [(7,), (8,), (9,)]).results[0] == [7, 8, 9, 9]


def test_each_call_has_its_own_error() -> None:
    raised = run_batch(refuses, [(1,), (-1,)])
    assert [str(error) for error in raised.errors] == ["an input is negative"] * 2
    assert raised.errors[0] is not raised.errors[1]
    with pytest.raises(ValueError, match="negative"):
        _ = raised.results
    assert run_batch(spreading, [(1,)]).errors == [None]


def test_a_method_runs_on_an_object_that_was_entered() -> None:
    assert run_batch(Counter(start=3).above, [(4,)]).results == [5]


def test_what_makes_no_batch_is_refused() -> None:
    for calls, options, reason in (
        ([], {}, "a batch of 0 calls was asked of 'tested.rows_seen', whose max_batch_size is 4"),
        ([(1,)] * 5, {}, "a batch of 5 calls"),
        ([(1,)], {"at": [2]}, "row 0 of the batch of 'tested.rows_seen' is empty; give fill="),
        ([(1,), (2,)], {"at": [0, 0]}, "give each a row of its own"),
        ([(1,)], {"at": [-1]}, "give each a row of its own"),
        ([(1,), (2,)], {"size": 1}, "use a size from 2 to 4"),
        ([(1,)], {"size": 5}, "use a size from 1 to 4"),
        ([(1,)], {"at": [10**12], "fill": (0,)}, "a batch of 1000000000001 calls"),
        ([1], {}, "a call of 'tested.rows_seen' is 1; give its arguments as a tuple"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            run_batch(rows_seen, calls, **options)
    with pytest.raises(errors.InputTypeError, match="must be an int"):
        run_batch(rows_seen, [("1",)])
