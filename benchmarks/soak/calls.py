"""What a lane's calls are given, and into which counter each outcome belongs."""

from __future__ import annotations

import random
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

import shmbatch
from benchmarks.soak.ledger import Column, Control, Ledger, Mark, place_of
from shmbatch import errors

NAME = "soak"
FUNCTIONS = ("once", "awaited", "again", "frank", "strict", "slow")
JUDGING = ("frank", "strict")  # those that have an opinion on bad inputs
IDEMPOTENT = ("again", "strict")

BAD = 0.01  # of all inputs of those that judge
RESENT_MAX = 3  # executors that may die under a call of an idempotent function
REACHED_S = 60.0  # there is an executor within that time, or something is wrong

_HEAD = struct.Struct("<QIB")  # as in functions.py
_FIXED_NBYTES = 256  # of an input of `once`
_NOWHERE = 2**64 - 1  # where calls are that no lane has a place for any more
_FILLING = random.Random(0).randbytes(8192)

_COLUMNS: dict[type[Exception], Column] = {
    errors.CallCancelled: Column.CANCELLED,
    errors.CallTimeout: Column.TIMEOUT,
    errors.DeadlineExceeded: Column.DEADLINE,
    errors.RingFull: Column.RING_FULL,
}
_NEVER_RUNS = (Column.DEADLINE, Column.RING_FULL)


@dataclass(slots=True)
class Attempt:
    """One call: what was sent, and what may become of it."""

    function: str
    number: int
    payload: bytes
    place: int | None  # where its executions are counted
    is_bad: bool
    kills_before: int
    allowed: tuple[Column, ...]


