"""What every producer has submitted and got, in files that outlive its SIGKILL.

A lane is what makes calls one after the other: a thread, or an event loop. It alone writes its
row. A row is counters, so that its owner may be killed between any two of them: then what is
submitted and has no outcome was in flight.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PRODUCERS_MAX = 100_000  # of a whole soak; both files are sparse
LANES = 4
_ROW = 128  # counters, so that four lanes fill a page
_PAGE = LANES * _ROW * 8

# Calls of `once` that a lane can make, for each of which its executions are counted.
PLACES = 8192


class Column(IntEnum):
    """The counters of a lane."""

    SUBMITTED = 0  # before the call is made
    # Its outcome, one of:
    RIGHT = 1
    BAD = 2  # a bad input got the error that it deserves
    REFUSED = 3  # an input that does not fit, by InputError
    CANCELLED = 4
    TIMEOUT = 5
    DEADLINE = 6
    RING_FULL = 7
    GONE = 8  # the executor was killed, and the call may not be executed anew
    DROPPED = 9  # nobody asked for its outcome
    WRONG = 10  # another result than its input's
    UNEXPECTED = 11  # an error that nothing explains
    UNREACHED = 12  # nobody served the name
    # What is no outcome:
    CONNECTS = 20
    BUSY_SINCE_NS = 21  # since when it makes its last step; 0 between steps
    BEGUN = 22
    ENDED = 23


OUTCOMES = tuple(column for column in Column if Column.RIGHT <= column <= Column.UNREACHED)
VIOLATIONS = (Column.WRONG, Column.UNEXPECTED, Column.UNREACHED)


class Mark(IntEnum):
    """What a producer knows of a call of `once` by its outcome."""

    RAN = 1
    NEVER_RAN = 2


class Control(IntEnum):
    """What the director tells all producers; in row 0 of the ledger."""

    OVER = 0  # end, in good order
    KILLS_BEGUN = 1  # of executors; one more just before
    KILLS_ENDED = 2  # one more just after


class Ledger:
    """The ledger of a whole soak, mapped as far as one process needs it.

    Args:
        producer: map this producer's rows and the director's; None for all.
    """

    def __init__(self, folder: Path, producer: int | None = None) -> None:
        self._folder = folder
        self._control = _mapped(folder / "ledger", 0, 1)[0, 0]
        self.producer = producer
        if producer is None:
            self.rows = _mapped(folder / "ledger", 0, PRODUCERS_MAX)
        else:
            self.rows = _mapped(folder / "ledger", 1 + producer, 1)
        self._marks = os.open(folder / "marks", os.O_RDWR | os.O_CLOEXEC)

    @staticmethod
    def create(folder: Path) -> None:
        for name, nbytes in (
            ("ledger", (1 + PRODUCERS_MAX) * _PAGE),
            ("marks", PRODUCERS_MAX * LANES * PLACES),
            ("executions", PRODUCERS_MAX * LANES * PLACES),
        ):
            path = folder / name
            path.touch(mode=0o600)
            os.truncate(path, nbytes)

    def lane(self, lane: int) -> NDArray[np.int64]:
        """This producer's row for that lane."""
        row: NDArray[np.int64] = self.rows[0, lane]
        return row

    def told(self, what: Control) -> int:
        return int(self._control[what])

    def tell(self, what: Control) -> None:
        """Add one; the director's alone."""
        self._control[what] += 1

    def unsay(self, what: Control) -> None:
        self._control[what] = 0

    def mark(self, place: int, mark: Mark) -> None:
        os.pwrite(self._marks, bytes([mark]), place)

    def lanes_of(self, producer: int) -> NDArray[np.int64]:
        """All rows of one producer, in a ledger of all."""
        lanes: NDArray[np.int64] = self.rows[1 + producer]
        return lanes

    def executed_wrongly(self, producers: int) -> dict[str, int]:
        """Compare, call by call, how often it was executed with what its producer was told."""
        nbytes = LANES * PLACES
        found = {"executed twice": 0, "never executed": 0, "executed all the same": 0}
        with (self._folder / "executions").open("rb") as executions:
            for producer in range(producers):
                marks = np.frombuffer(os.pread(self._marks, nbytes, producer * nbytes), np.uint8)
                executions.seek(producer * nbytes)
                counts = np.frombuffer(executions.read(nbytes), np.uint8)
                found["executed twice"] += int((counts > 1).sum())
                found["never executed"] += int(((marks == Mark.RAN) & (counts == 0)).sum())
                ran = (marks == Mark.NEVER_RAN) & (counts > 0)
                found["executed all the same"] += int(ran.sum())
        return found

    def close(self) -> None:
        os.close(self._marks)


def place_of(producer: int, lane: int, number: int) -> int | None:
    """Where a call of `once` is counted; None if the lane has no place left for it."""
    if number >= PLACES:
        return None
    return (producer * LANES + lane) * PLACES + number


def _mapped(path: Path, first: int, count: int) -> NDArray[np.int64]:
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), count * _PAGE, offset=first * _PAGE)
    return np.frombuffer(memory, np.int64).reshape(count, LANES, _ROW)
