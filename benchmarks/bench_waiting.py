"""What waiting awake and waiting asleep cost, in time and in CPU, and whether `auto` knows better.

::

    producer 0..p-1 --remote, one after the other--> executor: echo, at once
              both sides wait= auto, spin or park

Answers: is `auto`, which is what everybody gets, at or near the better of the two others? With 1,
2, 4 and 16 producers, and:

free      nothing else runs
busy      another process keeps one CPU busy, to which it is pinned
one CPU   executor and producers have one CPU together, as in a container
pinned    the executor has one CPU to itself, the producers share the others

and idle: 16 producers that have called, and an executor, of which nobody wants anything for ten
seconds. Latencies, and CPU time of the executor and of all producers, in CPUs. Every answer is
checked. A ratio of `auto` is to the better of `spin` and `park` in that run and row.

Percentiles are those of calls. Where producers outnumber CPUs one of them may make thousands of
calls while the others stand still, each in a single one: what a producer waits for a call on the
average is in the mean, the longest call in the maximum, and how even it was in Jain's index.

Not answered here: batches, throughput with calls in flight (bench_throughput).

    $ python -m benchmarks.bench_waiting                    # about 9 min
    $ python -m benchmarks.bench_waiting --systems one-cpu  # these rows
    $ python -m benchmarks.bench_waiting --quick            # smoke test; figures mean nothing
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from time import monotonic_ns
from typing import Any, TypeAlias

import numpy as np

from benchmarks import _options, _report, _usage
from benchmarks import functions_waiting as functions
from benchmarks._crew import Crew, Cue

Figures: TypeAlias = dict[str, float]

MODES = ("auto", "spin", "park")
PRODUCERS = (1, 2, 4, 16)
LABELS = {"free": "free", "busy": "busy", "one-cpu": "one CPU", "pinned": "pinned", "idle": "idle"}
VARIETY = 7
PRELOAD = ("benchmarks.functions_waiting",)
IDLERS, IDLE_S, IDLE_QUICK_S = 16, 10.0, 0.5
NEAR = 0.9  # of the calls per second of the better of the two others
IDLE_CEILING = 0.005  # of one CPU, for all together

# Which CPUs the executor, the producers and the one who disturbs have.
CPUs: TypeAlias = set[int]
Places: TypeAlias = tuple[CPUs, CPUs, CPUs | None]


def places(situation: str) -> Places:
    cpus = sorted(os.sched_getaffinity(0))
    everywhere, first = set(cpus), {cpus[0]}
    if situation == "busy":
        return everywhere, everywhere, first
    if situation == "one-cpu":
        return first, first, None
    if situation == "pinned":
        return first, set(cpus[1:]), None
    return everywhere, everywhere, None


def producer(cue: Cue, number: int, mode: str, cpus: CPUs) -> tuple[bytes, int]:
    """Call, wait for the result, call again; latencies in the measured time, and CPU time."""
    import shmbatch

    os.sched_setaffinity(0, cpus)  # before it looks at how many there are
    inputs = [np.array([number, i], float) for i in range(VARIETY)]
    next_input = cycle(inputs).__next__
    next_answer = cycle([x.tobytes() for x in inputs]).__next__
    remote = shmbatch.connect(f"{functions.app.name}.echo", 60, wait=mode).remote
    latencies = array("q")
    remote(inputs[0])
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    end = cpu_ns = 0
    has_begun = False  # a call that ends after the beginning counts, whenever it was made
    while end < end_ns:
        x = next_input()
        start = monotonic_ns()
        result = remote(x)
        end = monotonic_ns()
        if result.tobytes() != next_answer():
            raise AssertionError(f"got {result}, expected {x}")
        if end >= begin_ns:
            if not has_begun:
                has_begun = True
                cpu_ns = time.process_time_ns()
            latencies.append(end - start)
    return latencies.tobytes(), time.process_time_ns() - cpu_ns


def idler(cue: Cue, mode: str) -> int:
    """Call once, and then nothing until the end; the CPU time that nothing takes."""
    import shmbatch

    shmbatch.connect(f"{functions.app.name}.echo", 60, wait=mode).remote(np.zeros(2))
    schedule = cue.ready()
    time.sleep(max(0, schedule.begin_ns - monotonic_ns()) / 1e9)
    cpu_ns = time.process_time_ns()
    time.sleep(max(0, schedule.end_ns - monotonic_ns()) / 1e9)
    return time.process_time_ns() - cpu_ns


def disturber(cue: Cue, cpus: CPUs) -> None:
    """Keep a CPU busy until the end."""
    os.sched_setaffinity(0, cpus)
    end_ns = cue.ready().end_ns
    while monotonic_ns() < end_ns:
        pass


@contextmanager
def executor_on(cpus: CPUs, mode: str) -> Iterator[int]:
    """Run the executor on these CPUs; its process."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        running = functions.app.run(wait=mode)
        with running:
            os.sched_setaffinity(0, own)
            pid = running.pid
            assert pid is not None
            yield pid
    finally:
        os.sched_setaffinity(0, own)


