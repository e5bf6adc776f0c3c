"""How much of a function's own speed is left when it is served, and what the executor adds.

::

    producer 0..3 --16 in flight each--> executor: batches of 32 --> f --> results to producers
                            a plain loop: ready-made batches of 32 --> f

Answers: of the inputs per second that a function gets through by itself, how many does it get
through when it is served, with more calls waiting than fit into a batch? Of functions that take
0.1, 0.3, 1, 3, 10 and 50 ms a batch:

compute  multiplies float32 matrices, on the executor's CPU; as often as takes that time at least
sleep    takes no CPU meanwhile, like a function that waits for a GPU

The plain loop is the same function in a process of its own, in the same run, before and after:
served is divided by the mean of the two. Other processes have the other CPUs then and now. It
sleeps no longer than the executor does, whose timers are exact to a microsecond, while the kernel
otherwise takes 50 more.

And: what does the executor do outside the function? User time of the executor per batch, at 1
producer and at 64, of a function that sleeps a millisecond, so that calls are always there, less
what the function takes in the plain loop: that is without the kernel's part, most of which is
waking producers, which is shown beside it. The kernel divides CPU time into the two by looking a
hundred times a second, so that takes 10 s. After each sleep the caches are the producers'.
Every answer is checked.

And: how much of that is the machine's, whoever serves? See _between.py.

Not answered here: GPUs (benchmarks/gpu), functions that cost nothing (bench_throughput).

    $ python -m benchmarks.bench_pipeline                    # about 25 min
    $ python -m benchmarks.bench_pipeline --systems sleep    # these rows
    $ python -m benchmarks.bench_pipeline --quick            # smoke test; figures mean nothing
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np

from benchmarks import _between, _options, _report, _usage
from benchmarks import functions_pipeline as functions
from benchmarks._crew import Crew, Cue
from shmbatch.protocol._core import set_timer_slack

Figures: TypeAlias = dict[str, float]

BY_THE_MACHINE = {"cold": _between.python_after_sleep, "waking": _between.wake_ups}
SYSTEMS = ("compute", "sleep", "outside", *BY_THE_MACHINE)
PRODUCERS, IN_FLIGHT = 4, 16  # two batches together
BATCHES = 200  # measured at least: one more or less is half a percent
FLOORS = ((1000, 0.95), (300, 0.90))  # from so many microseconds a batch on
OUTSIDE = ((1, 64), (64, 1))  # producers, calls in flight each
OUTSIDE_FUNCTION = "sleep_1000"
BATCH_US, CALL_US = 20.0, 0.3  # what the executor may take outside the function
LONGER = 7  # so many times longer is that measured: see above
PRELOAD = ("benchmarks.functions_pipeline",)
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def answer_of(function: str, x: functions.Array) -> functions.Array:
    kind, us = function.split("_")
    if kind == "compute":
        return functions.permuted(x, functions.repetitions(int(us)))
    return x + np.float32(1)


def producer(cue: Cue, function: str, number: int, in_flight: int) -> int:
    """Keep so many calls in flight; how many ended in the measured time."""
    import shmbatch

    random = np.random.default_rng(number)
    inputs = [random.random(functions.WIDTH, np.float32) for _ in range(in_flight + 1)]
    next_input = cycle(inputs).__next__
    next_answer = cycle([answer_of(function, x).tobytes() for x in inputs]).__next__
    spawn = shmbatch.connect(f"{functions.app.name}.{function}", 60).spawn
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    calls: deque[Any] = deque(spawn(next_input()) for _ in range(in_flight))
    counted = 0
    while calls:
        result = calls.popleft().get()
        now = time.monotonic_ns()
        if result.tobytes() != next_answer():
            raise AssertionError(f"{function} gave {result[:4]}..., which is not its input's")
        if now < end_ns:
            counted += now >= begin_ns
            calls.append(spawn(next_input()))
    return counted


def plain_loop(cue: Cue, function: str) -> tuple[float, float]:
    """Call the function on ready-made batches; in the measured time, inputs per second, and
    microseconds of user time per batch."""
    set_timer_slack(functions.TIMER_SLACK_NS)
    handle = functions.app.definitions[function].function
    random = np.random.default_rng(0)
    batches = [random.random((functions.SIZE, functions.WIDTH), np.float32) for _ in range(3)]
    for batch in batches:
        assert np.array_equal(handle(batch), answer_of(function, batch))
    next_batch = cycle(batches).__next__
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    while (first_ns := time.monotonic_ns()) < begin_ns:
        handle(next_batch())
    user_s = os.times().user
    count = 0
    while (now := time.monotonic_ns()) < end_ns:
        handle(next_batch())
        count += 1
    rate = functions.SIZE * count / (now - first_ns) * 1e9
    return rate, (os.times().user - user_s) / count * 1e6


def served(function: str, warmup_s: float, measure_s: float) -> float:
    """Inputs per second of the function when it is served, in one run."""
    with functions.app.run(wait="auto"), Crew(PRELOAD) as crew:
        for number in range(PRODUCERS):
            crew.add(producer, function, number, IN_FLIGHT)
        return float(sum(crew.measure(warmup_s, measure_s)) / measure_s)


def offline(function: str, warmup_s: float, measure_s: float) -> tuple[float, float]:
    """As `plain_loop`, of one run."""
    with Crew() as crew:  # fresh: with threads as the executor has them
        crew.add(plain_loop, function)
        ((rate, user_us),) = crew.measure(warmup_s, measure_s)
    return float(rate), float(user_us)


def pipelined(function: str, us: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of a function that takes so long a batch: alone, served, alone."""
    measure_s = max(measure_s, BATCHES * us / 1e6)  # calls end a batch at a time
    before, _ = offline(function, warmup_s, measure_s)
    rate = served(function, warmup_s, measure_s)
    after, _ = offline(function, warmup_s, measure_s)
    alone = (before + after) / 2
    return {
        "served_per_s": rate,
        "alone_before_per_s": before,
        "alone_after_per_s": after,
        "alone_per_s": alone,
        "served_by_alone": rate / alone,
        "batch_us": functions.SIZE / alone * 1e6,
    }


