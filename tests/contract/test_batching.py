"""Bounds of the two batching parameters, and how many slots follow from them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.contract.batching import BatchParameters, batch_parameters, slot_capacity
from shmbatch.errors import ConfigError

MiB = 2**20


@pytest.mark.parametrize(
    ("size", "wait_ms", "wait_ns"),
    [
        (1, 0, 0),
        (65_536, 600_000, 600_000_000_000),
        (2, 1000, 1_000_000_000),
        (8, 0.5, 500_000),
        (8, 0.0000012, 1),
        (8, -0.0, 0),
        (8, np.float64(1.5), 1_500_000),
    ],
)
def test_what_stands_within_the_bounds_is_kept(size: int, wait_ms: float, wait_ns: int) -> None:
    parameters = batch_parameters(size, wait_ms)

    assert parameters == BatchParameters(size, wait_ns)
    assert type(parameters.wait_ns) is int


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0"),
        (-1, "-1"),
        (65_537, "65537"),
        (True, "True"),
        (2.0, "2.0"),
        ("2", "'2'"),
        ("2" * 200, "'" + "2" * 96 + "..."),
        (None, "NoneType"),
        pytest.param(10**5000, "an int of 16610 bits", id="too long to print"),
    ],
)
def test_a_batch_size_out_of_bounds_is_refused_with_value_and_bounds(
    size: int, shown: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_parameters(size, 1)

    assert str(caught.value) == f"max_batch_size is {shown}; use an int from 1 to 65536"


@pytest.mark.parametrize(
    ("wait_ms", "shown"),
    [
        (-1, "-1"),
        (-1e-9, "-1e-09"),
        (600_001, "600001"),
        (600_000.1, "600000.1"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (False, "False"),
        ("5", "'5'"),
        (None, "NoneType"),
        (Fraction(1, 2), "Fraction"),
        pytest.param(10**5000, "an int of 16610 bits", id="too long to print"),
    ],
)
def test_a_wait_out_of_bounds_is_refused_with_value_and_bounds(wait_ms: float, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_parameters(1, wait_ms)

    assert str(caught.value) == (
        f"wait_ms is {shown}; use a number of milliseconds from 0 to 600000"
    )


@pytest.mark.parametrize(
    ("max_batch_size", "slot_nbytes", "limit_nbytes", "capacity"),
    [
        (1, 16, 64 * MiB, 64),
        (32, 16, 64 * MiB, 64),
        (33, 16, 64 * MiB, 66),
        (65_536, 16, 64 * MiB, 131_072),
        (32, MiB, 64 * MiB, 64),
        (32, MiB + 1, 64 * MiB, 63),
        (32, 128 * MiB, 64 * MiB, 1),
        (32, 0, 0, 64),
    ],
)
def test_slots_are_twice_the_batch_lowered_to_the_limit(
    max_batch_size: int, slot_nbytes: int, limit_nbytes: int, capacity: int
) -> None:
    assert slot_capacity(max_batch_size, None, slot_nbytes, limit_nbytes) == capacity


@given(st.integers(1, 65_536), st.integers(0, 2**40), st.integers(0, 2**40))
def test_default_slots_fit_the_limit_unless_there_is_only_one(
    max_batch_size: int, slot_nbytes: int, limit_nbytes: int
) -> None:
    capacity = slot_capacity(max_batch_size, None, slot_nbytes, limit_nbytes)

    assert 1 <= capacity <= 131_072
    assert capacity == 1 or capacity * slot_nbytes <= limit_nbytes


@pytest.mark.parametrize("slots", [1, 131_072])
def test_explicit_slots_are_taken_as_they_are(slots: int) -> None:
    assert slot_capacity(32, slots, 2 * MiB, MiB) == slots


@pytest.mark.parametrize("slots", [0, -1, 131_073, True, 8.0, "8"])
def test_explicit_slots_out_of_bounds_are_refused_with_value_and_bounds(slots: int) -> None:
    with pytest.raises(ConfigError) as caught:
        slot_capacity(32, slots, 16, MiB)

    assert str(caught.value) == f"slots is {slots!r}; use an int from 1 to 131072"