def calling(
    situation: str, producers: int, mode: str, warmup_s: float, measure_s: float
) -> Figures:
    """One run of producers in a closed loop."""
    for_executor, for_producers, for_disturber = places(situation)
    with executor_on(for_executor, mode) as pid, Crew(PRELOAD) as crew:
        for number in range(producers):
            crew.add(producer, number, mode, for_producers)
        if for_disturber is not None:
            crew.add(disturber, for_disturber)
        schedule = crew.begin(warmup_s, measure_s)
        used = _usage.used_by_executor(pid, functions.app.name, "echo", schedule)
        found = crew.finish(schedule)[:producers]
    latencies = np.concatenate([np.frombuffer(each, np.int64) for each, _ in found])
    if not len(latencies):
        raise RuntimeError("no call finished in the measured time")
    return {
        "calls_per_s": len(latencies) / measure_s,
        "mean_us": producers * measure_s * 1e6 / len(latencies),
        **_report.percentiles_us(latencies),
        "max_us": float(latencies.max()) / 1000,
        "jain": _report.jain([len(each) for each, _ in found]),
        "executor_cpus": used.cpu_s / used.seconds,
        "producers_cpus": sum(cpu_ns for _, cpu_ns in found) / 1e9 / measure_s,
    }


def idle(mode: str, seconds: float) -> Figures:
    """One run in which nothing happens."""
    with functions.app.run(wait=mode) as running, Crew(PRELOAD) as crew:
        pid = running.pid
        assert pid is not None
        for _ in range(IDLERS):
            crew.add(idler, mode)
        schedule = crew.begin(0.5, seconds)  # who spins has stopped by then
        used = _usage.used_by_executor(pid, functions.app.name, "echo", schedule)
        cpu_ns: list[int] = crew.finish(schedule)
    return {
        "executor_cpus": used.cpu_s / used.seconds,
        "producers_cpus": sum(cpu_ns) / 1e9 / seconds,
    }


def near_the_better(row: str, figures: dict[str, list[Figures]]) -> list[_report.Ratio]:
    """Compare `auto` with the better of the others, run by run."""

    def of(key: str, better: Callable[[float, float], float]) -> tuple[list[float], list[float]]:
        auto, spin, park = ([run[key] for run in figures[mode]] for mode in MODES)
        return auto, [better(*pair) for pair in zip(spin, park, strict=True)]

    return [
        _report.ratio(f"{row}, calls/s: auto / better", *of("calls_per_s", max), floor=NEAR),
        _report.ratio(f"{row}, p50: auto / better", *of("p50_us", min)),
        _report.ratio(f"{row}, p99: auto / better", *of("p99_us", min)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("waiting", __doc__, arguments, systems=list(LABELS))
    warmup_s, measure_s = (0.2, 0.4) if options.quick else (0.4, 1.2)
    facts = _report.machine_facts(datetime.now(UTC))
    if facts["cpus_usable"] < 2:
        raise SystemExit("bench_waiting needs two CPUs")
    print(f"Waiting, {options.runs} runs: median (min..max) over the runs, latencies in µs")
    print(_report.facts_line(facts))
    columns = {
        "calls_per_s": "calls/s",
        "mean_us": "mean",
        "p50_us": "p50",
        "p99_us": "p99",
        "p99.9_us": "p99.9",
        "max_us": "max",
        "jain": "Jain's index",
        "executor_cpus": "CPUs, executor",
        "producers_cpus": "CPUs, producers",
    }
    promised: list[_report.Ratio] = []
    document_rows: list[dict[str, Any]] = []
    for situation in options.systems:
        rows = []
        for producers in (IDLERS,) if situation == "idle" else PRODUCERS[:: options.quick + 1]:
            measures: dict[str, Callable[[], Figures]] = {
                mode: partial(idle, mode, IDLE_QUICK_S if options.quick else IDLE_S)
                if situation == "idle"
                else partial(calling, situation, producers, mode, warmup_s, measure_s)
                for mode in MODES
            }
            figures = _options.alternate(measures, options.runs)
            name = f"{LABELS[situation]}, {producers}"
            if situation == "idle":
                both = [sum(run.values()) for run in figures["auto"]]
                spread = _report.Spread(tuple(both))
                promised.append(
                    _report.Ratio("idle, auto: CPUs together", spread, ceiling=IDLE_CEILING)
                )
            else:
                promised += near_the_better(name, figures)
            for mode, runs in figures.items():
                spreads = _report.spreads(runs)
                rows.append(
                    [
                        f"{name}, {mode}",
                        *(_cell(spreads.get(key), key) for key in columns),
                    ]
                )
                document_rows.append(
                    {
                        "situation": situation,
                        "producers": producers,
                        "wait": mode,
                        **{key: spread.document() for key, spread in spreads.items()},
                    }
                )
        print("\n" + _report.table([LABELS[situation], *columns.values()], rows))
    print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "waiting",
            "machine": facts,
            "parameters": {"runs": options.runs, "warmup_s": warmup_s, "measure_s": measure_s},
            "rows": document_rows,
            "ratios": [ratio.document() for ratio in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


def _cell(spread: _report.Spread | None, key: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.4f}" if key.endswith("cpus") else str(spread)


if __name__ == "__main__":
    main()
