"""torch tensors in shared memory, and which of their rows is meant in `SimpleQueue`s.

::

    inputs[producers * in_flight, ...]    one shared tensor; each producer writes its own rows
    results[producers * in_flight, ...]   another one

    producer 0 --row's index--> +                                            +--> answers[0]
    producer 1 --row's index--> +--> one queue --> take rows --> f ----------+--> answers[1]
    ...                                            put results  how many of  +--> ...
                                                                its are there

What data loaders and samplers do by hand: large values never go through a queue, and rows are
used in turn, so that a count says which results are there. The tensors are read and written
through their numpy views, which is the cheaper way for rows. Documentation: torch,
"Multiprocessing package", Sharing CPU tensors.
"""

from __future__ import annotations

import select
from multiprocessing.queues import SimpleQueue
from time import monotonic_ns
from typing import Any

import numpy as np

from benchmarks._crew import CONTEXT, PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

HUNG_UP = -1


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    import torch
    import torch.multiprocessing  # has processes be given shared tensors

    rows = load.producers * load.in_flight
    inputs = torch.from_numpy(np.ones((rows, *work.shape), work.dtype)).share_memory_()
    results = torch.from_numpy(np.ones((rows, *work.result_shape), work.result_dtype))
    results.share_memory_()
    requests: SimpleQueue[int] = CONTEXT.SimpleQueue()
    answers: list[SimpleQueue[int]] = [CONTEXT.SimpleQueue() for _ in range(load.producers)]
    try:
        with Crew([*PRELOAD, "torch"]) as crew:
            crew.add(executor, work, load, inputs, results, requests, answers)
            for number, queue in enumerate(answers):
                crew.add(producer, work, load, number, inputs, results, requests, queue)
            _, *latencies = crew.measure(warmup_s, measure_s)
    finally:
        for each in (requests, *answers):
            each.close()
    return latencies


def executor(
    cue: Cue,
    work: Work,
    load: Load,
    shared_inputs: Any,
    shared_results: Any,
    requests: SimpleQueue[int],
    answers: list[SimpleQueue[int]],
) -> None:
    """Batch the rows of all producers until each has hung up."""
    inputs, answered = shared_inputs.numpy(), shared_results.numpy()
    batch, results = work.stacks()
    descriptor = requests._reader.fileno()  # type: ignore[attr-defined]
    running = len(answers)
    cue.ready()

    while running:
        rows: list[int] = []
        deadline_ns = 0
        while len(rows) < work.max_batch_size:
            if rows:
                timeout_s = max(0.0, (deadline_ns - monotonic_ns()) / 1e9)
                if not select.select((descriptor,), (), (), timeout_s)[0]:
                    break
            row = requests.get()
            if row == HUNG_UP:
                running -= 1
                break
            if not rows:
                deadline_ns = monotonic_ns() + work.wait_ns
            rows.append(row)
        if n := len(rows):
            np.take(inputs, rows, axis=0, out=batch[:n], mode="clip")  # else it takes a copy more
            work.function(batch[:n], results[:n])
            answered[rows] = results[:n]
            counts = [0] * load.producers
            for row in rows:
                counts[row // load.in_flight] += 1
            for count, queue in zip(counts, answers, strict=True):
                if count:
                    queue.put(count)


def producer(
    cue: Cue,
    work: Work,
    load: Load,
    number: int,
    shared_inputs: Any,
    shared_results: Any,
    requests: SimpleQueue[int],
    answers: SimpleQueue[int],
) -> bytes:
    """Load the executor with its own rows, one after the other and from the first again."""
    first = number * load.in_flight
    inputs = shared_inputs.numpy()[first : first + load.in_flight]
    results = shared_results.numpy()[first : first + load.in_flight]
    descriptor = answers._reader.fileno()  # type: ignore[attr-defined]
    submitted = collected = 0

    def submit(x: Array) -> None:
        nonlocal submitted
        slot = submitted % load.in_flight
        submitted += 1
        inputs[slot] = x
        requests.put(first + slot)

    def collect(timeout_s: float | None) -> list[Array]:
        nonlocal collected
        if timeout_s is not None and not select.select((descriptor,), (), (), timeout_s)[0]:
            return []
        count = answers.get()
        slots = range(collected, collected + count)
        collected += count
        # Copies: the rows are used again as soon as their results are collected.
        return [results[slot % load.in_flight].copy() for slot in slots]

    try:
        return drive(cue, work, load, number, submit, collect)
    finally:
        requests.put(HUNG_UP)
