"""A value of every dtype comes back bit by bit, whatever its bits mean, NaNs too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmbatch.contract.columns import RAW_DTYPES, WIRE_DTYPES
from tests import processes
from tests.processes import Served

few = settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def dtypes(transport: str) -> Iterator[Served]:
    with processes.served("dtypes.py", "dtypes") as executor:
        yield executor


def values_of(dtype: str) -> st.SearchStrategy[np.ndarray]:
    """Five of the dtype, as they travel: any bits, but of a bool, which has two values."""
    wire = WIRE_DTYPES[dtype]
    any_byte = st.integers(0, 1) if dtype == "bool" else st.integers(0, 255)
    size = 5 * wire.itemsize
    return st.lists(any_byte, min_size=size, max_size=size).map(
        lambda values: np.frombuffer(bytes(values), wire).copy()
    )


@pytest.mark.parametrize("dtype", [each for each in WIRE_DTYPES if each not in RAW_DTYPES])
def test_an_array_of_any_dtype_comes_back_bit_by_bit(dtypes: Served, dtype: str) -> None:
    same = dtypes.connect(f"array_{dtype}")

    @few
    @given(values_of(dtype))
    def comes_back(value: np.ndarray) -> None:
        result = same.remote(value)
        assert (type(result), result.dtype, result.shape) == (np.ndarray, value.dtype, (5,))
        assert result.tobytes() == value.tobytes()

    comes_back()


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_tensor_of_any_dtype_comes_back_bit_by_bit(dtypes: Served, dtype: str) -> None:
    same = dtypes.connect(f"tensor_{dtype}")

    @few
    @given(values_of(dtype))
    def comes_back(value: np.ndarray) -> None:
        result = same.remote(torch.from_numpy(value).view(getattr(torch, dtype)))
        assert (result.dtype, result.shape) == (getattr(torch, dtype), (5,))
        assert result.view(torch.uint8).numpy().tobytes() == value.tobytes()

    comes_back()
