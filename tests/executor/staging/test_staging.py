"""Inputs come out of the slots as the annotation promised them, into buffers used in turn."""

from __future__ import annotations

import gc
from typing import Any, cast

import numpy as np
import pytest
import torch

from shmbatch.contract.columns import RAW_DTYPES, WIRE_DTYPES, Column
from shmbatch.contract.exceptions import unpack_exception
from shmbatch.contract.packing import packing
from shmbatch.contract.pieces import Pieces
from shmbatch.contract.ragged import Padded
from shmbatch.contract.signature import Signature
from shmbatch.errors import InputValueError
from shmbatch.executor.staging.devices import Buffer, Cpu, HostBuffer, Results
from shmbatch.executor.staging.staging import Staging
from shmbatch.protocol._core import FAILED
from tests.rings import Served, Wire, array, signature

ROWS = 4
NUMPY_DTYPES = sorted(WIRE_DTYPES.keys() - RAW_DTYPES.keys())


def staged(contract: Signature, inputs: list[tuple[Any, ...]], device: Any = None) -> list[Any]:
    """What a function gets for these calls."""
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    for values in inputs:
        wire.submit(*values)
    served.take()
    inputs, size = staging_of(contract, ROWS, device or Cpu()).gather(served.batch)
    assert size == served.batch.count
    return inputs


def staging_of(contract: Signature, rows: int, device: Any) -> Staging:
    return Staging(contract, rows, device, address="sums.f", module=__name__, record_nbytes=512)


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
@pytest.mark.parametrize("dtype", sorted(WIRE_DTYPES))
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
    ((stack,), _) = staging.gather(served.batch)
    served.batch.scatter([0] * len(values))
    served.batch.complete()
    for ticket in wire.producer.finished(False):
        wire.producer.poll(ticket, 0)
    return stack


def test_a_small_batch_shows_nothing_of_a_larger_one_before_it() -> None:
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    staging = staging_of(contract, ROWS, Cpu())

    assert gathered(staging, wire, served, 1, 2, 3).tolist() == [[1], [2], [3]]
    assert gathered(staging, wire, served, 4).tolist() == [[4]]
    assert gathered(staging, wire, served, 5, 6, 7, 8).tolist() == [[5], [6], [7], [8]]


