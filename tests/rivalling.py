"""A rival of the benchmarks that behaves badly, as it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._crew import CONTEXT, PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

# Starts a process that outlives it, in a session of its own, and says which one.
DETACHED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
    time.sleep(600)
"""


def measure(
    work: Work, load: Load, warmup_s: float, measure_s: float, *, manner: str, pid_file: str
) -> list[bytes]:
    name = Path(tempfile.gettempdir()).name
    Path("/dev/shm", f"{name}_left").touch()
    queue = CONTEXT.SimpleQueue()  # two semaphores with names
    subprocess.run([sys.executable, "-I", "-S", "-c", DETACHED, pid_file], check=True)
    while not (Path(pid_file).exists() and Path(pid_file).read_text()):
        time.sleep(0.001)
    print("so far", queue.empty(), flush=True)
    if manner == "dies":
        os.abort()
    elif manner == "hangs":
        time.sleep(600)
    with Crew(PRELOAD) as crew:
        for number in range(load.producers):
            crew.add(producer, work, load, number, manner == "answers wrongly")
        return crew.measure(warmup_s, measure_s)


def producer(cue: Cue, work: Work, load: Load, number: int, wrongly: bool) -> bytes:
    results: list[Array] = []

    def submit(x: Array) -> None:
        result = np.empty((1, *work.result_shape), work.result_dtype)
        work.function(x[None], result)
        results.append(result[0] + wrongly)

    def collect(timeout_s: float | None) -> list[Array]:
        return [results.pop(0)]

    return drive(cue, work, load, number, submit, collect)
