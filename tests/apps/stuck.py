"""Functions that do not come to an end, in every way, and some that do."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from pathlib import Path

import shmbatch
from tests import processes

app = shmbatch.App()
LIMIT_S = 0.8
PATIENT_S = 1.5


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, execution_timeout=LIMIT_S)
def waits(xs: list[int]) -> list[int]:
    """Lets go of the GIL."""
    if xs[0] < 0:
        threading.Event().wait()
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, execution_timeout=LIMIT_S)
def holds(xs: list[int]) -> list[int]:
    """Holds the GIL, as a loop in C does that knows nothing of Python."""
    if xs[0] < 0:
        ctypes.PyDLL(None).pause()
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, execution_timeout=LIMIT_S)
async def awaits(xs: list[float]) -> list[float]:
    if xs[0] < 0:
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(xs[0])
    return xs


class Sticky:
    """A result that can be made and not be sent."""

    def __reduce__(self) -> str:
        threading.Event().wait()
        return ""


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, codec="pickle", execution_timeout=LIMIT_S)
def delivers(xs: list[int]) -> list[object]:
    return [Sticky() if x < 0 else x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, execution_timeout=PATIENT_S)
def gated(xs: list[int]) -> list[int]:
    processes.pass_through(xs)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, execution_timeout=LIMIT_S)
def freezes(xs: list[int]) -> list[int]:
    """Stops the process before the watchdog, which has been woken, has run."""
    if xs[0] < 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        mine = threading.get_native_id()
        for other in (int(task.name) for task in Path("/proc/self/task").iterdir()):
            if other != mine:
                os.sched_setaffinity(other, os.sched_getaffinity(0))
                os.sched_setscheduler(other, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait(LIMIT_S / 4)  # in which the watchdog looks
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def unlimited(xs: list[int]) -> list[int]:
    """Takes longer than the others may."""
    threading.Event().wait(2 * LIMIT_S)
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    return xs


@app.cls()
class Plain:
    """A method that takes one call at a time."""

    @shmbatch.method(execution_timeout=LIMIT_S)
    def stops(self, x: int) -> int:
        threading.Event().wait()
        return x
