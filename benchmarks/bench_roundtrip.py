"""The time of a lone call: 16 bytes there, 16 bytes back, one call at a time.

::

    producer --x--> executor      one process each, nobody else calls, batches of one,
    producer <--x-- executor      no waiting for company

Answers: what does handing one small call to another process and waiting for it cost, when the
executor spins, when it sleeps, and by itself (`auto`)? And when it sleeps over the transport
`posix`? Beside it: the same over a ``multiprocessing`` Pipe (raw bytes, no pickle) and Queue
(arrays pickled), and what the machine allows at all: two C processes, pinned to two CPUs, that
pass one word to and fro (pingpong.c).

Not answered here: throughput (bench_throughput), large inputs, several producers.

    $ python -m benchmarks.bench_roundtrip            # about 100 s
    $ python -m benchmarks.bench_roundtrip --quick    # smoke test; figures mean nothing
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from time import monotonic_ns
from typing import TypeAlias

import numpy as np

from benchmarks import _options, _report
from benchmarks._crew import CONTEXT, PATIENCE_S, Crew, Cue
from benchmarks._works import TINY, Array, check

Figures: TypeAlias = dict[str, float]

# In the order of measuring: what is compared most closely stands side by side, because a
# virtual machine's CPUs can move between cores, and a spinning round trip then takes 3x or 8x.
LABELS = {
    "pipe": "multiprocessing Pipe",
    "queue": "multiprocessing Queue",
    "auto": "shmbatch, auto",
    "c-spin": "C ping-pong, spinning",
    "c-pause": "C ping-pong, spinning with pause",
    "spin": "shmbatch, spinning",
    "park": "shmbatch, parked",
    "park-posix": "shmbatch, parked, posix",
    "c-futex": "C ping-pong, futex",
    "c-semaphore": "C ping-pong, semaphore",
}


def call_alone(cue: Cue, call: Callable[[Array], Array]) -> bytes:
    """Call one input after the other; each call's latency, int64 nanoseconds as bytes."""
    inputs = TINY.inputs(0)
    next_input = cycle(inputs).__next__
    next_answer = cycle([x.tobytes() for x in inputs]).__next__
    latencies = array("q")
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    end = 0
    while end < end_ns:
        x = next_input()
        start = monotonic_ns()
        result = call(x)
        end = monotonic_ns()
        check(result, next_answer())
        if start >= begin_ns:
            latencies.append(end - start)
    return latencies.tobytes()


def shmbatch(wait: str, transport: str, warmup_s: float, measure_s: float) -> Figures:
    """Both sides wait as `wait` says."""
    from benchmarks import functions  # only here: the rivals must not depend on shmbatch

    with functions.app.run(wait=wait, transport=transport), Crew() as crew:
        crew.add(shmbatch_producer)
        (latencies,) = crew.measure(warmup_s, measure_s)
    return _percentiles(latencies)


def shmbatch_producer(cue: Cue) -> bytes:
    from benchmarks import functions

    functions.lone.remote(TINY.inputs(0)[0])  # connects
    return call_alone(cue, functions.lone.remote)


def pipe(warmup_s: float, measure_s: float) -> Figures:
    """A duplex Pipe; its ends are closed in the parent, so that end of file ends the server."""
    server, client = CONTEXT.Pipe()
    with Crew() as crew:
        with server, client:
            crew.add(pipe_server, server)
            crew.add(pipe_client, client)
        _, latencies = crew.measure(warmup_s, measure_s)
    return _percentiles(latencies)


def pipe_server(cue: Cue, connection: Connection) -> None:
    x: Array = TINY.batch()[0]
    cue.ready()
    while True:
        try:
            connection.recv_bytes_into(x)
        except EOFError:
            return
        connection.send_bytes(x.data)


def pipe_client(cue: Cue, connection: Connection) -> bytes:
    result: Array = TINY.results()[0]

    def call(x: Array) -> Array:
        connection.send_bytes(x.data)
        connection.recv_bytes_into(result)
        return result

    with connection:
        return call_alone(cue, call)


def queue(warmup_s: float, measure_s: float) -> Figures:
    """One Queue there and one back."""
    requests: Queue[Array | None] = CONTEXT.Queue()
    answers: Queue[Array] = CONTEXT.Queue()
    try:
        with Crew() as crew:
            crew.add(queue_server, requests, answers)
            crew.add(queue_client, requests, answers)
            _, latencies = crew.measure(warmup_s, measure_s)
    finally:
        for each in (requests, answers):
            each.close()
            each.join_thread()
    return _percentiles(latencies)


def queue_server(cue: Cue, requests: Queue[Array | None], answers: Queue[Array]) -> None:
    cue.ready()
    while (x := requests.get()) is not None:
        answers.put(x)


