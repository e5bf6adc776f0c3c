# ruff: noqa: F722, F821, UP037 - jaxtyping's shapes are strings that are no annotations
"""What a function that is read-only gets to see: its slots, or a copy, and neither to write to."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import BFloat16, Float32, Int64
from torch import Tensor

import shmbatch
from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.columns import Column
from shmbatch.contract.definition import Definition
from shmbatch.contract.packing import packing
from shmbatch.contract.ragged import Padded
from shmbatch.contract.signature import Signature
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.cuda import Cuda
from shmbatch.executor.staging.devices import Cpu, Device
from shmbatch.testing import Simulation, run_batch
from tests.executor.fake_gpu import FakeGpu
from tests.rings import Served, Wire, array, signature

Rows = Float32[np.ndarray, "batch 3"]


def served(contract: Signature, device: Device | None = None, **options: Any) -> ServedFunction:
    """A function that is read-only, unless *options* say otherwise, of up to 8 calls a batch."""
    definition = Definition("f", lambda *xs: xs[0], contract, BatchParameters(8, 0), None)
    definition = replace(definition, **({"read_only": True} | options))
    return ServedFunction(definition, "app.f", device or Cpu(), None, 8)


class Lender:
    """A producer whose slots are lent to a function, and another one whose are not."""

    def __init__(self, function: ServedFunction) -> None:
        contract = function.definition.signature
        self.staging = function._staging
        self.wires = [Wire(contract, capacity=8) for _ in range(2)]
        self.executor = Served(*self.wires)
        function.lend(self.wires[0].executor, self.wires[0].memory)

    def inputs(self, *calls: tuple[Any, ...], by: int = 0) -> list[Any]:
        """What the function gets for these calls of one producer, which it then answers."""
        for values in calls:
            self.wires[by].submit(*values)
        self.executor.take()
        return self.staging.gather(self.executor.batch)[0]

    def reads(self, stack: Any) -> bool:
        """Whether a stack is memory of the producer whose slots are lent."""
        memory = np.frombuffer(self.wires[0].memory, np.uint8)
        tensor = stack.view(torch.uint8) if isinstance(stack, torch.Tensor) else stack
        return np.shares_memory(memory, np.asarray(tensor))


def row(column: Column, x: float) -> Any:
    dtype = getattr(torch, column.dtype)
    return column.coerce(torch.full(column.shape, x, dtype=dtype), "x")


# ---- what is lent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        array("float32", 3),
        array("uint8", 3),  # rows that are aligned to nothing
        array("int64"),
        array("float64", 2, 3, library="torch"),
        array("bfloat16", 3, library="torch"),
    ],
    ids=str,
)
def test_neighbours_of_one_producer_are_seen_where_they_stand(column: Column) -> None:
    lender = Lender(served(signature(column, "int")))

    stack, numbers = lender.inputs(*((row(column, x), x) for x in range(3)))
    assert lender.reads(stack)
    assert stack.shape == (3, *column.shape)
    assert [float(each.max()) for each in stack] == numbers == [0, 1, 2]
    lender.executor.answer(0, 0, 0)

    later, _ = lender.inputs(*((row(column, x), x) for x in (5, 6)))  # in the slots behind
    assert lender.reads(later)
    assert [float(each.max()) for each in later] == [5, 6]
    assert [float(each.max()) for each in stack] == [0, 1, 2]


def test_all_else_is_gathered() -> None:
    column = array("float32", 3)
    values = [(row(column, x),) for x in range(4)]

    lender = Lender(served(signature(column)))
    (stack,) = lender.inputs(*values[:2], by=1)
    assert not lender.reads(stack), "of a producer whose slots are not lent"
    lender.executor.answer(0, 0)

    lender.wires[1].submit(*values[2])
    (stack,) = lender.inputs(*values[:2])
    assert not lender.reads(stack), "of two producers"
    assert sorted(stack[:, 0].tolist()) == [0, 1, 2]
    lender.executor.answer(0, 0, 0)

    lender = Lender(served(signature(column)))
    for each in values:
        lender.wires[0].submit(*each)
    lender.executor.take()
    lender.executor.batch.reject(1, b"")
    ((stack,), _) = lender.staging.gather(lender.executor.batch)
    assert not lender.reads(stack), "of slots that are no neighbours"
    assert stack[:, 0].tolist() == [0, 2, 3]
    assert not stack.flags.writeable

    part = lender.executor.batch.split(1)
    ((stack,), _) = lender.staging.gather(part)
    assert lender.reads(stack), "of a part that is one run"
    assert stack[:, 0].tolist() == [2, 3]


def test_a_function_that_promises_nothing_is_lent_nothing() -> None:
    column = array("float32", 3)
    lender = Lender(served(signature(column), read_only=False))
    (stack,) = lender.inputs((row(column, 1),))
    assert not lender.reads(stack)
    assert stack.flags.writeable


def test_beside_what_python_has_to_unpack_arrays_are_lent() -> None:
    packed = Column("x0", "pickle", "", "", (), max_bytes=100)
    column = array("float32", 3, name="x1")
    lender = Lender(served(Signature((packed, column), signature("int").result)))
    packer = packing(packed, "x")
    assert packer is not None
    numbers, stack = lender.inputs(*((packer.pack(x, "x"), row(column, x)) for x in (7, 8)))
    assert numbers == [7, 8]
    assert lender.reads(stack)


def test_values_without_bytes_are_lent_as_well_as_can_be() -> None:
    column = array("float32", 0, 3)
    lender = Lender(served(signature(column)))
    (stack,) = lender.inputs((row(column, 0),), (row(column, 0),))
    assert stack.shape == (2, 0, 3)
    assert not stack.flags.writeable


PADDED = Column("x0", "ragged", "numpy", "float32", (-4,), ("n",), True)


@pytest.mark.parametrize(
    ("column", "options"),
    [(array("float32", 3), {"batch_sizes": (2, 8)}), (PADDED, {})],
    ids=["to allowed sizes", "to the longest"],
)
def test_what_is_padded_is_copied_and_read_only_all_the_same(
    column: Column, options: dict[str, Any]
) -> None:
    lender = Lender(served(Signature((column,), signature("int").result), **options))
    for values in ([3.0], [4.0, 5.0]):
        (seen,) = lender.inputs(*((np.full(3, x, np.float32),) for x in values))
        stacks = list(seen) if isinstance(seen, Padded) else [seen]
        assert float(stacks[0][len(values) - 1].max()) == values[-1]
        for stack in stacks:
            assert not lender.reads(stack)
            assert not stack.flags.writeable
        lender.executor.answer(*(0 for _ in values))


def test_arrays_beside_tensors_on_a_device_are_read_only() -> None:
    tensors, arrays = array("float32", 3, library="torch"), array("float32", 3)
    lender = Lender(served(signature(tensors, arrays), Cuda(FakeGpu())))
    _, stack = lender.inputs((np.ones(3, np.float32), np.full(3, 2, np.float32)))
    assert not lender.reads(stack)
    assert not stack.flags.writeable
    assert stack.tolist() == [[2, 2, 2]]


# ---- what a function may do with it -----------------------------------------------------------


def test_what_a_function_has_kept_outlives_its_producer() -> None:
    column = array("float32", 3)
    lender = Lender(served(signature(column)))
    (kept,) = lender.inputs((row(column, 7),))
    lender.executor.answer(0)
    gone = weakref.ref(lender.wires[0].memory)

    lender.executor.inbox.detach(lender.wires[0].executor)
    lender.wires.clear()
    gc.collect()
    assert kept.tolist() == [[7, 7, 7]]
    assert gone() is not None
    del kept
    assert gone() is None, "the last one to look at it unmaps it"


def promising(function: Callable[..., Any], **options: Any) -> Any:
    """A function of up to 4 calls a batch that leaves its inputs as they are."""
    return shmbatch.batched(max_batch_size=4, wait_ms=1, read_only=True, **options)(function)


def same(xs: Rows) -> Rows:
    return xs


def same_tensors(xs: BFloat16[Tensor, "batch 3"]) -> BFloat16[Tensor, "batch 3"]:
    return xs


def same_list(xs: Rows) -> Rows:
    return list(xs)  # type: ignore[return-value]


async def same_later(xs: Rows) -> Rows:
    return xs[:]


def crossed(xs: Rows, ys: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]:
    return xs  # type: ignore[return-value]


@pytest.mark.parametrize("function", [same, same_tensors, same_list, same_later, crossed])
def test_inputs_that_are_given_back_are_results_like_any_other(function: Any) -> None:
    values = [np.full(3, x, np.float32) for x in range(4)]
    if function is same_tensors:
        values = [torch.from_numpy(each).to(torch.bfloat16) for each in values]
    calls = [(each, torch.zeros(3)) if function is crossed else (each,) for each in values]
    results = run_batch(promising(function), calls).results
    assert [each.tolist() for each in results] == [each.tolist() for each in values]


@pytest.mark.parametrize("producers", [1, 2])
def test_a_broken_promise_is_an_error_at_once_copied_or_not(producers: int) -> None:
    def doubles(xs: Rows) -> Rows:
        xs *= 2
        return xs

    with Simulation(promising(doubles)) as simulation:
        calls = [simulation.producer().call(np.ones(3, np.float32)) for _ in range(producers)]
        simulation.run()
        errors = [call.error() for call in calls]
        assert [type(error) for error in errors] == [ValueError] * producers
        assert "output array is read-only" in str(errors[0])
        assert len(simulation.batches) == 1


def adds(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]:
    return xs + 1


def doubles(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]:
    return xs.mul_(2)


async def clears(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]:
    await asyncio.sleep(1)
    xs.zero_()
    raise ValueError("no more")


def fills(xs: Float32[Tensor, "batch seq"]) -> Float32[Tensor, "batch seq"]:
    rows, _ = xs
    rows[:, 0] = 9
    return rows


def test_a_simulation_finds_out_about_tensors_that_were_written_to() -> None:
    row = torch.tensor([1, math.nan, 2])
    assert run_batch(promising(adds), [(row,)]).results[0].tolist() == pytest.approx(
        [2, math.nan, 3], nan_ok=True
    )
    padded = promising(fills, max_lengths={"seq": 3}, ragged="pad")
    for target in (promising(doubles), promising(clears), padded):
        with pytest.raises(AssertionError) as caught:
            run_batch(target, [(row,)])
        name = target.function.__name__
        assert str(caught.value).startswith(
            f"'{name}' is read_only, and has changed parameter 'xs': "
        )


def test_a_batch_in_parts_sees_the_same_inputs_in_each() -> None:
    def refuses(xs: Int64[np.ndarray, "batch 2"]) -> Int64[np.ndarray, "batch"]:
        assert not xs.flags.writeable
        seen.append(xs[:, 0].tolist())
        if (xs < 0).any():
            raise ValueError("negative")
        return xs.sum(1)

    seen: list[list[int]] = []
    with Simulation(promising(refuses, on_error="isolate")) as simulation:
        producer = simulation.producer()
        calls = [producer.call(np.full(2, x)) for x in (1, 2, -3, 4)]
        simulation.run()
        assert isinstance(calls[2].error(), ValueError)
        assert [calls[at].get() for at in (0, 1, 3)] == [2, 4, 8]
    assert seen[0] == [1, 2, -3, 4]
    assert len(seen) > 2
