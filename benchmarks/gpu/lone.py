"""What does a lone call take, and what of it does the device?

::

    one producer: f.remote(x) --> executor --> H2D, f, D2H --> result      nobody else calls
    one process:                 (H2D,) f, D2H, wait                        the bare loop

Rows of 4 KiB, results of 64 bytes, `wait_ms=0`. The bare loop waits as the executor does, asleep
(`torch.cuda.Event(blocking=True)`), and spinning. Nothing is promised: it is there to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import _report
from benchmarks.gpu import functions
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Load, standing


def measure(setting: Setting) -> Part:
    part = Part()
    setting.calibrate()
    bare = {
        "bare f + D2H + wait, asleep": _bare(setting, copies=False, blocking=True),
        "bare H2D + f + D2H + wait, asleep": _bare(setting, copies=True, blocking=True),
        "bare H2D + f + D2H + wait, spinning": _bare(setting, copies=True, blocking=False),
    }
    found = {
        name: [_run(once, setting) for _ in range(setting.runs)] for name, once in bare.items()
    }
    with standing(setting) as stand:
        ended = stand.load(Load("lone", (1024,), 1), setting, producers=1)
    served = [_report.percentiles_us(took) for took in ended.took(setting.runs) if len(took)]
    found = {"served, f.remote": served} | found
    rows = []
    for name, runs in found.items():
        spreads = {key: spread([run[key] for run in runs]) for key in ("p50_us", "p99_us")}
        part.figures[name] = {key: each.document() for key, each in spreads.items()}
        rows.append([name, *map(str, spreads.values())])
    part.tables.append(_report.table(["lone call, us", "p50", "p99"], rows))
    asleep = found["bare H2D + f + D2H + wait, asleep"]
    extra = [mine["p50_us"] - its["p50_us"] for mine, its in zip(served, asleep, strict=False)]
    part.promise("served less bare, asleep: p50, us", extra, floor=None)
    return part


def _bare(setting: Setting, *, copies: bool, blocking: bool) -> Callable[[], None]:
    host = setting.pinned(torch.rand(1, 1024))
    batch = host.to(setting.device)
    result = setting.pinned(torch.empty(1, functions.RESULTS))
    right = host[:, : functions.RESULTS] * 2 + 1
    function = getattr(functions, "lone").local  # noqa: B009 - made by `_serve`
    event = None if setting.rehearsal else torch.cuda.Event(blocking=blocking)

    def once() -> None:
        if copies:
            batch.copy_(host, non_blocking=True)
        result.copy_(function(batch), non_blocking=True)
        if event is not None:
            event.record()
            event.synchronize()

    result.zero_()
    once()
    torch.testing.assert_close(result, right, rtol=0, atol=0)
    return once


def _run(once: Callable[[], None], setting: Setting) -> dict[str, float]:
    samples = []
    end = time.perf_counter() + setting.window_s
    while (since := time.perf_counter()) < end:
        once()
        samples.append(int(1e9 * (time.perf_counter() - since)))
    return _report.percentiles_us(np.array(samples, np.int64))
