"""What a call and a batch cost as producers, inputs, batches and parameters become more.

::

    producer 0..p-1 --in flight--> executor: batches of up to b, n parameters of s bytes each

Answers: where do the curves bend? One of four things varies, the others rest:

producers    1 to 256, four calls in flight each
input        1 B to 16 MB, 4 producers, two in flight each, batches of up to 4, 8 slots
batch        max_batch_size 1 to 4096, 4 producers, which have two batches in flight together
parameters   1 to 64 arrays of 16 bytes, 4 producers, eight calls in flight each

Where they rest: an input is one array of 16 bytes, batches are of up to 32 in 1 ms, the function
returns one byte; where batches vary, they wait until they are full. For each point: CPU time per
call of the producers and of the executor, and of the executor per batch; calls per second; how
long attaching takes, to the last of the producers; and what a producer takes of memory: its
segment, shared, and what executor and producer have to themselves more than before. Every answer
is checked.

`python -m benchmarks.plots` draws the curves.

Not answered here: instructions (bench_instructions), other systems (bench_throughput).

    $ python -m benchmarks.bench_scale                       # about 17 min
    $ python -m benchmarks.bench_scale --systems producers   # one curve
    $ python -m benchmarks.bench_scale --quick               # smoke test; figures mean nothing
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks import _options, _report, _usage
from benchmarks import functions_scale as functions
from benchmarks._crew import Crew, Cue

Figures: TypeAlias = dict[str, float]

PRODUCERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FEW = 4  # producers, where they rest
# For each producer at least so long: where hundreds share a CPU, the process that asks the
# executor for its statistics, and reads what everybody uses, gets it as rarely as they do.
WARMUP_S_EACH, MEASURE_S_EACH = 0.008, 0.02
# In which the executor's share of segments is read, all still attached.
GRACE_S, GRACE_S_EACH = 0.3, 0.02
VARIETY = 3  # of inputs; neighbouring calls of a producer have different ones
# An import in each of 256 would take minutes; the others are what attaching imports.
PRELOAD = (
    "benchmarks.functions_scale",
    "msgspec",
    "shmbatch.protocol.linux",
    "shmbatch.protocol.supervision",
)
ATTACH_MS, ATTACH_MS_PER_MB = 5.0, 1.2
OWN_KB = 1024.0  # beside its segment, in both processes

COLUMNS = {
    "calls_per_s": "calls/s",
    "producer_us": "producer, µs a call",
    "executor_us": "executor, µs a call",
    "batch_us": "executor, µs a batch",
    "mean_batch_size": "mean batch",
    "attach_ms": "attach, ms",
    "segment_kb": "segment, KB",
    "own_kb": "beside, KB",
}


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    axis: str
    value: int
    function: str
    producers: int = FEW
    in_flight: int = 8
    parameters: int = 1
    nbytes: int = functions.NBYTES


AXES: dict[str, list[Point]] = {
    "producers": [
        Point("producers", value, "rest", producers=value, in_flight=4) for value in PRODUCERS
    ],
    "input": [
        Point("input", value, f"input_{value}", in_flight=2, nbytes=value)
        for value in functions.INPUTS
    ],
    "batch": [
        Point("batch", value, f"size_{value}", in_flight=max(1, 2 * value // FEW))
        for value in functions.SIZES
    ],
    "parameters": [
        Point("parameters", value, f"parameters_{value}", parameters=value)
        for value in functions.PARAMETERS
    ],
}


@dataclass(frozen=True, slots=True)
class Taken:
    """What one producer took."""

    calls: int
    cpu_ns: int
    attached_at_ns: int
    attach_ns: int
    anonymous: int
    segment_pss: int


def producer(cue: Cue, point: Point, number: int, lock: str) -> Taken:
    """Attach alone, then keep so many calls in flight, with `spawn` and `get` in order."""
    import shmbatch

    shape = (point.nbytes,)
    values = [np.full(shape, (VARIETY * number + i) % 256, np.uint8) for i in range(VARIETY)]
    inputs = [(value,) * point.parameters for value in values]
    before = _usage.memory(os.getpid())
    with Path(lock).open() as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        started_ns = time.monotonic_ns()
        function = shmbatch.connect(f"{functions.app.name}.{point.function}", 60)
        attach_ns = time.monotonic_ns() - started_ns
    spawn = function.spawn
    calls: deque[Any] = deque()
    next_input = cycle(inputs).__next__
    next_answer = cycle([(int(value[0]) + 1) % 256 for value in values]).__next__
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    counted = 0
    cpu_ns = 0
    now_ns = time.monotonic_ns
    for _ in range(point.in_flight):
        calls.append(spawn(*next_input()))
    has_begun = False
    while True:
        result = calls.popleft().get()
        answer = next_answer()
        if result[0] != answer:
            raise AssertionError(f"got {result}, expected {answer}")
        now = now_ns()
        if now >= begin_ns:
            if not has_begun:
                has_begun = True
                cpu_ns = time.process_time_ns()
            elif now < end_ns:
                counted += 1
            else:
                break
        calls.append(spawn(*next_input()))
    cpu_ns = time.process_time_ns() - cpu_ns
    after = _usage.memory(os.getpid())
    for call in calls:
        call.get()
    grace_s = max(GRACE_S, GRACE_S_EACH * point.producers)
    time.sleep(max(0, end_ns - now_ns()) / 1e9 + grace_s)
    return Taken(
        counted,
        cpu_ns,
        started_ns + attach_ns,
        attach_ns,
        after.anonymous - before.anonymous,
        after.segments_pss,
    )


def measured(point: Point, warmup_s: float, measure_s: float) -> Figures:
    """One run of one point."""
    warmup_s = max(warmup_s, WARMUP_S_EACH * point.producers)
    measure_s = max(measure_s, MEASURE_S_EACH * point.producers)
    with (
        tempfile.NamedTemporaryFile(prefix="scale-") as lock,
        functions.app.run(wait="auto") as running,
        Crew(PRELOAD) as crew,
    ):
        pid = running.pid
        assert pid is not None
        before = _usage.memory(pid)
        for number in range(point.producers):
            crew.add(producer, point, number, lock.name)
        schedule = crew.begin(warmup_s, measure_s)
        used = _usage.used_by_executor(pid, functions.app.name, point.function, schedule)
        after = _usage.memory(pid)
        takens: list[Taken] = crew.finish(schedule)
    calls = sum(taken.calls for taken in takens)
    if not calls or not used.batches:
        raise RuntimeError(f"no call of {point.function} finished in the measured time")
    segments = after.segments_pss / point.producers + _mean(t.segment_pss for t in takens)
    own = (after.anonymous - before.anonymous) / point.producers
    own += _mean(taken.anonymous for taken in takens)
    last = max(takens, key=lambda taken: taken.attached_at_ns)  # the others have all started
    return {
        "calls_per_s": calls / measure_s,
        "producer_us": sum(taken.cpu_ns for taken in takens) / calls / 1e3,
        "executor_us": used.cpu_s / used.calls * 1e6,
        "batch_us": used.cpu_s / used.batches * 1e6,
        "mean_batch_size": used.mean_batch_size,
        "attach_ms": last.attach_ns / 1e6,
        "segment_kb": segments / 1024,
        "own_kb": own / 1024,
    }


def promises(axis: str, spreads: dict[str, dict[str, _report.Spread]]) -> list[_report.Ratio]:
    """Return what is promised of a producer, where it is kept worst."""

    def allowed_ms(figures: dict[str, _report.Spread]) -> float:
        return ATTACH_MS + ATTACH_MS_PER_MB * figures["segment_kb"].median / 1024

    def late(figures: dict[str, _report.Spread]) -> tuple[float, ...]:
        return tuple(ms / allowed_ms(figures) for ms in figures["attach_ms"].values)

    value, spread = max(
        ((value, _report.Spread(late(figures))) for value, figures in spreads.items()),
        key=lambda found: found[1].median,
    )
    what = f"{axis}, {value}: attach / ({ATTACH_MS:g} ms + {ATTACH_MS_PER_MB:g} ms a MB)"
    promised = [_report.Ratio(what, spread, ceiling=1)]
    if axis == "producers":
        most = list(spreads)[-1]  # with one producer the executor's own growth is all its
        spread = spreads[most]["own_kb"]
        promised.append(
            _report.Ratio(f"{axis}, {most}: KB beside the segment", spread, ceiling=OWN_KB)
        )
    return promised


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("scale", __doc__, arguments, systems=list(AXES))
    warmup_s, measure_s = (0.2, 0.4) if options.quick else (0.4, 1.2)
    facts = _report.machine_facts(datetime.now(UTC))
    print(f"Scale, {options.runs} runs: median (min..max) over the runs")
    print(_report.facts_line(facts))
    axes: dict[str, Any] = {}
    promised: list[_report.Ratio] = []
    for axis in options.systems:
        points = AXES[axis][:: 3 if options.quick else 1]
        systems = {
            str(point.value): partial(measured, point, warmup_s, measure_s) for point in points
        }
        found = _options.alternate(systems, options.runs)
        spreads = {value: _report.spreads(runs) for value, runs in found.items()}
        rows = [
            [value, *(_report.number(spread[key].median) for key in COLUMNS)]
            for value, spread in spreads.items()
        ]
        print("\n" + _report.table([axis, *COLUMNS.values()], rows))
        promised += promises(axis, spreads)
        axes[axis] = [
            {"value": int(value), **{key: each.document() for key, each in spread.items()}}
            for value, spread in spreads.items()
        ]
    print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "scale",
            "machine": facts,
            "parameters": {
                "runs": options.runs,
                "warmup_s": warmup_s,
                "measure_s": measure_s,
                "warmup_s_each": WARMUP_S_EACH,
                "measure_s_each": MEASURE_S_EACH,
            },
            "axes": axes,
            "promises": [promise.document() for promise in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