def queue_client(cue: Cue, requests: Queue[Array | None], answers: Queue[Array]) -> bytes:
    def call(x: Array) -> Array:
        requests.put(x)
        return answers.get()

    try:
        return call_alone(cue, call)
    finally:
        requests.put(None)


def ping_pong(program: Path, mode: str, warmup_s: float, measure_s: float) -> Figures:
    """Run the compiled pingpong.c on the first two CPUs that this process may use."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise SystemExit("the C ping-pongs need two CPUs; leave them out with --systems")
    times_ms = [f"{seconds * 1000:.0f}" for seconds in (warmup_s, measure_s)]
    finished = subprocess.run(
        [program, mode, *map(str, cpus), *times_ms],
        check=True,
        stdout=subprocess.PIPE,
        timeout=warmup_s + measure_s + PATIENCE_S,
    )
    samples = np.array(finished.stdout.split(), np.int64)
    if mode in ("futex", "semaphore"):
        return _report.percentiles_us(samples)
    # A sample is the mean of many round trips: its median is a median, its tail is not.
    return {"p50_us": float(np.median(samples)) / 1000}


def compile_ping_pong(folder: Path) -> Path:
    """Compile pingpong.c with the compiler that built Python, else with `cc`."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        compiler = "cc"
    program = folder / "pingpong"
    source = _report.HERE / "pingpong.c"
    subprocess.run(
        [compiler, "-O2", "-std=c11", "-pthread", "-o", program, source], check=True, timeout=60
    )
    return program


def ratios(figures: dict[str, list[Figures]]) -> list[_report.Ratio]:
    """What is promised about a lone call, as far as its systems were measured."""

    def p50(name: str) -> list[float]:
        return [run["p50_us"] for run in figures[name]]

    wanted: list[tuple[str, str, dict[str, float]]] = [
        ("auto", "c-spin", {"ceiling": 25}),
        ("auto", "c-pause", {"ceiling": 25}),
        ("pipe", "auto", {"floor": 20}),
        ("queue", "auto", {}),
        ("spin", "c-spin", {}),
        ("park", "c-futex", {"ceiling": 1.2}),
        ("park-posix", "park", {"ceiling": 1.5}),
        ("park-posix", "c-semaphore", {}),
    ]
    return [
        _report.ratio(f"{LABELS[above]} / {LABELS[below]}", p50(above), p50(below), **promise)
        for above, below, promise in wanted
        if above in figures and below in figures
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("roundtrip", __doc__, arguments, systems=list(LABELS))
    warmup_s, measure_s = (0.1, 0.2) if options.quick else (0.3, 1.0)
    facts = _report.machine_facts(datetime.now(UTC))
    with tempfile.TemporaryDirectory(prefix="pingpong-") as folder:
        program = compile_ping_pong(Path(folder))
        measures: dict[str, Callable[[float, float], Figures]] = {
            "pipe": pipe,
            "queue": queue,
            "auto": partial(shmbatch, "auto", "linux"),
            "c-spin": partial(ping_pong, program, "spin"),
            "c-pause": partial(ping_pong, program, "pause"),
            "spin": partial(shmbatch, "spin", "linux"),
            "park": partial(shmbatch, "park", "linux"),
            "park-posix": partial(shmbatch, "park", "posix"),
            "c-futex": partial(ping_pong, program, "futex"),
            "c-semaphore": partial(ping_pong, program, "semaphore"),
        }
        systems = {name: partial(measures[name], warmup_s, measure_s) for name in options.systems}
        figures = _options.alternate(systems, options.runs)

    spreads = {name: _report.spreads(runs) for name, runs in figures.items()}
    columns = ("p50_us", "p99_us", "p99.9_us")
    rows = [
        [LABELS[name], *(str(spread[key]) if key in spread else "-" for key in columns)]
        for name, spread in spreads.items()
    ]
    promised = ratios(figures)
    print(f"Lone call of 16 bytes, {options.runs} runs: median (min..max) over the runs, in µs")
    print(_report.facts_line(facts), end="\n\n")
    print(_report.table(["system", "p50", "p99", "p99.9"], rows), end="\n\n")
    print(_report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "roundtrip",
            "machine": facts,
            "parameters": {"runs": options.runs, "warmup_s": warmup_s, "measure_s": measure_s},
            "systems": {
                LABELS[name]: {key: spread.document() for key, spread in spread_of.items()}
                for name, spread_of in spreads.items()
            },
            "ratios": [ratio.document() for ratio in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


def _percentiles(latencies: bytes) -> Figures:
    return _report.percentiles_us(np.frombuffer(latencies, np.int64))


if __name__ == "__main__":
    main()
