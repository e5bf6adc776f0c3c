"""What a flooding producer costs the others, and what two hundred producers get of two CPUs.

::

    flooder, spawns without end ----+
    polite 0..3, call, get, pause --+--> executor: batches of up to 8, 1 ms each
    crowd 0..199, call, get --------+    (either the polite, alone and flooded; or the crowd)

Answers: by how much does the p99 of four polite producers grow when a fifth keeps all its slots
full? And of two hundred producers that each call, wait and call again, has anybody less than the
others? Every answer is checked.

Not answered here: how many calls per second get through (bench_throughput); who is refused when
memory runs out (the tests do).

    $ python -m benchmarks.bench_overload            # about 3 min
    $ python -m benchmarks.bench_overload --quick    # smoke test; figures mean nothing
"""

from __future__ import annotations

import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic_ns
from typing import TypeAlias

import numpy as np

from benchmarks import _options, _report, functions
from benchmarks._crew import Crew, Cue
from benchmarks._works import check

POLITE = 4
CROWD, CROWD_QUICK = 200, 12
PAUSE_S = 0.002  # at most, between two calls of a polite producer
P99_CEILING = 2.0
JAIN_FLOOR = 0.95

Figures: TypeAlias = dict[str, float]


def polite(cue: Cue, number: int, pause_s: float, function: str) -> bytes:
    """Call, wait, pause; latencies of the calls that ended while it was measured."""
    remote = getattr(functions, function).remote
    chance = random.Random(number)
    x = np.array([float(number), 0.0])
    answer = (x + 1).tobytes()
    latencies = []
    remote(x)  # connects
    schedule = cue.ready()
    while (begun_ns := monotonic_ns()) < schedule.end_ns:
        check(remote(x), answer)
        ended_ns = monotonic_ns()
        if schedule.begin_ns <= ended_ns < schedule.end_ns:
            latencies.append(ended_ns - begun_ns)
        if pause_s:
            time.sleep(chance.uniform(0, pause_s))
    return np.array(latencies, np.int64).tobytes()


def flooder(cue: Cue) -> bytes:
    """Spawn without end, and take the results that are there; what it was served."""
    spawn = functions.millisecond.spawn
    x = np.array([-1.0, -1.0])
    answer = (x + 1).tobytes()
    pending = deque([spawn(x)])
    schedule = cue.ready()
    served = 0
    while monotonic_ns() < schedule.end_ns:
        pending.append(spawn(x))  # waits for a slot, and for nothing else
        while pending and pending[0].done():
            check(pending.popleft().get(), answer)
            served += 1
    for call in pending:
        check(call.get(), answer)
    return np.array([served], np.int64).tobytes()


def latencies_us(flooded: bool, warmup_s: float, measure_s: float) -> Figures:
    """One run of the polite producers, with the flooder or without."""
    with functions.app.run(), Crew() as crew:
        for number in range(POLITE):
            crew.add(polite, number, PAUSE_S, "millisecond")
        if flooded:
            crew.add(flooder)
        results = crew.measure(warmup_s, measure_s)
    together = np.concatenate([np.frombuffer(each, np.int64) for each in results[:POLITE]])
    figures = {"calls_per_s": len(together) / measure_s, **_report.percentiles_us(together)}
    if flooded:
        served = int(np.frombuffer(results[POLITE], np.int64)[0])
        if served < len(together):
            raise RuntimeError(f"the flooder was served {served} calls, which is no flood")
    return figures


def fairness(producers: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of the crowd: how evenly it was served."""
    with functions.app.run(), Crew() as crew:
        for number in range(producers):
            crew.add(polite, number, 0.0, "tiny")
        results = crew.measure(warmup_s, measure_s)
    latencies = [np.frombuffer(each, np.int64) for each in results]
    served = [len(each) for each in latencies]
    if not all(served):
        raise RuntimeError("a producer of the crowd was served nothing")
    return {
        "calls_per_s": sum(served) / measure_s,
        **_report.percentiles_us(np.concatenate(latencies)),
        "jain": _report.jain(served),
        "min_by_max": min(served) / max(served),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("overload", __doc__, arguments)
    warmup_s, measure_s = (0.1, 0.3) if options.quick else (1.0, 5.0)
    producers = CROWD_QUICK if options.quick else CROWD
    facts = _report.machine_facts(datetime.now(UTC))
    measures: dict[str, Callable[[], Figures]] = {
        "alone": partial(latencies_us, False, warmup_s, measure_s),
        "flooded": partial(latencies_us, True, warmup_s, measure_s),
        "crowd": partial(fairness, producers, warmup_s, measure_s),
    }
    print(
        f"{POLITE} polite producers and a flooder; {producers} producers; {options.runs} runs: "
        "median (min..max) over the runs, latencies in µs"
    )
    print(_report.facts_line(facts))
    figures = _options.alternate(measures, options.runs)
    spreads = {name: _report.spreads(runs) for name, runs in figures.items()}
    promised = [
        _report.ratio(
            "p99 of polite producers: flooded / alone",
            *([run["p99_us"] for run in figures[name]] for name in ("flooded", "alone")),
            ceiling=P99_CEILING,
        ),
        _report.Ratio(
            f"Jain's index of {producers} producers", spreads["crowd"]["jain"], floor=JAIN_FLOOR
        ),
        _report.Ratio(
            f"calls served, least / most of {producers}", spreads["crowd"]["min_by_max"]
        ),
    ]
    rows = [
        [name, *(str(spread_of[key]) for key in ("calls_per_s", "p50_us", "p99_us"))]
        for name, spread_of in spreads.items()
    ]
    print("\n" + _report.table(["", "calls/s", "p50", "p99"], rows))
    print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "overload",
            "machine": facts,
            "parameters": {
                "runs": options.runs,
                "warmup_s": warmup_s,
                "measure_s": measure_s,
                "polite": POLITE,
                "pause_s": PAUSE_S,
                "crowd": producers,
            },
            "systems": {
                name: {key: spread.document() for key, spread in spread_of.items()}
                for name, spread_of in spreads.items()
            },
            "promises": [promise.document() for promise in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
