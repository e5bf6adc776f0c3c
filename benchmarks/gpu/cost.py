"""What CPU time does the executor take for a batch and for a call, the function apart?

::

    producers x 16 in flight --> executor --> xs: as it came, in batches of 1, and of up to 32

The executor's process says how much CPU time it has used, all its threads, CUDA's too; between
two such answers it has run so many batches of so many calls. Two mean sizes of a batch make two
equations, and these two figures: microseconds a batch and microseconds a call.

Nobody spins in the executor (`wait="park"`), so that waiting is no CPU time; producers do, so that
it need not wake them. What it takes to go to sleep and to come back is in the figures.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from benchmarks import _report
from benchmarks._crew import Schedule
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Load, Stand, standing

BATCH_US, CALL_US = 60.0, 0.5


def measure(setting: Setting) -> Part:
    part = Part()
    setting.calibrate()
    with standing(setting, wait="park") as stand:
        small, large = (_batches(stand, setting, f"same_{size}") for size in (1, 32))
    batch_us, call_us = [], []
    for (one_us, one_size), (many_us, many_size) in zip(small, large, strict=True):
        each_us = (many_us - one_us) / max(many_size - one_size, 1e-9)
        call_us.append(each_us)
        batch_us.append(one_us - one_size * each_us)
    part.promise("executor's CPU, us a batch", batch_us, floor=None, ceiling=BATCH_US)
    part.promise("executor's CPU, us a call", call_us, floor=None, ceiling=CALL_US)
    rows = []
    for name, found in (("same_1", small), ("same_32", large)):
        times, sizes = ([each[which] for each in found] for which in (0, 1))
        part.figures[name] = {
            "us_a_batch": spread(times).document(),
            "calls_a_batch": spread(sizes).document(),
        }
        rows.append([name, str(spread(sizes)), str(spread(times))])
    part.tables.append(_report.table(["function", "calls a batch", "CPU us a batch"], rows))
    return part


def _batches(stand: Stand, setting: Setting, name: str) -> list[tuple[float, float]]:
    """Return the CPU time of a batch in microseconds, and its calls, of each run."""
    answers: list[dict[str, Any]] = []

    def look(schedule: Schedule) -> None:
        step_ns = (schedule.end_ns - schedule.begin_ns) / setting.runs
        for edge in range(setting.runs + 1):
            at_ns = schedule.begin_ns + edge * step_ns
            time.sleep(max(0.0, at_ns - time.monotonic_ns()) / 1e9)
            answers.append(stand.ask("cpu"))

    stand.ask("cpu")  # connects
    stand.load(Load(name, (16,), 16, answered=False, wait="spin"), setting, meanwhile=look)
    found = []
    for before, after in pairwise(answers):
        then, now = before["runs"].get(name, [0, 0]), after["runs"].get(name, [0, 0])
        batches, calls = now[0] - then[0], now[1] - then[1]
        if not batches and setting.rehearsal:  # on a busy machine
            batches = calls = 1
        if not batches:
            raise RuntimeError(f"{name}: no batch in {setting.window_s} s")
        found.append(((after["cpu_ns"] - before["cpu_ns"]) / 1e3 / batches, calls / batches))
    return found
