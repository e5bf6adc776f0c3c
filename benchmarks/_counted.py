"""The producer whose instructions, or whose executor's, bench_instructions counts.

    python -m benchmarks._counted producer|executor NAME FOLDER ROUNDS

It makes calls in rounds, each a batch. The calls of a round are published while the batch before
runs, and asked for when it is done: nobody ever waits for anybody, so the instructions of a round
are the same whatever the machine does. Who counts `remote` always has to wake the executor, and
always goes to sleep: a referee (bench_instructions) sees to both.

With `producer`, it marks its own pieces. With `executor`, it has the functions mark theirs. What
each piece is, it writes into a file when it is done.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shmbatch
from benchmarks.functions_instructions import GO, HOLD, MARK, TURN, Gate

PAYLOADS = ("int", "small", "large")
FEW, MANY = 8, 32  # calls a round, of the producer that is counted
CALLS = 8  # that are counted of `remote`
BATCHES = (1, 32)  # sizes of the batches of the executor that is counted
WARM = 12  # rounds and calls before the first piece; Python specialises what it runs
LABELS = "labels.json"
NOTHING = ""  # the label of a piece of which nobody wants to know

_VALUES = {"int": 12345, "small": np.arange(2.0), "large": np.arange(8192.0)}


class Marks:
    """What the pieces are of which this process, or the executor, is cut."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def begin(self, label: str) -> None:
        self.labels.append(label)
        os.getppid()

    def end(self) -> None:
        self.begin(NOTHING)


class Rounds:
    """Calls of one function that holds, a batch a round; a piece is so many rounds."""

    def __init__(self, function: Any, value: Any, gate: Gate, marks: Marks, rounds: int) -> None:
        self._spawn = function.spawn
        self._value = value
        self._gate = gate
        self._marks = marks
        self._labels = {WARM + rounds: NOTHING}

    def run(self, calls: int, label: str) -> None:
        """Run batches of so many calls, some to warm up, and then the piece of that label."""
        spawn, value, gate = self._spawn, self._value, self._gate
        gate_open, await_batch = gate.open, gate.await_batch
        labels = {WARM: label, **self._labels}
        pending = [spawn(value)]
        await_batch()  # of one call, during which the first whole round is published
        for number in range(max(labels) + 1):
            following = [spawn(value) for _ in range(calls)]
            marked = number in labels
            gate_open(MARK if marked else GO)
            await_batch()  # the one before is done, and its results are there
            for call in pending:
                result = call.get()
            if marked:
                self._marks.begin(labels[number])
                check(result, value)
            pending = following
        gate_open()
        for call in pending:
            check(call.get(), value)


def producer(connect: Callable[[str], Any], folder: Path, marks: Marks, rounds: int) -> None:
    """Mark a piece that is empty, and one of a gate; then of each payload all that is counted."""
    gate, turn = Gate(folder, HOLD), Gate(folder, TURN)
    for count in (WARM, rounds):
        marks.begin("empty")
        marks.end()
        for _ in range(count):
            gate.open()
        marks.begin("gate")
        for _ in range(count):
            gate.hold()
        marks.end()
        for _ in range(count):
            gate.await_batch()
    for payload in PAYLOADS:
        value = _VALUES[payload]
        held = Rounds(connect(f"hold_{payload}"), value, gate, marks, rounds)
        held.run(FEW, f"{payload}: few")
        held.run(MANY, f"{payload}: many")
        remote = connect(f"alone_{payload}").remote
        label = f"{payload}: remote"
        for _ in range(WARM + CALLS):  # a piece each
            turn.hold()
            marks.begin(label)
            result = remote(value)
            marks.end()
            check(result, value)
        asyncio.run(in_event_loop(remote.aio, value, turn, marks, f"{label}.aio"))


async def in_event_loop(remote: Any, value: Any, turn: Gate, marks: Marks, label: str) -> None:
    for _ in range(WARM + CALLS):
        turn.hold()
        marks.begin(label)
        result = await remote(value)
        marks.end()
        check(result, value)


def executor(connect: Callable[[str], Any], folder: Path, marks: Marks, rounds: int) -> None:
    """Have a piece marked for each payload and size of a batch: so many batches."""
    gate = Gate(folder, HOLD)
    for payload in PAYLOADS:
        value = _VALUES[payload]
        held = Rounds(connect(f"hold_{payload}"), value, gate, marks, rounds)
        for calls in BATCHES:
            held.run(calls, f"{payload}: batch of {calls}")


def check(result: Any, value: Any) -> None:
    assert np.array_equal(result, value), f"got {result!r:.100}, not {value!r:.100}"


def main() -> None:
    what, name, folder, rounds = sys.argv[1:]
    gc.disable()  # as in the executor
    marks = Marks()

    def connect(function: str) -> Any:
        return shmbatch.connect(f"{name}.{function}", 240, wait="park")

    counted = {"producer": producer, "executor": executor}[what]
    counted(connect, Path(folder), marks, int(rounds))
    (Path(folder) / LABELS).write_text(json.dumps(marks.labels))


if __name__ == "__main__":
    main()
