"""What a call may end with, in models with more than one executor."""

from __future__ import annotations

GONE = 20  # in place of a result, and an outcome: the executor died and may have run the call


def result_of(call: int) -> int:
    return call * 16


def one_outcome(process: str, old: int, new: int) -> str | None:
    return f"a call that has the outcome {old} gets another one, {new}" if old else None
