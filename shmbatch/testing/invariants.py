"""What is promised of batches, I1 to I7, and the watcher that holds a simulation against it.

The watcher knows what waits by the contract's own words, and not from the executor: by the calls
that were made, withdrawn and launched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..contract.columns import Column
from ..contract.packing import packing
from ..contract.pieces import Pieces, align
from ..executor.batcher import NEVER_NS, SealReason
from .comparing import Tolerance, difference, shown
from .poller import Watcher

if TYPE_CHECKING:
    from .producer import Call, Producer
    from .simulation import Flight, Simulation

PROMISES = {
    "I1": "no batch exceeds max_batch_size",
    "I2": "every call has exactly one outcome",
    "I3": "outcome i goes to caller i",
    "I4": "when something is due and the executor can launch, a batch launches at once",
    "I5": "a call is passed over only by calls it takes turns with",
    "I6": "all arguments of one call stand at one index of every column",
    "I7": "a fault changes nothing for the others' outcomes",
}

_EXACT = Tolerance(0.0, 0.0)


def broken(name: str, fact: str) -> NoReturn:
    """Raise the error of a promise that was not kept.

    Raises:
        AssertionError: always.
    """
    raise AssertionError(f"{name} is broken ({PROMISES[name]}): {fact}")


@dataclass
class _Known:
    """What the watcher knows of one function."""

    running: list[list[Call]] = field(default_factory=list)  # batches whose outcomes are not out
    before: list[Call] = field(default_factory=list)  # what waited when a batch was last taken
    reason: SealReason | None = None  # why it was due then
    deadline_ns: int = NEVER_NS
    batches: list[tuple[float, list[Call]]] = field(default_factory=list)  # launched, and when
    pieces: list[Call] = field(default_factory=list)  # of a batch that failed, and not run again


class Contract(Watcher):
    """Raises AssertionError as soon as a simulation breaks one of I1, I2, I4, I5 and I6.

    For functions that do not take turns with each other, and calls without deadlines.
    """

    def __init__(self) -> None:
        self.simulation: Simulation
        self._known: dict[int, _Known] = {}
        self._peaks: Counter[int] = Counter()  # of a producer: most calls outstanding lately

    # ---- what waits, and whether that is due ---------------------------------------------

    def waiting(self, function: int) -> list[Call]:
        """Return the calls of a function that could be launched now."""
        return [call for each in self.simulation.attached(function) for call in each.waiting]

    def due(self, function: int) -> tuple[SealReason | None, int]:
        """Return why a function is due now, if it is; and its deadline."""
        waiting = self.waiting(function)
        if not waiting:
            return None, NEVER_NS
        deadline_ns = min(call.at_ns for call in waiting)
        deadline_ns += self.simulation.functions[function].definition.parameters.wait_ns
        if len(waiting) >= self._most(function):
            return SealReason.SIZE, deadline_ns
        if self._lockstep(function) and not self._absent(function):
            return SealReason.ALL, deadline_ns
        if deadline_ns <= self.simulation.clock.now_ns:
            return SealReason.DEADLINE, deadline_ns
        return (SealReason.DRAIN if self.simulation.draining else None), deadline_ns

    def _of(self, function: int) -> _Known:
        return self._known.setdefault(function, _Known())

    def _most(self, function: int) -> int:
        """How many calls a batch may have: fewer than defined where memory is short."""
        served = self.simulation.functions[function]
        most, limit = served.definition.parameters.max_batch_size, served.retries.limit
        return most if limit is None else min(most, limit.limit)

    def _lockstep(self, function: int) -> bool:
        return self.simulation.functions[function].definition.lockstep

    def _outstanding(self, producer: Producer) -> int:
        running = self._of(producer.function_number).running
        launched = sum(call.producer is producer for batch in running for call in batch)
        return len(producer.waiting) + launched

    def _absent(self, function: int) -> int:
        """How many calls are still to come until everybody has as many as lately at most."""
        return sum(
            max(0, self._peaks[id(each)] - self._outstanding(each))
            for each in self.simulation.attached(function)
        )

    def _launchable(self) -> list[int]:
        # In flight is a batch until its outcomes are published, though its function be done.
        return [number for number, each in enumerate(self.simulation.functions) if each.idle]

    # ---- as the simulation goes on -------------------------------------------------------

    def launching(self, function: int) -> None:
        known = self._of(function)
        known.before = self.waiting(function)
        known.reason, known.deadline_ns = self.due(function)
        for number in self._launchable():
            reason, deadline_ns = self.due(number)
            if known.reason is reason is SealReason.DEADLINE and deadline_ns < known.deadline_ns:
                broken("I4", "the function that was due earliest did not go first")
        for each in self.simulation.attached(function):
            outstanding = self._outstanding(each)
            self._peaks[id(each)] = max(self._peaks[id(each)], outstanding)
            if known.reason is SealReason.DEADLINE:  # who was waited for in vain is so no longer
                self._peaks[id(each)] = outstanding

    def launched(self, flight: Flight, inputs: tuple[Any, ...]) -> None:
        known = self._of(flight.function)
        known.running.append(flight.calls)
        if flight.record.retried:
            self._relaunched(flight, inputs)
            return
        known.batches.append((flight.record.start, flight.calls))
        if flight.rejected:
            return
        number = len(self.simulation.batches)
        served = self.simulation.functions[flight.function]
        most = self._most(flight.function)
        calls, before = flight.calls, known.before
        if len(calls) > most:
            broken("I1", f"batch {number} has {len(calls)} calls, max_batch_size is {most}")
        if known.reason is None or known.reason is not flight.record.reason:
            why = "was not due" if known.reason is None else f"was due by {known.reason.value}"
            broken("I4", f"batch {number} launched by {flight.record.reason.value}, but it {why}")
        if len(set(map(id, calls))) < len(calls):
            broken("I2", f"a call is in batch {number} twice")
        if any(call not in before for call in calls):
            broken("I2", f"batch {number} has a call that was cancelled, or has run before")
        if len(calls) < min(most, len(before)):
            broken("I4", f"batch {number} left calls behind for which it had room")
        self._check_turns(number, calls, before)
        self._check_columns(number, calls, served.definition.signature.parameters, inputs)

    def _relaunched(self, flight: Flight, inputs: tuple[Any, ...]) -> None:
        """Check a part of a batch that failed."""
        number = len(self.simulation.batches)
        known = self._of(flight.function)
        for call in flight.calls:
            if call not in known.pieces:
                broken("I2", f"batch {number} runs {call!r} again, whose batch did not fail")
            known.pieces.remove(call)
        columns = self.simulation.functions[flight.function].definition.signature.parameters
        self._check_columns(number, flight.calls, columns, inputs)

    def completed(self, function: int, halved: bool) -> None:
        known = self._of(function)
        calls = known.running.pop(0)
        if halved:
            known.pieces += calls
            return
        if not self.simulation.functions[function].retries.in_pieces:
            calls = calls + known.pieces  # nobody waited for these any more
            known.pieces = []
        for call in calls:
            if call.cancelled and self._peaks[id(call.producer)] > 1:
                self._peaks[id(call.producer)] -= 1

    def waits(self, until_ns: int) -> None:
        for number in self._launchable():
            reason, deadline_ns = self.due(number)
            address = self.simulation.functions[number].address
            if reason is not None:
                broken("I4", f"the executor does nothing though {address} is due ({reason.value})")
            if deadline_ns < until_ns:
                broken("I4", f"the executor would sleep beyond the deadline of {address}")

    # ---- in the end ----------------------------------------------------------------------

    def check_end(self) -> None:
        """Hold a simulation that has drained against I2 and I5."""
        for call in self.simulation.calls:
            if call.producer.gone or call.cancelled:
                continue
            if not call.done():
                broken("I2", f"{call!r} has no outcome")
            if call.batch is None:
                broken("I2", f"{call!r} has an outcome and was in no batch")
        for known in self._known.values():
            for at, (_, batch) in enumerate(known.batches):
                for call in batch:
                    if not call.cancelled:
                        _check_passed_over(call, known.batches[:at])

    def _check_turns(self, number: int, calls: list[Call], before: list[Call]) -> None:
        queues: dict[int, list[Call]] = {}
        for call in before:
            queues.setdefault(id(call.producer), []).append(call)
        taken = {}
        for key, queue in queues.items():
            mine = [call for call in calls if id(call.producer) == key]
            taken[key] = len(mine)
            if mine != queue[: len(mine)]:
                broken("I5", f"batch {number} has calls of {queue[0].producer.name} out of order")
        for key, queue in queues.items():
            if taken[key] < len(queue) and max(taken.values()) > taken[key] + 1:
                broken("I5", f"{queue[0].producer.name} had no turn in batch {number}")

    def _check_columns(
        self, number: int, calls: list[Call], columns: tuple[Column, ...], inputs: tuple[Any, ...]
    ) -> None:
        for row, call in enumerate(calls):
            for column, values, value in zip(columns, inputs, call.values, strict=True):
                expected = _arrived(column, call, value)
                found = _row(column, values, row)
                fact = difference(found, expected, _EXACT)
                if fact is not None:
                    broken(
                        "I6",
                        f"row {row} of {column.name!r} in batch {number} is {shown(found)}, and "
                        f"{call!r} has {shown(expected)} there",
                    )


def _check_passed_over(call: Call, batches: list[tuple[float, list[Call]]]) -> None:
    """I5: by at most its place in line, plus one, of each other producer's calls."""
    earlier = [batch for start, batch in batches if start > call.at]
    place = sum(other.producer is call.producer for batch in earlier for other in batch)
    others = Counter(
        other.producer.name
        for batch in earlier
        for other in batch
        if other.producer is not call.producer
    )
    for name, count in others.items():
        if count > place + 1:
            broken("I5", f"{call!r} was passed over by {count} calls of {name}")


def _arrived(column: Column, call: Call, value: Any) -> Any:
    """Return what the function is to see of a value that a call has."""
    subject = f"{column.name!r} of {call!r}"
    packed = packing(column, subject)
    if packed is None:
        return value
    return packed.unpack(_joined(packed.pack(value, subject)), subject)


def _joined(pieces: Pieces) -> bytearray:
    """Return pieces as they stand in a slot."""
    payload = bytearray()
    for piece in pieces:
        payload.extend(bytes(align(len(payload)) - len(payload)))
        payload.extend(piece)
    return payload


def _row(column: Column, values: Any, row: int) -> Any:
    """Return one value of what the function was given for a column."""
    if not column.padded:
        return values[row]
    rows, lengths = values
    counts = np.asarray(lengths[row]).reshape(-1).tolist()
    where = [slice(None)] * (rows.ndim - 1)
    for axis, length in zip(column.variable, counts, strict=True):
        where[axis] = slice(length)
    return rows[row][tuple(where)]
