"""Instructions that a call takes in its producer, and a batch in the executor.

::

    producer under valgrind --calls--> executor            then the other way round:
    producer                --calls--> executor under valgrind

Answers: how much work is a call, whatever the machine does meanwhile? Microseconds depend on it,
and vary by a third; instructions are the same within a per cent, so a call that has become
dearer by 5 % is seen at once. Of a scalar (`int`), an array of 16 bytes, and one of 64 KB:

remote           `f.remote(x)`, the producer asleep until the result is there; it calls so
                 rarely that it looks, each time, whether the executor lives
spawn and get    `f.spawn(x)`, and later `call.get()`, nobody ever asleep
remote.aio       `await f.remote.aio(x)`, the event loop asleep until then
batch of 1, 32   what the executor does for a batch that is there already, the function apart;
                 and, from these two, for a batch by itself and for each call of it

They are counted by valgrind's callgrind (_callgrind.py) in real processes on both sides
(_counted.py), only one of which is under valgrind. What the kernel does is not in it.

The budget (budget.json) is what was counted when somebody last looked; what is more than 3 %
above is MISSED, and with `--check` an error. It holds for one version of Python and of numpy.
Held against it is the least of all runs: what comes by chance, a look at the clock that found
it late, only adds to it.

Not answered here: how long that takes (bench_throughput, bench_roundtrip), and what waiting
costs (bench_waiting).

    $ python -m benchmarks.bench_instructions                   # about 4 min
    $ python -m benchmarks.bench_instructions --check           # exit status 1 above the budget
    $ python -m benchmarks.bench_instructions --write-budget    # what is counted is the budget
    $ python -m benchmarks.bench_instructions --quick           # smoke test; fewer calls
"""

from __future__ import annotations

import json
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from benchmarks import _callgrind, _counted, _options, _report
from benchmarks.functions_instructions import ALONE, GATES, TURN, Gate

Figures: TypeAlias = dict[str, float]

BUDGET = _report.HERE / "budget.json"
TOLERANCE = 0.03
LOOK_S = 0.0005  # how often the referee looks
RARELY_S = 0.06  # between calls, so that each looks at the executor's life, and not some of them
ROWS = (
    "remote",
    "spawn and get",
    "remote.aio",
    "batch of 1",
    "batch of 32",
    "batch by itself",
    "call of a batch",
)
LABELS = {"int": "int", "small": "16 B", "large": "64 KB"}
FUNCTIONS = _report.HERE / "functions_instructions.py"


def counted(who: str, rounds: int) -> Figures:
    """Run both processes, one of them under valgrind; return the least piece of each label."""
    name = f"instructions-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        counting = _callgrind.counting(Path(folder))
        load = [sys.executable, "-m", "benchmarks._counted", who, name, folder, str(rounds)]
        what = [str(FUNCTIONS), "--name", name, "--wait", "park"]
        if who == "executor":
            serve = [sys.executable, "-m", "benchmarks._served_counted", *counting, "--", *what]
        else:
            serve = [sys.executable, "-m", "shmbatch", "start", *what]
            load[:0] = counting
        with (
            _callgrind.Program(serve, {GATES: folder}) as executor,
            _callgrind.Program(load, {}) as producer,
            Referee(Path(folder), producer.pid, executor.pid),
        ):
            producer.finish(beside=executor)
            executor.finish(told=True)
        labels = json.loads((Path(folder) / _counted.LABELS).read_text())
        pieces = zip(labels, _callgrind.pieces(Path(folder)), strict=True)
        return least([{label: count} for label, count in pieces])


class Referee:
    """Lets the producer call when the executor sleeps, and a function end when the producer does.

    A thread, while it is entered: what it does is not counted.
    """

    def __init__(self, gates: Path, producer: int, executor: int) -> None:
        self._alone, self._turn = Gate(gates, ALONE), Gate(gates, TURN)
        self._producer, self._executor = producer, executor
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        for gate in (self._alone, self._turn):
            gate.begin()  # ends the wait for it
        self._thread.join()
        for gate in (self._alone, self._turn):
            gate.close()

    def _run(self) -> None:
        while True:
            self._turn.await_batch()
            time.sleep(RARELY_S)
            self._await_sleep(self._executor)
            self._turn.open()
            self._alone.await_batch()
            self._await_sleep(self._producer)
            if self._is_over:
                return
            self._alone.open()

    def _await_sleep(self, pid: int) -> None:
        """Wait until the process does: its call is published, so it sleeps for nothing else."""
        stat = Path(f"/proc/{pid}/stat")
        while not self._is_over:
            try:
                if stat.read_text().rpartition(")")[2].split()[0] == "S":
                    return
            except (FileNotFoundError, ProcessLookupError):
                return  # it is over, which others notice
            time.sleep(LOOK_S)


