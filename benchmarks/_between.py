"""What the machine takes between two batches of whoever serves them, shmbatch or not.

::

    cold    sleep as long as a function does, then the same little Python: how long does it take?
    waking  compute as long as a function does, then wake four processes: how long does that take?

A plain loop over ready-made batches pays for neither. After a sleep its CPU was halted too, and
its caches are another's too, but all it has to run is the next call; and nobody waits for it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from typing import TypeAlias

import numpy as np

from benchmarks import functions_pipeline as functions
from benchmarks._crew import CONTEXT, Crew, Cue
from shmbatch.protocol._core import set_timer_slack

Figures: TypeAlias = dict[str, float]

TIMER_SLACK_NS = 1_000  # as the executor has it
WAITERS = 4
TEXT = {str(number): [number, "text"] for number in range(8)}
WAIT_S = 0.1  # at most, of a waiter; much longer than between two batches


def cold(us: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of the same Python without a sleep, and after so long a one."""
    found = []
    for sleep_s in (0, us / 1e6):
        with Crew() as crew:
            crew.add(python_after, sleep_s)
            found += crew.measure(warmup_s, measure_s)
    hot_us, cold_us = found
    return {"hot_us": hot_us, "cold_us": cold_us, "cold_by_hot": cold_us / hot_us}


def waking(us: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of waking processes after having computed for so long."""
    semaphores = [CONTEXT.Semaphore(0) for _ in range(WAITERS)]
    with Crew() as crew:
        crew.add(wake_after, us, semaphores)
        for semaphore in semaphores:
            crew.add(wait, semaphore)
        waking_us, *_ = crew.measure(warmup_s, measure_s)
    return {"waking_us": waking_us}


def python_after(cue: Cue, sleep_s: float) -> float:
    """Sleep, and run some Python, again and again: the median microseconds of that Python."""
    set_timer_slack(TIMER_SLACK_NS)
    schedule = cue.ready()
    taken: list[int] = []
    while time.monotonic_ns() < schedule.end_ns:
        if sleep_s:
            time.sleep(sleep_s)
        started_ns = time.perf_counter_ns()
        json.loads(json.dumps(TEXT, indent=1))  # indented: by Python, not by C alone
        taken.append(time.perf_counter_ns() - started_ns)
    return statistics.median(taken) / 1000


def wake_after(cue: Cue, us: int, semaphores: Sequence[Semaphore]) -> float:
    """Compute, and wake all who wait, again and again: the median microseconds of waking."""
    batch = np.ones((functions.SIZE, functions.WIDTH), np.float32)
    repetitions = functions.repetitions(us)
    schedule = cue.ready()
    taken: list[int] = []
    while time.monotonic_ns() < schedule.end_ns:
        functions.multiplied(batch, repetitions)
        started_ns = time.perf_counter_ns()
        for semaphore in semaphores:
            semaphore.release()
        taken.append(time.perf_counter_ns() - started_ns)
    return statistics.median(taken) / 1000


def wait(cue: Cue, semaphore: Semaphore) -> None:
    schedule = cue.ready()
    while time.monotonic_ns() < schedule.end_ns:
        semaphore.acquire(timeout=WAIT_S)
