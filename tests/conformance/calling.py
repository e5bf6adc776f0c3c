"""Calls made at once, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import shmbatch
from tests.processes import PATIENCE_S


def outcomes(function: shmbatch.Function, inputs: Iterable[Any]) -> list[Any]:
    """Call *function* once for each of *inputs*; return each one's result or exception."""
    calls = [function.spawn(value) for value in inputs]
    found: list[Any] = []
    for call in calls:
        try:
            found.append(call.get(PATIENCE_S))
        except Exception as error:
            found.append(error)
    return found


def batches(told: Iterable[tuple[int, list[int]]]) -> list[list[int]]:
    """Return the inputs of each batch, in the order in which the batches ran."""
    return [xs for _, xs in sorted(dict(told).items())]
