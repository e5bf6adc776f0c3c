"""How one finding is told: how bad it is, what was looked at, what was found, and what to do."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """What one check has found. A warning works, for less or slower; a problem does not."""

    level: Level
    subject: str
    found: str
    remedy: str = ""  # of what is not ok


def ok(subject: str, found: str) -> Finding:
    return Finding("ok", subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    return Finding("warning", subject, found, remedy)


def problem(subject: str, found: str, remedy: str) -> Finding:
    return Finding("problem", subject, found, remedy)


def nbytes(amount: int) -> str:
    """Say how much memory, to three digits."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if amount >= size:
            return f"{amount / size:.{0 if amount >= 100 * size else 1}f} {unit}"
    return f"{amount // 1024} KiB"
