"""What a function is given before it serves anybody."""

from __future__ import annotations

import logging

import pytest

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging import Cpu
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
