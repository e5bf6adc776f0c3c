"""What the machine does to whoever has something to do between two batches, shmbatch or not.

::

    python_after_sleep  sleep as long as a function does, then some Python, always the same: how
                        much longer does that take than without the sleep?
    wake_ups            compute as long as a function does, then wake four processes: how long?

A plain loop over ready-made batches pays for little of that. Its CPU was halted as well, but all
that it has to run then is the next call; and nobody waits for it.
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

WAITERS = 4
TEXT = {str(number): [number, "text"] for number in range(8)}
WAIT_S = 0.1  # at most, of a waiter, who then looks whether it is over


def python_after_sleep(us: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of the same Python without a sleep, and after so long a one."""
    found = []
    for sleep_s in (0, us / 1e6):
        with Crew() as crew:
            crew.add(sleep_and_run, sleep_s)
            found += crew.measure(warmup_s, measure_s)
    hot_us, cold_us = found
    return {"hot_us": hot_us, "cold_us": cold_us, "cold_by_hot": cold_us / hot_us}


def wake_ups(us: int, warmup_s: float, measure_s: float) -> Figures:
    """One run of waking processes after having computed for so long."""
    semaphores = [CONTEXT.Semaphore(0) for _ in range(WAITERS)]
    with Crew() as crew:
        crew.add(compute_and_wake, us, semaphores)
        for semaphore in semaphores:
            crew.add(wait, semaphore)
        waking_us, *_ = crew.measure(warmup_s, measure_s)
    return {"waking_us": waking_us}


def sleep_and_run(cue: Cue, sleep_s: float) -> float:
    """Sleep, and run some Python, again and again: the median microseconds of that Python."""
    set_timer_slack(functions.TIMER_SLACK_NS)
    schedule = cue.ready()
    taken: list[int] = []
    while (now := time.monotonic_ns()) < schedule.end_ns or not taken:
        if sleep_s:
            time.sleep(sleep_s)
        started_ns = time.perf_counter_ns()
        json.loads(json.dumps(TEXT, indent=1))  # indented: by Python, not by C alone
        if now >= schedule.begin_ns:
            taken.append(time.perf_counter_ns() - started_ns)
    return statistics.median(taken) / 1000


def compute_and_wake(cue: Cue, us: int, semaphores: Sequence[Semaphore]) -> float:
    """Compute, and wake all who wait, again and again: the median microseconds of waking."""
    batch = np.ones((functions.SIZE, functions.WIDTH), np.float32)
    repetitions = functions.repetitions(us)
    schedule = cue.ready()
    taken: list[int] = []
    while (now := time.monotonic_ns()) < schedule.end_ns or not taken:
        functions.multiplied(batch, repetitions)
        started_ns = time.perf_counter_ns()
        for semaphore in semaphores:
            semaphore.release()
        if now >= schedule.begin_ns:
            taken.append(time.perf_counter_ns() - started_ns)
    return statistics.median(taken) / 1000


def wait(cue: Cue, semaphore: Semaphore) -> None:
    """Sleep until woken, again and again."""
    schedule = cue.ready()
    while time.monotonic_ns() < schedule.end_ns:
        semaphore.acquire(timeout=WAIT_S)
