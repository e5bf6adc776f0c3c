"""How long an executor's death, or a reload, keeps results away from a producer.

::

    supervisor  (shmbatch start --restart)
      |- executor, killed with -9      producer: remote() in a closed loop
      `- the next one  -------------->           its first result

Answers: how long after ``kill -9`` of an executor of a trivial function has a producer the first
result of the next one; how long does a reload leave nobody who accepts producers, as the
supervisor measures it, and can a producer that connects without waiting tell; what is the longest
pause between results of a closed loop while the executor is reloaded, and what is it in as long a
stretch just before. Every run has a supervisor of its own.

Not answered here: how long a model takes to load, which comes on top of a restart, but not of a
reload: there the old executor serves meanwhile; what becomes of calls (the tests do).

    $ python -m benchmarks.bench_restart            # 8 runs, about 1 min
    $ python -m benchmarks.bench_restart --quick    # 1 run
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shmbatch
from benchmarks import _options, _report
from benchmarks._crew import CONTEXT, PATIENCE_S, Crew, Cue
from shmbatch.client import pool
from shmbatch.client.reloading import reload
from shmbatch.errors import ExecutorGone
from shmbatch.protocol import owners

NAME = "bench-restart"


@dataclass(frozen=True, slots=True)
class Stretch:
    """How long what is measured may take, seconds."""

    steady: float = 2.0  # a supervisor restarts at once what has served for a second
    quiet: float = 2.0  # before a reload, for comparison
    after: float = 60.0  # for the executor to come back, or to be reloaded, at most


QUICK = Stretch(0.2, 0.5)

Results = NDArray[np.int64]  # a row a result: when it was called and when it came, nanoseconds


def call_again_and_again(cue: Cue, enough: Any) -> Results:
    """One producer: note when each result was called and came, until one called after *enough*."""
    lone = shmbatch.connect(f"{NAME}.lone", timeout=PATIENCE_S)
    x = np.zeros(2)
    results = []
    schedule = cue.ready()
    while (called_ns := monotonic_ns()) < schedule.end_ns:
        x += 1
        try:
            answer = lone.remote(x)
        except ExecutorGone:
            continue  # it was under way when the executor was killed
        results.append((called_ns, monotonic_ns()))
        if not np.array_equal(answer, x):
            raise AssertionError(f"lone({x}) gave {answer}")
        if 0 < enough.value < called_ns:
            break
    return np.array(results, np.int64)


def connect_again_and_again(cue: Cue, enough: Any) -> int:
    """One producer after another: connect without waiting, call, hang up; return how often."""
    schedule = cue.ready()
    connected = 0
    while monotonic_ns() < schedule.end_ns and not enough.value:
        lone = shmbatch.connect(f"{NAME}.lone", timeout=0)
        lone.remote(np.zeros(2))
        pool.forget(NAME)
        connected += 1
    return connected


def measure_restart(stretch: Stretch) -> dict[str, float]:
    """Kill the executor under a producer; milliseconds until that has a result again."""
    with Crew() as crew:
        enough = CONTEXT.Value("q", 0, lock=False)  # nanoseconds
        crew.add(call_again_and_again, enough)
        schedule = crew.begin(stretch.steady, stretch.after)
        _sleep_until(schedule.begin_ns)
        enough.value = killed_ns = _kill_executor()
        (results,) = crew.finish(schedule)
    later = results[results[:, 0] > killed_ns]
    if not len(later):
        raise AssertionError(f"no result within {stretch.after:g} s of the kill")
    return {"restart_ms": (later[0, 1] - killed_ns) / 1e6}


def measure_reload(stretch: Stretch) -> dict[str, float]:
    """Reload under a producer, and once more under one that connects again and again."""
    figures, results, begun_ns, over_ns = _reloaded(call_again_and_again, stretch)
    took_ns = over_ns - begun_ns
    figures["pause_ms"] = _longest_pause_ms(results, begun_ns, over_ns)
    figures["pause_before_ms"] = _longest_pause_ms(results, begun_ns - took_ns, begun_ns)
    knocked, connected, _, _ = _reloaded(connect_again_and_again, stretch)
    figures["gap_ms"] = max(figures["gap_ms"], knocked["gap_ms"])
    return figures | {"connected": connected}


def _reloaded(
    producer: Callable[[Cue, Any], Any], stretch: Stretch
) -> tuple[dict[str, float], Any, int, int]:
    """Reload under a producer: what it took, what the producer found, and from when to when."""
    with Crew() as crew:
        enough = CONTEXT.Value("q", 0, lock=False)
        crew.add(producer, enough)
        schedule = crew.begin(0, stretch.quiet + stretch.after)
        _sleep_until(schedule.begin_ns + int(stretch.quiet * 1e9))
        begun_ns = monotonic_ns()
        reloaded = reload(NAME)
        enough.value = over_ns = monotonic_ns()
        if over_ns > schedule.end_ns:
            raise AssertionError(f"the reload took longer than {stretch.after:g} s")
        (found,) = crew.finish(schedule)
    figures = {"load_ms": reloaded.load_s * 1e3, "gap_ms": reloaded.gap_s * 1e3}
    return figures, found, begun_ns, over_ns


def _longest_pause_ms(results: Results, begin_ns: int, end_ns: int) -> float:
    came_ns = results[:, 1]
    within = came_ns[(came_ns >= begin_ns) & (came_ns <= end_ns)]
    return float(np.diff(np.concatenate(([begin_ns], within, [end_ns]))).max() / 1e6)


def _kill_executor() -> int:
    owner = owners.owner(NAME)
    assert owner is not None
    assert owner.pid is not None
    killed_ns = monotonic_ns()
    os.kill(owner.pid, signal.SIGKILL)
    return killed_ns


def _sleep_until(at_ns: int) -> None:
    time.sleep(max(0, at_ns - monotonic_ns()) / 1e9)


@contextmanager
def _supervisor(log: Path) -> Iterator[None]:
    """Start one; end it on leaving."""
    command = [sys.executable, "-c", "from shmbatch.cli import main; main()", "start"]
    command += [str(_report.HERE / "functions.py"), "--name", NAME, "--restart"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield
        process.terminate()
        if process.wait(PATIENCE_S) != 0:
            raise AssertionError(f"the supervisor ended with {process.returncode}")
    except BaseException as error:
        error.add_note(f"supervisor and executors wrote:\n{log.read_text()}")
        raise
    finally:
        process.kill()
        process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("restart", __doc__, arguments, runs=8)
    stretch = QUICK if options.quick else Stretch()
    facts = _report.machine_facts(datetime.now(UTC))
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="shmbatch-") as folder:
        os.environ["SHMBATCH_DIR"] = str(Path(folder, "names"))
        for run in range(options.runs):
            print(f"run {run + 1} of {options.runs}", file=sys.stderr, flush=True)
            with _supervisor(Path(folder, "log")):
                runs.append(measure_restart(stretch) | measure_reload(stretch))

    figures = _report.spreads(runs)
    rows = [
        ["kill -9 to the first new result, ms", str(figures["restart_ms"])],
        ["a reload: nobody accepts producers, ms", str(figures["gap_ms"])],
        ["a reload: the new executor loads, ms", str(figures["load_ms"])],
        ["a reload: longest pause between results, ms", str(figures["pause_ms"])],
        ["as long without one: longest pause, ms", str(figures["pause_before_ms"])],
        ["connected without waiting, none in vain", str(figures["connected"])],
    ]
    print(f"restart and reload of a trivial function, {options.runs} runs")
    print(_report.facts_line(facts), end="\n\n")
    print(_report.table(["what", "median (range over the runs)"], rows))
    if options.out is not None:
        document = {
            "benchmark": "restart",
            "machine": facts,
            "parameters": {"runs": options.runs, **asdict(stretch)},
            "figures": {name: spread.document() for name, spread in figures.items()},
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
