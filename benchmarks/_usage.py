"""What processes use: CPU time and memory of any, batches of an executor, over a stretch of time.

A process's CPU clock can be read by others, in nanoseconds; its division into user and system
time is the kernel's estimate, in ticks of 10 ms.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._crew import Schedule

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SEGMENT = "/memfd:shmbatch-segment"


def cpu_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process, user and system."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # CPUCLOCK_SCHED of <linux/posix-timers.h>


def user_and_system_s(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS_PER_S, int(fields[12]) / _TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes: what a process has to itself, and its share of segments that are mapped."""

    anonymous: int
    segments_pss: int


def memory(pid: int) -> Memory:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = 0
    is_segment = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:  # the first line of a mapping
            is_segment = _SEGMENT in line
        elif is_segment and line.startswith("Pss:"):
            pss += int(line.split()[1]) * 1024
    anonymous = re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    assert anonymous is not None
    return Memory(int(anonymous[1]) * 1024, pss)


@dataclass(frozen=True, slots=True)
class Used:
    """What an executor used, and did for one function, over so many seconds."""

    seconds: float
    cpu_s: float
    user_s: float
    system_s: float
    calls: int
    batches: int

    @property
    def mean_batch_size(self) -> float:
        return self.calls / self.batches if self.batches else 0.0


def used_by_executor(pid: int, app: str, function: str, schedule: Schedule) -> Used:
    """Block until the schedule's end; return what happened from its begin until then."""
    _done(app, function)  # for what it imports
    _sleep_until(schedule.begin_ns)
    calls, batches = _done(app, function)  # which takes time itself, before and after
    first = _Clocks(pid)
    _sleep_until(schedule.end_ns)
    last = _Clocks(pid)
    calls_then, batches_then = _done(app, function)
    return Used(
        (last.now_ns - first.now_ns) / 1e9,
        (last.cpu_ns - first.cpu_ns) / 1e9,
        last.user_s - first.user_s,
        last.system_s - first.system_s,
        calls_then - calls,
        batches_then - batches,
    )


class _Clocks:
    def __init__(self, pid: int) -> None:
        self.now_ns = time.monotonic_ns()
        self.cpu_ns = cpu_ns(pid)
        self.user_s, self.system_s = user_and_system_s(pid)


def _done(app: str, function: str) -> tuple[int, int]:
    """Return how many calls and batches the executor has done so far."""
    import shmbatch  # only here: the rivals must not depend on shmbatch

    counted = shmbatch.statistics(app)["functions"][function]
    return counted["calls_done"], counted["batches"]


def _sleep_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / 1e9)
