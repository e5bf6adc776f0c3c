"""Inputs come out of the slots as the annotation promised them, into buffers used in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shmbatch.contract.columns import _RAW, _WIRE, Column
from shmbatch.contract.signature import Signature
from shmbatch.executor.staging import Cpu, Staging
from tests.rings import Served, Wire, array, signature

ROWS = 4
NUMPY_DTYPES = sorted(_WIRE.keys() - _RAW.keys())


def staged(contract: Signature, inputs: list[tuple[Any, ...]], device: Any = None) -> list[Any]:
    """What a function gets for these calls."""
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    for values in inputs:
        wire.submit(*values)
    served.take()
    return Staging(contract, ROWS, device or Cpu()).gather(served.batch)


def coerced(column: Column, value: Any) -> Any:
    return column.coerce(value, "value")


def test_scalars_arrive_as_lists() -> None:
    contract = signature("int", "float", "bool")

    inputs = staged(contract, [(1, 0.5, True), (-2, -0.5, False)])

    assert inputs == [[1, -2], [0.5, -0.5], [True, False]]
    assert [type(column[0]) for column in inputs] == [int, float, bool]
    assert all(type(column) is list for column in inputs)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_columns_arrive_as_one_stack(dtype: str, shape: tuple[int, ...]) -> None:
    contract = signature(array(dtype, *shape))
    values = [np.full(shape, i, dtype) for i in (0, 1, 1)]

    (stack,) = staged(contract, [(value,) for value in values])

    assert type(stack) is np.ndarray
    assert stack.dtype == np.dtype(dtype)
    assert stack.flags.c_contiguous
    assert stack.flags.writeable
    np.testing.assert_array_equal(stack, np.stack(values))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", sorted(_WIRE))
def test_torch_columns_arrive_as_one_tensor(dtype: str, shape: tuple[int, ...]) -> None:
    contract = signature(array(dtype, *shape, library="torch"))
    values = [torch.full(shape, i).to(getattr(torch, dtype)) for i in (0.0, 1.0, 1.0)]
    (column,) = contract.parameters

    (stack,) = staged(contract, [(coerced(column, value),) for value in values])

    assert type(stack) is torch.Tensor
    assert stack.dtype == getattr(torch, dtype)
    assert stack.shape == (3, *shape)
    assert stack.is_contiguous()
    assert stack.device.type == "cpu"
    assert not stack.requires_grad
    assert torch.equal(stack.to(torch.complex64), torch.stack(values).to(torch.complex64))


def test_columns_of_all_kinds_stand_at_their_places() -> None:
    """I6: what belongs to one call stands at one index of every column."""
    contract = signature("int", array("float32", 2), "bool", array("int64", library="torch"))
    (_, vector, _, _) = contract.parameters
    calls = [
        (i, coerced(vector, np.array([i, -i], "float32")), i % 2 == 0, np.array(i * 10))
        for i in range(3)
    ]

    numbers, vectors, flags, tens = staged(contract, calls)

    assert numbers == [0, 1, 2]
    assert vectors.tolist() == [[0, 0], [1, -1], [2, -2]]
    assert flags == [True, False, True]
    assert tens.tolist() == [0, 10, 20]


def gathered(staging: Staging, wire: Wire, served: Served, *values: float) -> Any:
    for value in values:
        wire.submit(np.array([float(value)]))
    served.take()
    (stack,) = staging.gather(served.batch)
    served.batch.scatter([0] * len(values))
    served.batch.complete()
    for ticket in wire.producer.finished(False):
        wire.producer.poll(ticket, 0)
    return stack


def test_a_small_batch_shows_nothing_of_a_larger_one_before_it() -> None:
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    staging = Staging(contract, ROWS, Cpu())

    assert gathered(staging, wire, served, 1, 2, 3).tolist() == [[1], [2], [3]]
    assert gathered(staging, wire, served, 4).tolist() == [[4]]
    assert gathered(staging, wire, served, 5, 6, 7, 8).tolist() == [[5], [6], [7], [8]]


class Counting(Cpu):
    """A device whose copies can be seen."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.copies: list[Any] = []
        self.to_device = self._to_device

    def _to_device(self, staged: Any) -> Any:
        self.copies.append(staged)
        return ("on the device", staged)


@pytest.mark.parametrize(("depth", "sets"), [(1, 1), (2, 3), (3, 4)])
def test_a_batch_in_flight_keeps_its_buffers(depth: int, sets: int) -> None:
    """One set for each batch in flight, and one to gather into meanwhile, in turn."""
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    device = Counting(depth)
    staging = Staging(contract, ROWS, device)

    stacks = [gathered(staging, wire, served, number)[1] for number in range(2 * sets)]

    memory = [stack.__array_interface__["data"][0] for stack in stacks]
    assert len(set(memory)) == sets
    assert memory[:sets] == memory[sets:]
    for number, stack in enumerate(stacks[sets:]):
        assert stack.tolist() == [[sets + number]]


def test_only_arrays_are_copied_to_the_device_and_only_their_rows() -> None:
    device = Counting(2)

    numbers, (where, stack) = staged(
        signature("int", array("float64", 1)), [(1, np.ones(1)), (2, np.ones(1))], device
    )

    assert numbers == [1, 2]
    assert where == "on the device"
    assert len(device.copies) == 1
    assert stack.shape == (2, 1)


def test_a_batch_longer_than_the_staging_is_refused() -> None:
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    for _ in range(3):
        wire.submit(np.zeros(1))
    served.take()

    with pytest.raises(ValueError, match="buffer has 16 bytes, the batch 24"):
        Staging(contract, 2, Cpu()).gather(served.batch)