class Counting(Cpu):
    """A device whose copies can be seen."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.copies: list[Any] = []

    def buffer(self, column: Column, rows: int) -> Buffer:
        return Counted(self, column, rows)

    def results(self, column: Column, rows: int) -> Results:
        return cast(Results, object())


class Counted(HostBuffer):
    """A buffer of it."""

    def __init__(self, device: Counting, column: Column, rows: int) -> None:
        super().__init__(column, rows)
        self._device = device

    def moved(self, shape: tuple[int, ...], size: int) -> Any:
        rows = super().moved(shape, size)
        self._device.copies.append(rows)
        return ("on the device", rows)


@pytest.mark.parametrize(("depth", "sets"), [(1, 1), (2, 3), (3, 4)])
def test_a_batch_in_flight_keeps_its_buffers(depth: int, sets: int) -> None:
    """One set for each batch in flight, and one to gather into meanwhile, in turn."""
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    device = Counting(depth)
    staging = staging_of(contract, ROWS, device)

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
        staging_of(contract, 2, Cpu()).gather(served.batch)


def ragged(dtype: str, library: Any, padded: bool, *lengths: int) -> Column:
    axes = tuple(f"n{at}" if length < 0 else "" for at, length in enumerate(lengths))
    return Column("x0", "ragged", library, dtype, lengths, axes, padded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_of_variable_length_arrive_as_a_list(dtype: str) -> None:
    contract = Signature((ragged(dtype, "torch", False, -3, 2),), signature("int").result)
    values = [torch.full((n, 2), n).to(getattr(torch, dtype)) for n in (3, 0, 1)]
    (column,) = contract.parameters

    (rows,) = staged(contract, [(coerced(column, value),) for value in values])

    assert type(rows) is list
    assert [row.dtype for row in rows] == [getattr(torch, dtype)] * 3
    assert all(torch.equal(*pair) for pair in zip(rows, values, strict=True))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_values_of_variable_length_arrive_padded_with_zeros(library: str) -> None:
    contract = Signature((ragged("float32", library, True, -3, 2, -4),), signature("int").result)
    shapes = [(3, 2, 1), (0, 2, 4), (1, 2, 2)]
    values = [np.full(shape, 7, np.float32) for shape in shapes]
    (column,) = contract.parameters

    (padded,) = staged(contract, [(coerced(column, value),) for value in values])

    assert type(padded) is Padded
    rows, lengths = padded
    assert type(rows) is type(lengths) is (np.ndarray if library == "numpy" else torch.Tensor)
    assert tuple(rows.shape) == (3, 3, 2, 4)
    assert lengths.tolist() == [[3, 1], [0, 4], [1, 2]]
    for row, value in zip(rows, values, strict=True):
        n, _, m = value.shape
        assert row[:n, :, :m].tolist() == value.tolist()
        assert float(row.sum()) == value.sum()


def test_one_variable_axis_has_one_length_a_row() -> None:
    contract = Signature((ragged("bfloat16", "torch", True, -3),), signature("int").result)
    (column,) = contract.parameters
    values = [torch.ones(n, dtype=torch.bfloat16) for n in (2, 0)]

    ((rows, lengths),) = staged(contract, [(coerced(column, value),) for value in values])

    assert rows.dtype == torch.bfloat16
    assert rows.tolist() == [[1, 1], [0, 0]]
    assert lengths.tolist() == [2, 0]


def test_a_row_that_cannot_be_read_leaves_the_batch_with_its_error() -> None:
    """I6: the others keep their places, in every column."""
    packed = Column("x0", "pickle", "", "", (), max_bytes=1000)
    contract = Signature((packed, *signature("int", array("int64"), "int").parameters[1:]), packed)
    contract = Signature(contract.parameters, signature("int").result)
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    packer = packing(packed, "value")
    assert packer is not None
    tickets = [
        wire.submit(
            Pieces((b"\xff" * 40,)) if bad else packer.pack({"number": i}, "value"),
            np.array(i),
            i,
        )
        for i, bad in enumerate([True, False, True, False])
    ]
    served.take()
    noted: list[BaseException] = []
    staging = Staging(
        contract,
        ROWS,
        Cpu(),
        address="sums.f",
        module=None,
        record_nbytes=512,
        note=lambda error, calls, level: noted.append(error),
    )

    inputs, size = staging.gather(served.batch)

    assert size == 2
    assert [list(column) for column in inputs] == [[{"number": 1}, {"number": 3}], [1, 3], [1, 3]]
    assert (served.batch.count, served.batch.rejected) == (2, 2)
    assert [type(error) for error in noted] == [InputValueError] * 2
    served.answer(10, 30)
    assert [wire.producer.poll(tickets[i], 0) for i in (1, 3)] == [10, 30]
    for i in (0, 2):
        assert wire.producer.poll(tickets[i], 0) is FAILED
        error = unpack_exception(wire.producer.error(tickets[i]) or b"")
        assert type(error) is InputValueError
        assert str(error).startswith("parameter 'x0' of sums.f cannot be unpickled, got 40 bytes")


def test_a_batch_may_have_no_row_left() -> None:
    packed = Column("x0", "pickle", "", "", (), max_bytes=1000)
    contract = Signature((packed,), signature("int").result)
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    wire.submit(Pieces((b"",)))
    served.take()

    assert staging_of(contract, ROWS, Cpu()).gather(served.batch)[1] == 0

    assert (served.batch.count, served.batch.rejected) == (0, 1)
    served.batch.complete()


def misfits() -> int:
    return sum(type(each) is InputValueError for each in gc.get_objects())


def test_a_rejected_row_leaves_nothing_for_the_garbage_collector() -> None:
    packed = Column("x0", "pickle", "", "", (), max_bytes=1000)
    contract = Signature((packed,), signature("int").result)
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    wire.submit(Pieces((b"\xff" * 40,)))
    served.take()
    staging = staging_of(contract, ROWS, Cpu())
    gc.collect()
    gc.disable()
    try:
        before = misfits()  # that other test files hold
        staging.gather(served.batch)
        assert misfits() == before
    finally:
        gc.enable()
    served.batch.complete()


# ---- allowed sizes ----


def padded(contract: Signature, inputs: list[tuple[Any, ...]], device: Any = None) -> Any:
    """What a function gets for these calls where a batch has 2 or 4 rows."""
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    for values in inputs:
        wire.submit(*values)
    served.take()
    staging = Staging(
        contract,
        ROWS,
        device or Cpu(),
        sizes=(2, 4),
        address="sums.f",
        module=__name__,
        record_nbytes=512,
    )
    return staging.gather(served.batch)


@pytest.mark.parametrize(("calls", "expected"), [(1, 2), (2, 2), (3, 4), (4, 4)])
def test_a_batch_is_filled_up_to_an_allowed_size_with_its_last_input(
    calls: int, expected: int
) -> None:
    """I6: padding rows, too, stand at one index of every column."""
    contract = signature("int", array("float32", 2), array("bfloat16", library="torch"))
    (_, _, narrow) = contract.parameters
    values = [
        (i, np.array([i, -i], "float32"), coerced(narrow, torch.tensor(i, dtype=torch.bfloat16)))
        for i in range(calls)
    ]

    (numbers, vectors, narrows), size = padded(contract, values)

    wanted = [min(i, calls - 1) for i in range(expected)]
    assert size == expected
    assert numbers == wanted
    assert vectors.tolist() == [[i, -i] for i in wanted]
    assert narrows.tolist() == wanted


def test_padded_stacks_and_their_lengths_are_filled_up_too() -> None:
    contract = Signature((ragged("float32", "torch", True, -3),), signature("int").result)
    (column,) = contract.parameters
    values = [(coerced(column, torch.full((n,), n, dtype=torch.float32)),) for n in (2, 0, 3)]

    (((rows, lengths),), size) = padded(contract, values)

    assert size == 4
    assert rows.tolist() == [[2, 2, 0], [0, 0, 0], [3, 3, 3], [3, 3, 3]]
    assert lengths.tolist() == [2, 0, 3, 3]


def test_lists_of_arrays_are_filled_up_too() -> None:
    contract = Signature((ragged("float32", "torch", False, -3),), signature("int").result)
    (column,) = contract.parameters

    ((rows,), size) = padded(contract, [(coerced(column, torch.ones(n)),) for n in (2, 1, 3)])

    assert size == 4
    assert [row.tolist() for row in rows] == [[1, 1], [1], [1, 1, 1], [1, 1, 1]]


def test_the_padding_of_a_batch_shows_nothing_in_the_next_one() -> None:
    contract = signature(array("float64", 1))
    wire = Wire(contract, capacity=ROWS)
    served = Served(wire, room=ROWS)
    staging = Staging(
        contract, ROWS, Cpu(), sizes=(4,), address="sums.f", module=None, record_nbytes=512
    )

    assert gathered(staging, wire, served, 1, 2, 3, 4).tolist() == [[1], [2], [3], [4]]
    assert gathered(staging, wire, served, 5).tolist() == [[5]] * 4
    assert gathered(staging, wire, served, 6, 7).tolist() == [[6], [7], [7], [7]]
