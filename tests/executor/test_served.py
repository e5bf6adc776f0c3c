"""What a function is given before it serves anybody."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.devices import Cpu
from tests.rings import ADD, array, signature

LARGE = signature(array("uint8", 100_000_000))


def served(size: int, slots: int | None, most: int, contract: object = ADD) -> ServedFunction:
    definition = Definition("f", lambda *xs: xs, contract, BatchParameters(size, 0), slots)
    return ServedFunction(definition, "app.f", Cpu(), None, most)


@pytest.mark.parametrize(
    ("function", "capacity", "message"),
    [
        (
            lambda: served(8, 200, 64),
            64,
            "one producer gets 64 slots for app.f, fewer than slots=200; "
            "this transport has no more, linux has",
        ),
        (
            lambda: served(100, None, 64),
            64,
            "one producer gets 64 slots for app.f, fewer than max_batch_size 100; "
            "this transport has no more, linux has",
        ),
        (
            lambda: served(4, None, 64, LARGE),
            2,
            "one producer gets 2 slots for app.f, fewer than max_batch_size 4; "
            "slots= says how many",
        ),
        (lambda: served(64, None, 64), 64, None),
        (lambda: served(64, 64, 64), 64, None),
        (lambda: served(64, None, 1 << 17), 128, None),
        (lambda: served(8, 200, 1 << 17), 200, None),
    ],
)
def test_fewer_slots_than_asked_for_or_than_fill_a_batch_are_warned_of(
    function: object, capacity: int, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    each = function()  # type: ignore[operator]
    assert each.capacity == capacity
    with caplog.at_level(logging.WARNING, "shmbatch"):
        each.warn_of_few_slots()
    assert [record.getMessage() for record in caplog.records] == ([message] if message else [])
    each.close()


# ---- allowed sizes: warming up ----


def sized(function: object, contract: object, **options: object) -> ServedFunction:
    parameters = BatchParameters(4, 0)
    definition = Definition(
        "f",
        function,
        contract,
        parameters,
        None,
        batch_sizes=(1, 4),
        **options,  # type: ignore
    )
    return ServedFunction(definition, "app.f", Cpu(), None, 64)


STACKS = signature(array("float32", 2), array("int64"), result=array("float32", 2))


def test_a_function_with_allowed_sizes_is_warmed_up_on_zeros_of_each() -> None:
    seen: list[tuple[object, ...]] = []

    def function(xs: Any, ys: Any) -> Any:
        seen.append((xs.shape, ys.shape, float(abs(xs).sum() + abs(ys).sum())))
        return xs

    each = sized(function, STACKS)
    each.warm_up()
    assert seen == [((1, 2), (1,), 0.0), ((4, 2), (4,), 0.0)]
    each.close()


def test_a_function_that_fails_on_zeros_is_served_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def function(xs: Any, ys: Any) -> Any:
        raise ZeroDivisionError("nothing but zeros")

    each = sized(function, STACKS)
    with caplog.at_level(logging.WARNING, "shmbatch"):
        each.warm_up()
    (record,) = caplog.records
    assert record.getMessage() == "app.f fails on zeros, to warm up"
    assert record.exc_info is not None
    each.close()


def test_nothing_is_run_where_lists_would_have_to_be_invented() -> None:
    def function(xs: Any) -> Any:
        raise AssertionError("it was run")

    for contract in (ADD, signature("int", array("float32", 2))):
        each = sized(function, contract)
        each.warm_up()
        each.close()
    each = served(4, None, 64, STACKS)  # without sizes nobody has asked for it
    each.warm_up()
    each.close()


def test_graphs_where_there_is_no_gpu_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    tensors = signature(array("float32", 2, library="torch"), result=array("float32"))
    with caplog.at_level(logging.WARNING, "shmbatch"):
        sized(lambda xs: xs[:, 0], tensors, cuda_graphs=True).close()
    assert [record.getMessage() for record in caplog.records] == [
        "app.f runs without CUDA graphs: cpu has none"
    ]