def outside(producers: int, in_flight: int, warmup_s: float, measure_s: float) -> Figures:
    """One run in which the executor's own time is measured."""
    with functions.app.run(wait="park") as running, Crew(PRELOAD) as crew:
        pid = running.pid
        assert pid is not None
        for number in range(producers):
            crew.add(producer, OUTSIDE_FUNCTION, number, in_flight)
        schedule = crew.begin(warmup_s, measure_s)
        used = _usage.used_by_executor(pid, functions.app.name, OUTSIDE_FUNCTION, schedule)
        crew.finish(schedule)
    _, function_us = offline(OUTSIDE_FUNCTION, warmup_s, measure_s)
    user_us = used.user_s / used.batches * 1e6 - function_us
    return {
        "mean_batch_size": used.mean_batch_size,
        "user_us": user_us,
        "function_us": function_us,
        "system_us": used.system_s / used.batches * 1e6,
        "user_by_allowed": user_us / (BATCH_US + CALL_US * used.mean_batch_size),
    }


def calibrated() -> dict[str, int]:
    """Find how many multiplications take how long; in a process as the executor is one."""
    with Crew() as crew:
        crew.add(timed)
        (each_ns,) = crew.measure(0, 0)
    return {str(us): max(1, round(us * 1000 / each_ns)) for us in functions.TIMES_US}


def timed(cue: Cue) -> float:
    """Return the nanoseconds of one multiplication of a batch, when nothing disturbs it: batches
    then take the time that is in a function's name, or longer."""
    batch = np.ones((functions.SIZE, functions.WIDTH), np.float32)
    cue.ready()
    taken: list[float] = []
    for _ in range(51):
        started_ns = time.perf_counter_ns()
        functions.multiplied(batch, 5000)
        taken.append((time.perf_counter_ns() - started_ns) / 5000)
    return min(taken)


def floor_of(function: str) -> float | None:
    us = int(function.partition("_")[2])
    return next((floor for least, floor in FLOORS if us >= least), None)


def promises(found: dict[str, list[Figures]]) -> list[_report.Ratio]:
    promised = []
    for name, runs in found.items():
        spreads = _report.spreads(runs)
        if name.partition("_")[0] in BY_THE_MACHINE:
            continue
        if name.startswith("outside"):
            what = f"{name}: user time / ({BATCH_US:g} µs a batch + {CALL_US:g} µs a call)"
            promised.append(_report.Ratio(what, spreads["user_by_allowed"], ceiling=1))
        else:
            what = f"{name}: served / plain loop"
            promised.append(_report.Ratio(what, spreads["served_by_alone"], floor_of(name)))
    return promised


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("pipeline", __doc__, arguments, systems=SYSTEMS)
    warmup_s, measure_s = (0.2, 0.4) if options.quick else (0.5, 1.5)
    os.environ.update(ONE_THREAD)  # of this benchmark's children; the others have CPUs to use
    facts = _report.machine_facts(datetime.now(UTC))
    repetitions = calibrated()
    os.environ[functions.REPETITIONS] = json.dumps(repetitions)
    measures: dict[str, Callable[[], Figures]] = {}
    for system in options.systems:
        if system == "outside":
            for producers, in_flight in OUTSIDE[:: options.quick + 1]:
                measures[f"outside, {producers} producers"] = partial(
                    outside, producers, in_flight, warmup_s, LONGER * measure_s
                )
        else:
            for us in functions.TIMES_US[:: 3 if options.quick else 1]:
                name = f"{system}_{us}"
                measure = BY_THE_MACHINE.get(system) or partial(pipelined, name)
                measures[name] = partial(measure, us, warmup_s, measure_s)
    print(f"Pipeline, {options.runs} runs: median (min..max) over the runs, batches in µs")
    print(_report.facts_line(facts))
    found = _options.alternate(measures, options.runs)
    spreads = {name: _report.spreads(runs) for name, runs in found.items()}
    for header, keys in (
        (
            ["", "served, inputs/s", "plain loop", "µs a batch"],
            ("served_per_s", "alone_per_s", "batch_us"),
        ),
        (
            ["", "mean batch", "user, µs a batch", "system"],
            ("mean_batch_size", "user_us", "system_us"),
        ),
        (["", "hot, µs", "cold", "ratio"], ("hot_us", "cold_us", "cold_by_hot")),
        (["", "four wake-ups, µs"], ("waking_us",)),
    ):
        rows = [
            [name, *(str(spread[key]) for key in keys)]
            for name, spread in spreads.items()
            if keys[0] in spread
        ]
        if rows:
            print("\n" + _report.table(header, rows))
    promised = promises(found)
    print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "pipeline",
            "machine": facts,
            "parameters": {
                "runs": options.runs,
                "warmup_s": warmup_s,
                "measure_s": measure_s,
                "producers": PRODUCERS,
                "in_flight": IN_FLIGHT,
                "max_batch_size": functions.SIZE,
                "repetitions": repetitions,
            },
            "systems": {
                name: {key: each.document() for key, each in spread.items()}
                for name, spread in spreads.items()
            },
            "promises": [promise.document() for promise in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