class Lane:
    """The calls of one thread or event loop, each of which is counted before and after.

    Args:
        lane: which of its producer's rows is its own.
    """

    def __init__(self, ledger: Ledger, lane: int, seed: int) -> None:
        assert ledger.producer is not None
        self.random = random.Random(seed)
        self._ledger = ledger
        self._row = ledger.lane(lane)
        self._lane = lane
        self._number = 0
        self._places_used = 0
        self._functions: dict[str, shmbatch.Function] = {}

    # ---- making calls --------------------------------------------------------------------

    def function(self, name: str) -> shmbatch.Function:
        """Return a handle, connected on its first use."""
        found = self._functions.get(name)
        if found is None:
            found = shmbatch.connect(f"{NAME}.{name}", timeout=REACHED_S)
            self._row[Column.CONNECTS] += 1
            self._functions[name] = found
        return found

    def attempt(self, function: str, *allowed: Column) -> Attempt:
        """Count a call that is about to be made.

        Args:
            allowed: outcomes it may have beside a result and those that everybody's may.
        """
        self._number += 1
        place = None
        if function == "once":
            assert self._ledger.producer is not None
            place = place_of(self._ledger.producer, self._lane, self._places_used)
            self._places_used += 1
        is_bad = function in JUDGING and self.random.random() < BAD
        head = _HEAD.pack(_NOWHERE if place is None else place, self._number, is_bad)
        filling = _FIXED_NBYTES - len(head)
        if function != "once":
            filling = self.random.choice((0, 10, 100, 1000, 4000))
        start = self.random.randrange(4000)
        payload = head + _FILLING[start : start + filling]
        kills = self._ledger.told(Control.KILLS_ENDED)
        self._row[Column.SUBMITTED] += 1
        return Attempt(function, self._number, payload, place, is_bad, kills, allowed)

    def any_function(self) -> str:
        return self.random.choice(FUNCTIONS)

    @staticmethod
    def value(attempt: Attempt) -> Any:
        """What to call the function with."""
        if attempt.function == "once":
            return np.frombuffer(attempt.payload, np.uint8)
        return attempt.payload

    # ---- what becomes of them ------------------------------------------------------------

    def settle(self, attempt: Attempt, get: Callable[[], Any]) -> None:
        """Get a call's outcome and count it."""
        try:
            result = get()
        except Exception as error:
            self.failed(attempt, error)
        else:
            self.returned(attempt, result)

    def outcome(self, attempt: Attempt, outcome: Any) -> None:
        """Count an outcome of a map or of `gather`, where exceptions stand among results."""
        if isinstance(outcome, Exception):
            self.failed(attempt, outcome)
        else:
            self.returned(attempt, outcome)

    def returned(self, attempt: Attempt, result: Any) -> None:
        crc = zlib.crc32(attempt.payload)
        expected: Any = crc
        if attempt.function == "once":
            is_right = result.tolist() == [crc, attempt.number]
        else:
            expected = {"crc": crc} if attempt.function == "frank" else crc
            is_right = result == expected
        if not is_right or attempt.is_bad:
            self._complain(attempt, f"got {result!r}, expected {expected!r}")
            self._count(Column.WRONG)
            return
        if attempt.place is not None:
            self._ledger.mark(attempt.place, Mark.RAN)
        self._count(Column.RIGHT)

    def failed(self, attempt: Attempt, error: Exception) -> None:
        column = self._column(attempt, error)
        if column is Column.UNEXPECTED:
            self._complain(attempt, f"{type(error).__name__}: {error}")
        if column in _NEVER_RUNS:
            self.never_runs(attempt)
        self._count(column)

    def _column(self, attempt: Attempt, error: Exception) -> Column:
        if type(error) is ValueError and attempt.is_bad and error.args == (attempt.number,):
            return Column.BAD
        if isinstance(error, errors.ExecutorGone):
            kills = self._ledger.told(Control.KILLS_BEGUN) - attempt.kills_before
            most = RESENT_MAX if attempt.function in IDEMPOTENT else 1
            return Column.GONE if kills >= most else Column.UNEXPECTED
        if isinstance(error, errors.InputError):
            return Column.REFUSED if Column.REFUSED in attempt.allowed else Column.UNEXPECTED
        if isinstance(error, errors.ExecutorNotFound):
            self._complain(attempt, f"{type(error).__name__}: {error}")
            return Column.UNREACHED
        column = _COLUMNS.get(type(error), Column.UNEXPECTED)
        return column if column in attempt.allowed else Column.UNEXPECTED

    def never_runs(self, attempt: Attempt) -> None:
        """Note that this call is certain not to run."""
        if attempt.place is not None:
            self._ledger.mark(attempt.place, Mark.NEVER_RAN)

    def dropped(self, *attempts: Attempt) -> None:
        """Count calls whose outcome nobody asks for."""
        for _ in attempts:
            self._count(Column.DROPPED)

    def ended_by(self, attempts: list[Attempt], error: Exception) -> None:
        """Count what a map could not yield; an error of its own takes one input with it."""
        for attempt in attempts[:1]:
            self.failed(attempt, error)
        for attempt in attempts[1:]:
            self._complain(attempt, f"was lost in a map that ended with {error!r}")
            self._count(Column.UNEXPECTED)

    def _count(self, column: Column) -> None:
        self._row[column] += 1

    def _complain(self, attempt: Attempt, what: str) -> None:
        bad = " (bad)" if attempt.is_bad else ""
        print(
            f"{datetime.now():%H:%M:%S.%f} producer {self._ledger.producer} lane {self._lane} "
            f"call {attempt.number} of {attempt.function}{bad}: {what}",
            file=sys.stderr,
            flush=True,
        )

    # ---- its life ------------------------------------------------------------------------

    def begins(self) -> None:
        self._row[Column.BEGUN] = 1

    def steps(self) -> None:
        """Note that a step begins, which somebody watches."""
        self._row[Column.BUSY_SINCE_NS] = time.monotonic_ns()

    def rests(self) -> None:
        self._row[Column.BUSY_SINCE_NS] = 0

    def ends(self) -> None:
        self._row[Column.ENDED] = 1
        self.rests()
