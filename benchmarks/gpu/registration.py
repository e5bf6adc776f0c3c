"""What does it cost to let the device copy straight out of a producer's slots?

::

    memfd, mapped, touched --register--> pages locked, mapped for the device --unregister-->
    producer --connect--> executor: segment made, touched, registered --> connected

By itself, of 256 MiB; and in what a producer waits for when it connects to a function on rows of
602 KB, with `direct_dma=True` and with False. An attach may take 5 ms and 1.2 ms a MB of slots.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np

import shmbatch
from benchmarks import _report
from benchmarks._works import WrongAnswer
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Stand, standing
from shmbatch.client import pool

ATTACH_MS, ATTACH_MS_PER_MB = 5.0, 1.2


def measure(setting: Setting) -> Part:
    part = Part()
    setting.calibrate()
    rows = []
    for name, seconds in _registered(setting).items():
        rows.append([f"{name}, ms a GB", str(spread([1e3 * each for each in seconds]))])
        part.figures[f"{name}_s_per_gb"] = spread(seconds).document()
    with standing(setting) as stand:
        for name in ("image_gathered", "image_direct"):
            times_ms, segment_mb = _attached(stand, setting, name)
            budget_ms = ATTACH_MS + ATTACH_MS_PER_MB * segment_mb
            part.promise(
                f"attach to {name}, {segment_mb:.0f} MB: of {budget_ms:.0f} ms",
                [each / budget_ms for each in times_ms],
                floor=None,
                ceiling=1.0,
            )
            part.figures[name] = {"attach_ms": spread(times_ms).document(), "mb": segment_mb}
            rows.append([f"attach to {name}, ms", str(spread(times_ms))])
    part.tables.append(_report.table(["what", "measured"], rows))
    return part


def _registered(setting: Setting) -> dict[str, list[float]]:
    """Return the seconds a GB of registering a segment and of undoing it."""
    if setting.rehearsal:
        return {}
    from shmbatch.executor.staging.runtime import TorchRuntime

    runtime = TorchRuntime(0)
    nbytes = 256 << 20
    fd = os.memfd_create("gpu-registration")
    os.posix_fallocate(fd, 0, nbytes)
    memory = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    os.close(fd)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    found: dict[str, list[float]] = {"register": [], "unregister": []}
    for run in range(setting.runs + 1):
        since = time.perf_counter()
        if not runtime.register(address, nbytes):
            raise RuntimeError(f"CUDA does not register {nbytes} bytes of a memfd")
        registered = time.perf_counter()
        runtime.unregister(address)
        if run:  # the first one warms up
            found["register"].append((registered - since) / (nbytes / 1e9))
            found["unregister"].append((time.perf_counter() - registered) / (nbytes / 1e9))
    return found


def _attached(stand: Stand, setting: Setting, name: str) -> tuple[list[float], float]:
    """Return how many ms each of several attaches took, and the megabytes of its segment."""
    app = stand.functions.app.name
    times_ms = []
    for run in range(setting.runs + 1):
        since = time.perf_counter()
        function = shmbatch.connect(f"{app}.{name}", arrays="numpy")
        took = time.perf_counter() - since
        row: Any = np.random.default_rng().random((3, 224, 224), np.float32)
        if not np.array_equal(function.remote(row), row.reshape(-1)[:16] * 2 + 1):
            raise WrongAnswer(f"{name} answered something else")
        counted = shmbatch.statistics(app)["functions"][name]
        if run:
            times_ms.append(1e3 * took)
        _hang_up(app, name)
    return times_ms, counted["segment_nbytes"] / 1e6


def _hang_up(app: str, name: str) -> None:
    """Drop this process's connections, and wait until the executor has noticed."""
    from shmbatch.protocol import names

    pool.forget(names.resolve(app))
    deadline = time.monotonic() + 10
    while shmbatch.statistics(app)["functions"][name]["producers"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the executor still has a producer of {name}")
        time.sleep(0.001)
