"""Calls per second of sixteen producers that each wait for every result before the next call.

::

    producer  0 --1 in flight--+                       +--> result to its own producer
    producer  1 --1 in flight--+--> executor: batch -->+
    ...                        |     of up to 32,      +-->
    producer 15 --1 in flight--+     within 1 ms       +-->

Answers: what does it cost that batches have room for more calls than can come? An executor that
does not know who is left to call sits out the whole wait, for every batch. With `lockstep=True`
it knows. The function costs next to nothing: 16 B in and out, x + 1.

Beside shmbatch (transport `linux`, `auto`), in lockstep and not: the hand-written batching loops
of bench_throughput, over UNIX sockets (rivals/sockets.py, in two manners) and over
``multiprocessing.SimpleQueue`` (rivals/queues.py). And shmbatch without lockstep, and sockets, for
batches of 16: who writes them knows that there are so many producers, and never another number.
Every answer is checked.

Not answered here: producers that are not in step with each other (bench_throughput).

    $ python -m benchmarks.bench_lockstep            # about 1 min
    $ python -m benchmarks.bench_lockstep --quick    # smoke test; figures mean nothing
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

from benchmarks import _options, _report, _shmbatch
from benchmarks._load import Load
from benchmarks._works import TINY, Work
from benchmarks.rivals import queues, sockets

Figures: TypeAlias = dict[str, float]

LABELS = {
    "lockstep": "shmbatch, lockstep",
    "shmbatch": "shmbatch",
    "sockets": "UNIX sockets, coalesced",
    "sockets-single": "UNIX sockets, one by one",
    "simplequeue": "SimpleQueue",
    "shmbatch-told": "shmbatch, batches of 16",
    "sockets-told": "UNIX sockets, coalesced, batches of 16",
}
TOLD = ("shmbatch-told", "sockets-told")  # how many there are, by who wrote them
FLOOR = 5  # of lockstep over each of the others' systems, unless they are told

LOAD = Load(producers=16, in_flight=1)
OF_SIXTEEN = replace(TINY, max_batch_size=LOAD.producers)


def figures_of(
    name: str,
    measure: Callable[[Work, Load, float, float], list[bytes]],
    warmup_s: float,
    measure_s: float,
) -> Figures:
    """One run of one system."""
    work = OF_SIXTEEN if name in TOLD else TINY
    return _report.closed_loop(measure(work, LOAD, warmup_s, measure_s), measure_s)


def ratios(figures: dict[str, list[Figures]]) -> list[_report.Ratio]:
    """How far lockstep is ahead of each other system, as far as they were measured."""

    def rate(name: str) -> list[float]:
        return [run["calls_per_s"] for run in figures[name]]

    return [
        _report.ratio(
            f"calls/s: {LABELS['lockstep']} / {LABELS[rival]}",
            rate("lockstep"),
            rate(rival),
            floor=None if rival == "shmbatch" or rival in TOLD else FLOOR,
        )
        for rival in figures
        if rival != "lockstep" and "lockstep" in figures
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("lockstep", __doc__, arguments, systems=list(LABELS))
    warmup_s, measure_s = (0.1, 0.3) if options.quick else (0.5, 1.5)
    facts = _report.machine_facts(datetime.now(UTC))
    measures: dict[str, Callable[[Work, Load, float, float], list[bytes]]] = {
        "lockstep": partial(_shmbatch.measure, function="tiny_in_lockstep"),
        "shmbatch": _shmbatch.measure,
        "sockets": partial(sockets.measure, coalesced=True),
        "sockets-single": partial(sockets.measure, coalesced=False),
        "simplequeue": partial(queues.measure, kind="SimpleQueue"),
        "shmbatch-told": partial(_shmbatch.measure, function="tiny_of_sixteen"),
        "sockets-told": partial(sockets.measure, coalesced=True),
    }
    print(
        f"{LOAD.producers} producers x {LOAD.in_flight} in flight, {options.runs} runs: "
        "median (min..max) over the runs, latencies in µs"
    )
    print(_report.facts_line(facts))
    systems = {
        name: partial(figures_of, name, measures[name], warmup_s, measure_s)
        for name in options.systems
    }
    figures = _options.alternate(systems, options.runs)
    spreads = {LABELS[name]: _report.spreads(runs) for name, runs in figures.items()}
    promised = ratios(figures)
    rows = [
        [label, *(str(spread_of[key]) for key in ("calls_per_s", "p50_us", "p99_us"))]
        for label, spread_of in spreads.items()
    ]
    print("\n" + _report.table([TINY.name, "calls/s", "p50", "p99"], rows))
    if promised:
        print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "lockstep",
            "machine": facts,
            "parameters": {
                "runs": options.runs,
                "warmup_s": warmup_s,
                "measure_s": measure_s,
                "producers": LOAD.producers,
                "in_flight": LOAD.in_flight,
            },
            "systems": {
                label: {key: spread.document() for key, spread in spread_of.items()}
                for label, spread_of in spreads.items()
            },
            "ratios": [ratio.document() for ratio in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
