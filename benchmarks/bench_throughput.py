"""Calls per second of four producers that keep eight calls each in flight.

::

    producer 0 --8 in flight--+                       +--> result to its own producer
    producer 1 --8 in flight--+--> executor: batch -->+
    producer 2 --8 in flight--+     of up to 32/16,   +-->
    producer 3 --8 in flight--+     within 1/2 ms     +-->

Answers: how many calls get through, and how long does each take, when several processes share
one batched function that itself costs next to nothing? Two works:

tiny   16 B in and out, x + 1, batches of up to 32 within 1 ms
image  3x224x224 float32 (602 KB) in, 1000 float32 out, a slice times two, up to 16 within 2 ms

Beside shmbatch (waiting `auto`, over the transport `linux` and over `posix`): batching loops
written by hand for exactly this load, over UNIX sockets (rivals/sockets.py, in two manners) and
over ``multiprocessing.SimpleQueue`` (rivals/queues.py). They have no validation, no faults, no
interface; every answer is checked.

Not answered here: a lone call (bench_roundtrip); other rivals, functions that take time, other
producer counts (bench_rivals).

    $ python -m benchmarks.bench_throughput            # about 2.5 min
    $ python -m benchmarks.bench_throughput --quick    # smoke test; figures mean nothing
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

from benchmarks import _options, _report, _shmbatch
from benchmarks._load import FOUR_BY_EIGHT as LOAD
from benchmarks._load import Load
from benchmarks._works import IMAGE, TINY, Work
from benchmarks.rivals import queues, sockets

Figures: TypeAlias = dict[str, float]

LABELS = {
    "shmbatch": "shmbatch",
    "shmbatch-posix": "shmbatch, posix",
    "sockets": "UNIX sockets, coalesced",
    "sockets-single": "UNIX sockets, one by one",
    "simplequeue": "SimpleQueue",
}
FLOORS = {"tiny": 2.5, "image": 2.3}  # over UNIX sockets
POSIX_CEILING = 1.5  # what linux may be ahead of posix


def figures_of(
    measure: Callable[[Work, Load, float, float], list[bytes]],
    work: Work,
    warmup_s: float,
    measure_s: float,
) -> Figures:
    """One run of one system."""
    return _report.closed_loop(measure(work, LOAD, warmup_s, measure_s), measure_s)


def ratios(work: Work, figures: dict[str, list[Figures]]) -> list[_report.Ratio]:
    """How far shmbatch is ahead of each rival, as far as they were measured."""

    def rate(name: str) -> list[float]:
        return [run["calls_per_s"] for run in figures[name]]

    return [
        _report.ratio(
            f"{work.name}, calls/s: shmbatch / {LABELS[rival]}",
            rate("shmbatch"),
            rate(rival),
            floor=FLOORS[work.name] if rival.startswith("sockets") else None,
            ceiling=POSIX_CEILING if rival == "shmbatch-posix" else None,
        )
        for rival in figures
        if rival != "shmbatch" and "shmbatch" in figures
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("throughput", __doc__, arguments, systems=list(LABELS))
    warmup_s, measure_s = (0.1, 0.3) if options.quick else (0.5, 1.5)
    facts = _report.machine_facts(datetime.now(UTC))
    measures: dict[str, Callable[[Work, Load, float, float], list[bytes]]] = {
        "shmbatch": _shmbatch.measure,
        "shmbatch-posix": partial(_shmbatch.measure, transport="posix"),
        "sockets": partial(sockets.measure, coalesced=True),
        "sockets-single": partial(sockets.measure, coalesced=False),
        "simplequeue": partial(queues.measure, kind="SimpleQueue"),
    }
    print(
        f"{LOAD.producers} producers x {LOAD.in_flight} in flight, {options.runs} runs: "
        "median (min..max) over the runs, latencies in µs"
    )
    print(_report.facts_line(facts))
    promised: list[_report.Ratio] = []
    works: dict[str, Any] = {}
    for work in (TINY, IMAGE):
        systems = {
            name: partial(figures_of, measures[name], work, warmup_s, measure_s)
            for name in options.systems
        }
        figures = _options.alternate(systems, options.runs)
        spreads = {LABELS[name]: _report.spreads(runs) for name, runs in figures.items()}
        promised += ratios(work, figures)
        works[work.name] = {
            label: {key: spread.document() for key, spread in spread_of.items()}
            for label, spread_of in spreads.items()
        }
        rows = [
            [label, *(str(spread_of[key]) for key in ("calls_per_s", "p50_us", "p99_us"))]
            for label, spread_of in spreads.items()
        ]
        print("\n" + _report.table([work.name, "calls/s", "p50", "p99"], rows))
    if promised:
        print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "throughput",
            "machine": facts,
            "parameters": {
                "runs": options.runs,
                "warmup_s": warmup_s,
                "measure_s": measure_s,
                "producers": LOAD.producers,
                "in_flight": LOAD.in_flight,
            },
            "works": works,
            "ratios": [ratio.document() for ratio in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
