"""Calls per second and latency of everything that could batch calls of many processes.

::

    producer 0 --calls--+                         +--> result to its own producer
    producer 1 --calls--+--> one of the systems --+-->
    ...                                           +-->

Answers: what do others make of the same work, under the same load, in the same run? Beside
shmbatch (`auto`; over the transport `linux`, over `posix`, and for tiny in lockstep): transports
with a batching loop written by hand, and systems that batch, in environments of their own
(rivals/). A system that cannot run is a row with the reason. Every answer is checked.

Works: tiny, image, mlp and embed, see _works.py. Three limits beside 4x8, see _limits.py: the
function alone, on full batches that are ready; the same where each input is copied into the batch
before; and where another process hands them over, which takes two copies.

Loads, a closed loop if not said otherwise, see _load.py:

1x1             one producer, one call in flight: a lone call, in batches of one without a wait
4x1, 16x1, 64x1 so many producers that wait for each result before the next call
4x8             four producers with eight calls in flight each
poisson-common  an open loop, the same for all: four producers, calls at random, at half the rate
                that the slowest system that ran reached in 4x8 with the same work
poisson-own     the same at three tenths of the rate that each system itself reached in 4x8: how
                long are its tails when it is busy at ease? The faster, the more it is asked for

Measured in rounds: all systems once per run, every other run backwards. A rival that has failed in
a cell of the table, one work under one load, is not asked again for that cell. Who ends fewer than
300 calls in the measured time is measured four times as long.

Not answered here: what waiting, size and scale cost shmbatch itself (bench_roundtrip,
bench_scale).

    $ python -m benchmarks.rivals.environments              # once; half an hour
    $ python -m benchmarks.bench_rivals                     # hours
    $ python -m benchmarks.bench_rivals --works tiny --loads 4x8 --systems shmbatch,sockets,zmq
    $ python -m benchmarks.bench_rivals --resume            # cells that the JSON has are kept
    $ python -m benchmarks.bench_rivals --quick             # smoke test; figures mean nothing
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks import _limits, _options, _report, _shmbatch
from benchmarks._load import Load
from benchmarks._works import EMBED, TINY, WORKS, Work
from benchmarks.rivals import asked, environments
from benchmarks.rivals.listed import BATCHING, RAW, RIVALS

Figures: TypeAlias = dict[str, float]
Latencies: TypeAlias = Sequence[NDArray[np.int64]]

OURS = {
    "shmbatch": "shmbatch",
    "shmbatch-posix": "shmbatch, posix",
    "shmbatch-lockstep": "shmbatch, lockstep",
}
LABELS = OURS | {name: rival.label for name, rival in RIVALS.items()}
ALL_LABELS = LABELS | _limits.LABELS

RATED = "4x8"  # the load whose rates the open loops are shares of
CLOSED = {
    "1x1": Load(1, 1),
    "4x1": Load(4, 1),
    RATED: Load(4, 8),
    "16x1": Load(16, 1),
    "64x1": Load(64, 1),
}
COMMON, OWN = "poisson-common", "poisson-own"
LOADS = [*CLOSED, COMMON, OWN]
SHARES = {COMMON: 0.5, OWN: 0.3}  # of those rates
OPEN_IN_FLIGHT = 32  # of a producer at most; who has so many begins late, which is counted

SLOWER = 3  # so many times longer is embed measured, of which there are some hundred a second
# Who ends fewer calls in the measured time, a few for each that is in flight, is measured longer.
LEAST_CALLS, LONGER = 300, 4

# What is promised of calls per second: by work and load, over the best of these in each run.
PROMISES: list[tuple[str, str, str, str, Sequence[str], float]] = [
    ("tiny", RATED, "shmbatch", "best raw transport", list(RAW), 2.5),
    ("tiny", RATED, "shmbatch", "best batching system", list(BATCHING), 9),
    ("image", RATED, "shmbatch", RAW["iceoryx2"].label, ["iceoryx2"], 1.0),
    ("image", RATED, "shmbatch", RAW["sockets"].label, ["sockets"], 2.3),
    ("image", RATED, "shmbatch", "best batching system", list(BATCHING), 8),
    ("mlp", RATED, "shmbatch", "best raw transport", list(RAW), 1.3),
    ("mlp", RATED, "shmbatch", "best batching system", list(BATCHING), 3.5),
    ("tiny", "16x1", "shmbatch-lockstep", "best of all others", list(RIVALS), 5),
]


class System:
    """One row of one cell: measured run after run, until it fails."""

    def __init__(self, name: str, work: Work, load: Load, warmup_s: float, measure_s: float):
        self.name = name
        self.version = ""
        self.error: str | None = None
        self._work, self._load = work, load
        self._warmup_s, self._measure_s = warmup_s, measure_s
        self._is_slow = False

    def run(self) -> Figures:
        """Measure once; no figures once it has failed. What fails of ours raises."""
        if self.error is not None:
            return {}
        try:
            together = np.concatenate(self._latencies())
            if len(together) < LEAST_CALLS and not self._is_slow:
                self._is_slow = True  # from now on
                self._warmup_s *= LONGER
                self._measure_s *= LONGER
                together = np.concatenate(self._latencies())
        except asked.CouldNotRun as error:
            self.error = str(error)
            return {}
        return {"calls_per_s": len(together) / self._measure_s, **_report.percentiles_us(together)}

    def _latencies(self) -> Latencies:
        how = (self._work, self._load, self._warmup_s, self._measure_s)
        if self.name in RIVALS:
            measured = asked.measure(RIVALS[self.name], *how)
            self.version = measured.version
            return measured.latencies
        try:
            environments.check_answers_known(self._work)
        except FileNotFoundError as error:
            raise asked.CouldNotRun(str(error)) from None
        transport = "posix" if self.name == "shmbatch-posix" else "linux"
        function = "tiny_in_lockstep" if self.name == "shmbatch-lockstep" else None
        got = _shmbatch.measure(*how, function=function, transport=transport)
        latencies = [np.frombuffer(each, np.int64) for each in got]
        if not all(map(len, latencies)) and self._load.rate_per_s is None:
            raise RuntimeError("a producer of shmbatch finished no call in the measured time")
        return latencies


class Cell:
    """One work under one load: what all systems made of it."""

    def __init__(self, work: str, load: str) -> None:
        self.work, self.load = work, load
        self.figures: dict[str, list[Figures]] = {}  # of those that did not fail, run by run
        self.rows: dict[str, dict[str, Any]] = {}  # by system, as the JSON has them
        self.facts: dict[str, Any] = {}  # when, and what else the machine did

    def measure(
        self, loads: Mapping[str, Load | str], runs: int, warmup_s: float, measure_s: float
    ) -> None:
        """Measure each system under its load; one that has none is a row with the reason."""
        facts = _report.machine_facts(datetime.now(UTC))
        self.facts = {key: facts[key] for key in ("date", "busy", "commit")}
        work = WORKS[self.work]
        systems = {
            name: System(name, work, load, warmup_s, measure_s)
            for name, load in loads.items()
            if isinstance(load, Load)
        }
        measures: dict[str, Callable[[], Figures]] = {
            name: system.run for name, system in systems.items()
        }
        if self.load == RATED:
            for limit, limited in _limits.MEASURES.items():
                measures[limit] = partial(limited, work, warmup_s, measure_s)
        figures = _options.alternate(measures, runs) if measures else {}
        for name, load in loads.items():
            if isinstance(load, str):
                self.rows[name] = {"error": load}
            elif (error := systems[name].error) is not None:
                self.rows[name] = {"error": error}
            else:
                self.figures[name] = figures[name]
                self.rows[name] = self._row(figures[name], load, systems[name].version)
        for limit in _limits.LABELS:
            if limit in figures:
                self.rows[limit] = self._row(figures[limit], None, "")

    def _row(self, runs: list[Figures], load: Load | None, version: str) -> dict[str, Any]:
        spreads = _report.spreads(runs)
        row: dict[str, Any] = {key: spread.document() for key, spread in spreads.items()}
        if version:
            row["version"] = version
        if load is not None and load.rate_per_s is not None:
            row["rate_per_s"] = load.rate_per_s
        return row

    def rates(self) -> dict[str, float]:
        """Median calls per second of each system that ran."""
        return {
            name: row["calls_per_s"]["median"]
            for name, row in self.rows.items()
            if name in LABELS and "error" not in row
        }

    def document(self) -> dict[str, Any]:
        return {"work": self.work, "load": self.load, **self.facts, "systems": self.rows}

    def __str__(self) -> str:
        """The table, the best first, with how far shmbatch is ahead."""
        closed = self.load in CLOSED
        key, heading = (
            ("calls_per_s", "shmbatch's / its") if closed else ("p99_us", "its p99 / ours")
        )
        ran = {name: row for name, row in self.rows.items() if "error" not in row}
        ours = ran.get("shmbatch")
        lines = []
        for name, row in sorted(ran.items(), key=lambda item: item[1][key]["median"]):
            ratio = ""
            if ours is not None and name != "shmbatch":
                above, below = (ours, row) if closed else (row, ours)
                ratio = _report.number(above[key]["median"] / below[key]["median"])
            columns = ("calls_per_s", "p50_us", "p99_us", "p99.9_us")
            cells = [_spread(row[column]) if column in row else "-" for column in columns]
            lines.append([ALL_LABELS[name], *cells, ratio])
        if closed:
            lines.reverse()  # the fastest first
        title = f"{self.work}, {self.load}"
        table = _report.table([title, "calls/s", "p50", "p99", "p99.9", heading], lines)
        failed = [f"{LABELS[n]}: {row['error']}" for n, row in self.rows.items() if "error" in row]
        return "\n".join([table, *failed])


def loads_of(
    load: str, systems: Sequence[str], rates: Mapping[str, float]
) -> dict[str, Load | str]:
    """Under which load each system is put; or why it cannot be."""
    if load in CLOSED:
        return dict.fromkeys(systems, CLOSED[load])
    slowest = min(rates.values(), default=0)
    return {
        name: Load(4, OPEN_IN_FLIGHT, SHARES[load] * (rates[name] if load == OWN else slowest))
        if name in rates
        else f"did not run under {RATED}, so there is no rate to take a share of"
        for name in systems
    }


def promised(work: str, load: str, ours: str, whom: str) -> str:
    """What a promise says."""
    return f"{work}, {load}, calls/s: {LABELS[ours]} / {whom}"


def ratios(cells: Sequence[Cell]) -> list[_report.Ratio]:
    """What is promised, as far as it was measured, run by run."""
    found = []
    for work, load, ours, whom, rivals, floor in PROMISES:
        for cell in cells:
            if (cell.work, cell.load) != (work, load) or ours not in cell.figures:
                continue
            ran = [cell.figures[name] for name in rivals if name in cell.figures]
            if not ran:
                continue
            best = [max(run["calls_per_s"] for run in runs) for runs in zip(*ran, strict=True)]
            rate = [run["calls_per_s"] for run in cell.figures[ours]]
            what = promised(work, load, ours, whom)
            found.append(_report.ratio(what, rate, best, floor=floor))
    return found


def kept(path: Path) -> list[Cell]:
    """The cells that an earlier run has written."""
    cells = []
    for document in json.loads(path.read_text())["cells"] if path.exists() else ():
        cell = Cell(document["work"], document["load"])
        cell.rows = document["systems"]
        cell.facts = {k: v for k, v in document.items() if k not in ("work", "load", "systems")}
        for name, row in cell.rows.items():
            if "error" not in row and name in LABELS:
                keys = [key for key in row if isinstance(row[key], dict)]
                runs = zip(*(row[key]["runs"] for key in keys), strict=True)
                cell.figures[name] = [dict(zip(keys, run, strict=True)) for run in runs]
        cells.append(cell)
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse(
        "rivals",
        __doc__,
        arguments,
        systems=list(LABELS),
        flags={"resume": "keep the cells that the JSON has, and measure the others"},
        choices={"works": (list(WORKS), ["tiny"]), "loads": (LOADS, [RATED])},
    )
    warmup_s, measure_s = (0.1, 0.2) if options.quick else (0.5, 1.5)
    facts = _report.machine_facts(datetime.now(UTC))
    print(f"{options.runs} runs: median (min..max) over the runs, latencies in µs")
    print(_report.facts_line(facts))
    cells = kept(options.out) if options.resume and options.out is not None else []
    for work in options.works:
        for load in options.loads:
            if any((cell.work, cell.load) == (work, load) for cell in cells):
                continue
            rates = next((c.rates() for c in cells if (c.work, c.load) == (work, RATED)), {})
            asked_for = [
                name
                for name in options.systems
                if name != "shmbatch-lockstep" or (work == TINY.name and load in CLOSED)
            ]
            cell = Cell(work, load)
            longer = SLOWER if work == EMBED.name else 1
            cell.measure(
                loads_of(load, asked_for, rates),
                options.runs,
                longer * warmup_s,
                longer * measure_s,
            )
            cells.append(cell)
            print(f"\n{cell}", flush=True)
            if options.out is not None:
                _report.write_json(
                    options.out,
                    {
                        "benchmark": "rivals",
                        "machine": facts,
                        "parameters": {
                            "runs": options.runs,
                            "warmup_s": warmup_s,
                            "measure_s": measure_s,
                            "shares": SHARES,
                        },
                        "labels": ALL_LABELS,
                        "cells": [each.document() for each in cells],
                        "ratios": [ratio.document() for ratio in ratios(cells)],
                    },
                )
    if found := ratios(cells):
        print("\n" + _report.promises(found))
    if options.out is not None:
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


def _spread(document: Mapping[str, Any]) -> str:
    runs = tuple(document["runs"])
    return str(_report.Spread(runs)) if len(runs) > 1 else _report.number(runs[0])


if __name__ == "__main__":
    main()
