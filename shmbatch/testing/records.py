"""What became of a simulation's batches, as data that a test can compare and a person can read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..executor.batcher import SealReason


@dataclass
class BatchRecord:
    """One batch; equal to another with the same calls at the same times for the same reason."""

    function: str  # its address, or its name where it has none
    calls: tuple[int, ...]  # numbers of its calls, in the order of their rows
    size: int  # rows that the function saw: its calls and the padding up to batch_sizes
    reason: SealReason  # why it stopped filling
    start: float  # virtual seconds since the simulation began
    end: float | None = None  # None while it runs
    raised: bool = False  # the function did: all its calls have that error, or run again in parts
    retried: bool = False  # a part of one that failed

    def __str__(self) -> str:
        took = "runs" if self.end is None else f"took {milliseconds(self.end - self.start)}"
        padded = f" in {self.size} rows" if self.size != len(self.calls) else ""
        again = ", retried" if self.retried else ""
        calls = " ".join(map(str, self.calls))
        if self.raised:
            took += ", raised"
        return (
            f"at {milliseconds(self.start)}  {self.function}  calls {calls}{padded}  "
            f"({self.reason.value}{again}), {took}"
        )


class Batches(list[BatchRecord]):
    """The batches of a simulation, in the order in which they were launched."""

    def __init__(self, batches: Iterable[BatchRecord] = ()) -> None:
        super().__init__(batches)

    @property
    def calls(self) -> list[list[int]]:
        """The numbers of the calls of each batch."""
        return [list(batch.calls) for batch in self]

    @property
    def sizes(self) -> list[int]:
        """How many calls each batch has."""
        return [len(batch.calls) for batch in self]

    @property
    def reasons(self) -> list[SealReason]:
        """Why each batch stopped filling."""
        return [batch.reason for batch in self]

    def of(self, function: str) -> Batches:
        """Return the batches of one function, by its name or its address."""
        return Batches(each for each in self if function in (each.function, _name(each.function)))

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) if self else "no batches"


def milliseconds(seconds: float) -> str:
    """Return a duration as a person writes it; exact to the nanosecond."""
    return f"{round(seconds * 1e3, 6):g} ms" if seconds < 1e3 else f"{seconds:g} s"


def _name(address: str) -> str:
    return address.partition(".")[2]
