"""Does the device rest between batches, and are the next one's inputs copied meanwhile?

::

    h2d      |copy 1|copy 2|                      |copy 3|
    compute         |  f(batch 1)  ||  f(batch 2)        ||  f(batch 3) ...
                                   idle

Two looks at an executor that has more calls waiting than it can run. By CUDA events, which the
function records around what it does: how much of the time the compute stream has nothing of it to
do, in each run. By torch's profiler: how much of the time of all copies to the device lies under
a batch that runs, and a stretch of the trace.

In the trace rows are of 602 KB, 16 in a batch; else of 4 KiB, 32 in a batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks import _report
from benchmarks._crew import Schedule
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Load, Stand, standing
from benchmarks.gpu.functions import SLEEPS_US

IDLE_CEILING, IDLE_FROM_US = 0.05, 300
UNDER_FLOOR = 0.9
TRACED = "image_1000"
TRACED_S = 0.05

Interval = tuple[float, float]  # microseconds


def measure(setting: Setting) -> Part:
    part, rows = Part(), []
    setting.calibrate()
    with standing(setting) as stand:
        for us in setting.few(SLEEPS_US[:-1]):
            busy_us, shares = _idle(stand, setting, f"sleep_{us}", us)
            shown = spread(busy_us)
            rows.append([f"{us} us", str(shown), str(spread([100 * each for each in shares]))])
            part.figures[f"sleep_{us}"] = {
                "batch_us": shown.document(),
                "idle_share": spread(shares).document(),
            }
            if us >= IDLE_FROM_US:
                part.promise(
                    f"idle share at {us} us a batch", shares, floor=None, ceiling=IDLE_CEILING
                )
        part.tables.append(_report.table(["function", "measured us a batch", "idle %"], rows))
        trace = _trace(stand, setting)
    copies, kernels = copies_and_kernels(trace["traceEvents"])
    under = share_under(copies, kernels)
    part.figures["trace"] = {
        "file": str(setting.folder / "trace.json"),
        "copies": len(copies),
        "kernels": len(kernels),
        "copied_under_compute": under,
    }
    if not copies or not kernels:
        part.tables.append(
            f"the trace has {len(copies)} copies to the device and {len(kernels)} kernels"
        )
        if not setting.rehearsal:
            raise RuntimeError("the profiler has recorded no copies or no kernels")
        return part
    part.promise("copies to the device that lie under a batch", [under], floor=UNDER_FLOOR)
    part.tables.append(excerpt(copies, kernels))
    return part


def _idle(stand: Stand, setting: Setting, name: str, us: int) -> tuple[list[float], list[float]]:
    """Return the median duration of a batch, and the share of the time between, run by run."""
    found: list[dict[str, list[float]]] = []

    def watch(schedule: Schedule) -> None:
        _until(schedule.begin_ns)
        while time.monotonic_ns() < schedule.end_ns:
            stand.ask(f"watch {name}")
            time.sleep(0.8 * setting.window_s)
            found.append(stand.ask(f"watched {name}"))

    stand.ask("cpu")  # connects
    work = Load(name, (1024,), 16)
    stand.load(work, setting, windows=setting.runs + 1, meanwhile=watch)
    whole = [each for each in found if len(each["idle_ms"]) > 1][: setting.runs]
    if not whole and setting.rehearsal:  # on a busy machine
        whole = [{"busy_ms": [1.0], "idle_ms": [1.0]}]
    if not whole:
        raise RuntimeError(f"{name}: no two batches in {setting.window_s} s")
    return (
        [float(1e3 * np.median(each["busy_ms"])) for each in whole],
        [sum(each["idle_ms"]) / (sum(each["idle_ms"]) + sum(each["busy_ms"])) for each in whole],
    )


def _trace(stand: Stand, setting: Setting) -> dict[str, Any]:
    path = setting.folder / "trace.json"
    # The first profile of a process takes seconds to begin.
    for _ in range(1 if setting.rehearsal else 2):
        stand.ask("profile")
        stand.ask(f"profiled {path}")

    def profile(schedule: Schedule) -> None:
        _until(schedule.begin_ns)
        stand.ask("profile")
        time.sleep(TRACED_S)
        stand.ask(f"profiled {path}")

    stand.load(Load(TRACED, (3, 224, 224), 8), setting, meanwhile=profile)
    trace: dict[str, Any] = json.loads(path.read_text())
    return trace


def _until(at_ns: int) -> None:
    time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)


def copies_and_kernels(
    events: Iterable[dict[str, Any]],
) -> tuple[list[Interval], list[Interval]]:
    """Return when the copies to the device and the kernels of a trace ran, in order."""
    copies, kernels = [], []
    for event in events:
        if event.get("ph") != "X":
            continue
        interval = (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        if event.get("cat") == "kernel":
            kernels.append(interval)
        elif event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]:
            copies.append(interval)
    return sorted(copies), sorted(kernels)


def share_under(copies: Sequence[Interval], kernels: Sequence[Interval]) -> float:
    """Return how much of the time of all copies lies under some kernel.

    Of those between the first kernel's begin and the last one's end: what was before and after
    was not recorded.
    """
    merged: list[Interval] = []
    for begin, end in kernels:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    total = under = 0.0
    for begin, end in copies:
        if merged and merged[0][0] <= begin and end <= merged[-1][1]:
            total += end - begin
            under += sum(max(0.0, min(end, b) - max(begin, a)) for a, b in merged)
    return under / total if total else 0.0


def excerpt(copies: Sequence[Interval], kernels: Sequence[Interval], count: int = 6) -> str:
    """Return a table of some batches: when each ran, and what was copied meanwhile."""
    longest = max(end - begin for begin, end in kernels)
    batches = [each for each in kernels if each[1] - each[0] > longest / 2]
    middle = max(0, len(batches) // 2 - count // 2)
    shown = batches[middle : middle + count]
    origin = shown[0][0]
    rows, before = [], None
    for begin, end in shown:
        under = [each for each in copies if each[0] < end and each[1] > begin]
        copied = sum(min(end, b) - max(begin, a) for a, b in under)
        rows.append(
            [
                f"{begin - origin:.0f}..{end - origin:.0f}",
                "" if before is None else f"{begin - before:.1f}",
                str(len(under)),
                f"{copied:.0f}",
            ]
        )
        before = end
    header = ["batch on the device, us", "since the last", "copies under it", "us of copies"]
    return _report.table(header, rows)
