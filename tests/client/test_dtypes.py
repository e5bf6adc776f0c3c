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


@pytest.mark.parametrize("arrays", ["native", "numpy"])
def test_tensors_are_written_and_read_in_place(dtypes: Served, arrays: str) -> None:
    added = dtypes.connect("added", arrays=arrays)
    with added.reserve() as slot:
        xs, ys = slot["xs"], slot["ys"]
        xs[:] = 2
        if arrays == "numpy":
            assert (xs.dtype, ys.dtype) == (np.float32, np.uint16)
            ys[:] = 0x3F80  # 1
        else:
            assert (xs.dtype, ys.dtype) == (torch.float32, torch.bfloat16)
            slot["ys"] = torch.zeros(4, dtype=torch.bfloat16)
            ys += 1
        slot["names"] = np.str_("x")  # has to be coerced, what is in place has not
        with slot.spawn().borrow() as sums:
            assert sums.tolist() == ([0x4040] if arrays == "numpy" else [3]) * 4
            assert sums.dtype == (np.uint16 if arrays == "numpy" else torch.bfloat16)
    connection = added.connect()
    assert connection.ring.free_slots == connection.capacity - 1
    del sums
    assert connection.ring.free_slots == connection.capacity


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_tensor_of_any_dtype_is_lent_bit_by_bit(dtypes: Served, dtype: str) -> None:
    value = torch.arange(5, dtype=torch.uint8).view(torch.bool) if dtype == "bool" else None
    if value is None:
        nbytes = 5 * WIRE_DTYPES[dtype].itemsize
        value = torch.arange(nbytes, dtype=torch.uint8).view(getattr(torch, dtype))
    with dtypes.connect(f"tensor_{dtype}").reserve() as slot:
        slot[0] = value
        call = slot.spawn()
    with call.borrow() as result:
        assert result.dtype == value.dtype
        assert torch.equal(result.view(torch.uint8), value.view(torch.uint8))