def producer(rounds: int) -> Figures:
    """Count the producer's instructions per call, and those of the functions that hold."""
    pieces = counted("producer", rounds)
    empty = pieces["empty"]
    figures = {"function": (pieces["gate"] - empty) / rounds}
    for payload in LABELS:
        few, many = (pieces[f"{payload}: {what}"] for what in ("few", "many"))
        # Of two counts, so that the pipes over which rounds are told apart cancel.
        calls = (_counted.MANY - _counted.FEW) * rounds
        figures[f"{payload}: spawn and get"] = (many - few) / calls
        for verb in ("remote", "remote.aio"):
            figures[f"{payload}: {verb}"] = pieces[f"{payload}: {verb}"] - empty
    return figures


def executor(rounds: int) -> Figures:
    """Count the executor's instructions per batch, its function included."""
    pieces = counted("executor", rounds)
    pieces.pop(_counted.NOTHING)
    return {label: count / rounds for label, count in pieces.items()}


def least(runs: Sequence[Figures]) -> Figures:
    """Return the least that was counted of each: what comes by chance only ever adds to it."""
    figures: Figures = {}
    for run in runs:
        for name, count in run.items():
            figures[name] = min(count, figures.get(name, count))
    return figures


def together(of_producer: Figures, of_executor: Figures) -> Figures:
    """Return what is reported, the function's own instructions taken off."""
    function = of_producer["function"]
    figures = {name: count for name, count in of_producer.items() if name != "function"}
    small, large = _counted.BATCHES
    for payload in LABELS:
        one, many = (of_executor[f"{payload}: batch of {size}"] for size in (small, large))
        call = (many - one) / (large - small)
        figures[f"{payload}: batch of {small}"] = one - function
        figures[f"{payload}: batch of {large}"] = many - function
        figures[f"{payload}: batch by itself"] = one - function - call
        figures[f"{payload}: call of a batch"] = call
    return {
        name: figures[name]
        for payload in LABELS
        for name in sorted(figures, key=_order)
        if name.startswith(f"{payload}:")
    }


def _order(name: str) -> int:
    return ROWS.index(name.partition(": ")[2])


def held_by() -> dict[str, str]:
    """Return what a budget holds for, and no further."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": ".".join(np.__version__.split(".")[:2]),
        "architecture": platform.machine(),
    }


def budget_of(counts: Figures) -> dict[str, Any]:
    return {
        "held_by": held_by(),
        "instructions": {name: round(count) for name, count in counts.items()},
    }


def comparison(counts: Figures, budget: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Return count, budget and verdict of each row, and which counts are above their budget."""
    holds = budget.get("held_by") == held_by()
    rows, missed = [], []
    for name, count in counts.items():
        allowed = budget["instructions"].get(name) if holds else None
        verdict = ""
        if allowed is not None:
            verdict = f"{count / allowed - 1:+.1%}"
            if count > allowed * (1 + TOLERANCE):
                verdict += ", MISSED"
                missed.append(name)
        rows.append(
            [_report.number(count), "" if allowed is None else _report.number(allowed), verdict]
        )
    return rows, missed


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse(
        "instructions",
        __doc__,
        arguments,
        runs=2,
        flags={
            "check": f"exit status 1 where a count is over {TOLERANCE:.0%} above its budget",
            "write-budget": "make what is counted the budget",
        },
    )
    if not _callgrind.is_here():
        print("valgrind is not installed; without it nothing is counted")
        return
    rounds = 10 if options.quick else 40
    facts = {**_report.machine_facts(datetime.now(UTC)), "valgrind": _callgrind.version()}
    systems = {"producer": partial(producer, rounds), "executor": partial(executor, rounds)}
    found = _options.alternate(systems, options.runs)
    spreads = _report.spreads(
        [together(*run) for run in zip(found["producer"], found["executor"], strict=True)]
    )
    counts = together(least(found["producer"]), least(found["executor"]))
    if options.write_budget:
        _report.write_json(BUDGET, budget_of(counts))
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    compared, missed = comparison(counts, budget)
    rows = []
    for (name, spread), row in zip(spreads.items(), compared, strict=True):
        payload, _, what = name.partition(": ")
        rows.append([f"{LABELS[payload]}, {what}", str(spread), *row])
    print(f"Instructions, {options.runs} runs: median (min..max) over the runs, and the least")
    print(_report.facts_line(facts), end="\n\n")
    print(_report.table(["per call, or batch", "counted", "least", "budget", ""], rows))
    if budget.get("held_by") != held_by():
        print(f"\nno verdict: the budget is that of {budget.get('held_by')}, this is {held_by()}")
    elif not missed:
        print(f"\nnothing is more than {TOLERANCE:.0%} above its budget")
    if options.out is not None:
        document = {
            "benchmark": "instructions",
            "machine": facts,
            "parameters": {"runs": options.runs, "rounds": rounds, "tolerance": TOLERANCE},
            "instructions": {
                name: {**spread.document(), "least": counts[name]}
                for name, spread in spreads.items()
            },
            "budget": budget,
            "missed": missed,
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)
    if options.check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
