"""How soon waiting callers hear that their executor was killed.

::

    producer 0..3, a process each:   4 threads in remote()  --+
                                     4 tasks in remote.aio() -+--> executor, killed with -9
             ^                                                         |
             +----- ExecutorGone, in every one of the 32 waiters ------+

Answers: how long after ``kill -9`` has each waiter got its ExecutorGone, in threads and in
asyncio? The executor is started with ``shmbatch start``, which nobody supervises; the calls
wait for a batch that is not due for ten minutes. The moment of the kill is random, so that it
meets sleepers anywhere in their sleep. Every kill has fresh processes.

Not answered here: the death of a producer, which nobody waits for; killing in the middle of a
handshake or of a batch (the tests do); restarting.

    $ python -m benchmarks.bench_death            # 24 kills, about 1 min
    $ python -m benchmarks.bench_death --quick    # 2 kills
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import TypeAlias

import numpy as np

import shmbatch
from benchmarks import _options, _report
from benchmarks._crew import PATIENCE_S, Crew, Cue
from shmbatch.errors import ExecutorGone

PRODUCERS = 4
THREADS = 4
TASKS = 4
NAME = "bench-death"
LIMIT_MS = 100

Heard: TypeAlias = list[tuple[str, int, int]]  # kind of waiter, called and heard in nanoseconds


def wait_for_death(cue: Cue) -> Heard:
    """One producer: let all waiters call, and note when each hears."""
    function = shmbatch.connect(f"{NAME}.never", timeout=PATIENCE_S)
    x = np.zeros(2)
    heard: Heard = []

    def wait_in_thread() -> None:
        called_ns = monotonic_ns()
        try:
            function.remote(x)
        except ExecutorGone:
            heard.append(("thread", called_ns, monotonic_ns()))

    async def wait_in_task() -> None:
        called_ns = monotonic_ns()
        try:
            await function.remote.aio(x)
        except ExecutorGone:
            heard.append(("asyncio", called_ns, monotonic_ns()))

    async def wait_in_tasks() -> None:
        await asyncio.gather(*(wait_in_task() for _ in range(TASKS)))

    waiters = [threading.Thread(target=wait_in_thread, daemon=True) for _ in range(THREADS)]
    waiters.append(threading.Thread(target=asyncio.run, args=(wait_in_tasks(),), daemon=True))
    for waiter in waiters:
        waiter.start()
    cue.ready()
    deadline = time.monotonic() + PATIENCE_S / 2
    for waiter in waiters:
        waiter.join(max(0.0, deadline - time.monotonic()))
    if len(heard) != THREADS + TASKS:
        raise AssertionError(f"{THREADS + TASKS - len(heard)} waiters never heard")
    return heard


def kill_once(log: Path) -> dict[str, list[float]]:
    """Start an executor, kill it under its waiters; milliseconds until each heard, by kind."""
    command = [sys.executable, "-c", "from shmbatch.cli import main; main()", "start"]
    command += [str(_report.HERE / "functions.py"), "--name", NAME]
    with log.open("wb") as stderr:
        executor = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        with Crew() as crew:
            for _ in range(PRODUCERS):
                crew.add(wait_for_death)
            schedule = crew.begin(random.uniform(0.15, 0.25), 0)
            time.sleep(max(0, schedule.begin_ns - monotonic_ns()) / 1e9)
            if executor.poll() is not None:
                raise RuntimeError(f"the executor ended by itself:\n{log.read_text()}")
            killed_ns = monotonic_ns()
            executor.kill()
            waiters = [waiter for heard in crew.finish(schedule) for waiter in heard]
    except (RuntimeError, TimeoutError) as error:
        error.add_note(f"the executor wrote:\n{log.read_text()}")
        raise
    finally:
        executor.kill()
        executor.wait()
    delays: dict[str, list[float]] = {"thread": [], "asyncio": []}
    for kind, called_ns, heard_ns in waiters:
        if called_ns > killed_ns - 50_000_000 or heard_ns < killed_ns:
            raise AssertionError(f"a waiter in {kind} did not wait while its executor was killed")
        delays[kind].append((heard_ns - killed_ns) / 1e6)
    return delays


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("death", __doc__, arguments, runs=24, quick_runs=2)
    facts = _report.machine_facts(datetime.now(UTC))
    kills: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory(prefix="shmbatch-") as folder:
        # A directory of names of its own: a killed executor leaves its socket there.
        os.environ["SHMBATCH_DIR"] = str(Path(folder, "names"))
        for kill in range(options.runs):
            print(f"kill {kill + 1} of {options.runs}", file=sys.stderr, flush=True)
            kills.append(kill_once(Path(folder, "log")))

    kinds = {
        "threads": [delay for kill in kills for delay in kill["thread"]],
        "asyncio tasks": [delay for kill in kills for delay in kill["asyncio"]],
    }
    kinds["all"] = [delay for delays in kinds.values() for delay in delays]
    steps = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    distribution = {
        kind: {step: float(np.percentile(delays, q)) for step, q in steps.items()}
        for kind, delays in kinds.items()
    }
    slowest = _report.Spread(tuple(max(kill["thread"] + kill["asyncio"]) for kill in kills))
    promised = [
        _report.Ratio("slowest waiter of a kill, ms", slowest),
        _report.Ratio(
            "slowest waiter of all kills, ms",
            _report.Spread((max(slowest.values),)),
            ceiling=LIMIT_MS,
        ),
    ]

    waiters = f"{PRODUCERS} producers x ({THREADS} threads + {TASKS} asyncio tasks)"
    print(f"kill -9 of the executor under {waiters}, {options.runs} kills: ms until each heard")
    print(_report.facts_line(facts), end="\n\n")
    rows = [
        [kind, str(len(kinds[kind])), *map(_report.number, steps_of.values())]
        for kind, steps_of in distribution.items()
    ]
    print(_report.table(["waiters", "heard", *steps], rows), end="\n\n")
    print(_report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "death",
            "machine": facts,
            "parameters": {
                "kills": options.runs,
                "producers": PRODUCERS,
                "threads": THREADS,
                "asyncio_tasks": TASKS,
                "wait": os.environ.get("SHMBATCH_WAIT", "auto"),
            },
            "delays_ms": distribution,
            "kills": [{kind: sorted(delays) for kind, delays in kill.items()} for kill in kills],
            "promises": [promise.document() for promise in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
