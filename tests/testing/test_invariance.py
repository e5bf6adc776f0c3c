"""`check_batch_invariance` says which input's result depends on its batch, and on what of that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shmbatch import errors
from shmbatch.testing import Tolerance, check_batch_invariance, check_batching, inputs
from shmbatch.testing.comparing import difference, shown
from tests.testing.functions import (
    Counter,
    by_rows,
    called,
    counting,
    failing,
    normalised,
    padded_maximum,
    padded_mean,
    refuses,
    scaled,
    share,
    sociable,
    spreading,
    stacked_mean,
    summed,
    third,
)


@pytest.mark.parametrize("function", [scaled, summed, refuses, Counter().above], ids=called)
def test_a_function_of_single_inputs_passes(function: Any) -> None:
    check_batch_invariance(function, max_examples=30)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (by_rows, "padding"),
        (padded_maximum, "padding: .*"),
        (sociable, "the size of its batch"),
        (normalised, "its batch-mates"),
        (spreading, "its batch-mates"),
        (share, "the size of its batch"),
        (third, "its position"),
        (counting, r"chance, or on what ran before: alone once more it gets \d+"),
    ],
)
def test_what_a_result_depends_on_is_named(function: Any, cause: str) -> None:
    name = function.function.__name__
    first_line = rf"^the result of an input of '{name}' depends on {cause}\n"
    with pytest.raises(AssertionError, match=first_line):
        check_batch_invariance(function)


def test_lengths_are_told_from_values_where_a_function_pads_for_itself() -> None:
    tensors = st.tuples(st.integers(1, 2).map(torch.ones))
    with pytest.raises(AssertionError, match="depends on padding: with batch-mates of its own"):
        check_batch_invariance(stacked_mean, tensors)


def test_an_error_that_comes_only_of_being_alone_is_told_of() -> None:
    with pytest.raises(AssertionError, match=r"alone        ValueError\(one is too few\)"):
        check_batch_invariance(sociable)


@pytest.mark.parametrize("check", [check_batch_invariance, check_batching], ids=["one", "all"])
def test_a_function_that_always_fails_does_not_pass(check: Any) -> None:
    with pytest.raises(AssertionError, match=r"no input .* the last gets ValueError\(never works"):
        check(failing, max_examples=20)


@pytest.mark.parametrize("check", [check_batch_invariance, check_batching], ids=["one", "all"])
def test_what_draws_no_tuples_is_refused(check: Any) -> None:
    name = "strategy" if check is check_batch_invariance else "inputs"
    for strategy, reason in (
        (st.integers(), "the strategy for inputs of 'summed' drew 0; use one of tuples"),
        (arrays("f4", (1, 2)), "drew array"),  # would be taken apart into rows
        ([(1,)], "is no strategy of hypothesis"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            check(summed, **{name: strategy})


def test_the_simplest_case_is_told() -> None:
    with pytest.raises(AssertionError) as caught:
        check_batch_invariance(padded_mean)
    assert str(caught.value).splitlines() == [
        "the result of an input of 'padded_mean' depends on padding: with batch-mates of its own "
        "lengths it gets what it gets alone",
        "",
        "  input        padded_mean(array([1.], dtype=float32))",
        "  alone        1.0",
        "  in company   0.5 (row 0 of 2)",
        "  difference   0.5 and 1, 0.5 apart (tolerance rtol=1e-05, atol=1e-08)",
        "  batch-mates  padded_mean(array([0., 0.], dtype=float32))",
    ]


def test_what_is_within_the_tolerance_is_the_same() -> None:
    check_batch_invariance(share, max_examples=30, tolerance=Tolerance(rtol=0, atol=1000))
    check_batch_invariance(normalised, st.tuples(st.just(2.0)), max_examples=10)
    with pytest.raises(AssertionError, match="tolerance rtol=0, atol=0"):
        check_batch_invariance(share, max_examples=30, tolerance=0)


def test_inputs_are_those_of_the_strategy() -> None:
    equally_long = inputs(padded_mean, min_lengths={"seq": 3})
    check_batch_invariance(padded_mean, equally_long, max_examples=30)


@pytest.mark.parametrize(
    ("one", "other", "fact"),
    [
        (1.0, 1.0 + 1e-9, None),
        (float("nan"), float("nan"), None),
        (float("inf"), float("-inf"), "inf and -inf, inf apart"),
        (2, 2, None),
        (10**15, 10**15 + 1, "1000000000000000 and 1000000000000001, 1 apart"),
        (True, 1, "one is a bool, the other a int"),
        ([1, 2.0], [1, 2.5], "at [1]: 2 and 2.5, 0.5 apart"),
        ([1], [1, 2], "lengths 1 and 2"),
        ({"a": 1}, {"b": 1}, "keys ['a'] and ['b']"),
        ({"a": [b"x"]}, {"a": [b"y"]}, "at ['a']: at [0]: b'x' and b'y'"),
        (np.zeros(3), np.zeros(2), "shapes (3,) and (2,)"),
        (np.zeros(1), np.zeros(1, "f4"), "dtypes float64 and float32"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 elements, first at [1]: 2 and 3, 1 apart"),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), None),
        (np.array(["a"]), np.array(["b"]), "a and b"),
        (np.array(["NaT"], "M8[s]"), np.array(["NaT"], "M8[s]"), None),
        (torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16), None),
        (torch.ones(1), 1.0, "one is a Tensor, the other a float"),
        (ValueError("a"), ValueError("a"), None),
        (ValueError("a"), KeyError(1), "one of them is an error: ValueError(a) and KeyError(1)"),
    ],
    ids=shown,
)
def test_how_two_outcomes_differ_is_said_in_numbers(
    one: object, other: object, fact: str | None
) -> None:
    assert difference(one, other, Tolerance()) == fact


def test_a_tensor_is_shown_as_an_array_is() -> None:
    assert shown(torch.tensor([0.1, 1.0])) == "tensor([0.1, 1. ], dtype=float32)"
    assert shown(torch.ones(2, dtype=torch.bfloat16)) == "tensor([1., 1.], dtype=bfloat16)"
    assert shown(torch.zeros(0, 4)) == "tensor([], dtype=float32, shape=(0, 4))"
