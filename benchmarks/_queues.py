"""The rival over `multiprocessing.SimpleQueue`: arrays pickled, batching loop by hand.

::

    producer 0 --(0, x)--+                                                +--> answers[0]
    producer 1 --(1, x)--+--> one request queue --> batch[32, ...] --> f -+--> answers[1]
    ...                                                                   +--> ...

The results of one producer in one batch go back as one stacked array: one pickle for all.
"""

from __future__ import annotations

import select
from multiprocessing.queues import SimpleQueue
from time import monotonic_ns
from typing import Any, TypeAlias

from numpy.typing import NDArray

from benchmarks._crew import CONTEXT, Crew, Cue
from benchmarks._load import Work, drive

Array: TypeAlias = NDArray[Any]


def measure(work: Work, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    requests: SimpleQueue[tuple[int, Array | None]] = CONTEXT.SimpleQueue()
    answers: list[SimpleQueue[Array]] = [CONTEXT.SimpleQueue() for _ in range(work.producers)]
    try:
        with Crew() as crew:
            crew.add(executor, work, requests, answers)
            for number in range(work.producers):
                crew.add(producer, work, number, requests, answers[number])
            _, *latencies = crew.measure(warmup_s, measure_s)
    finally:
        requests.close()
        for queue in answers:
            queue.close()
    return latencies


def executor(
    cue: Cue,
    work: Work,
    requests: SimpleQueue[tuple[int, Array | None]],
    answers: list[SimpleQueue[Array]],
) -> None:
    """Batch the inputs of all producers until each has sent its None."""
    batch, results = work.batch(), work.results()
    callers: list[list[int]] = [[] for _ in answers]  # per producer: its places in the batch
    # SimpleQueue cannot wait with a timeout and builds a selector for each empty(): watch its
    # descriptor instead.
    descriptor = requests._reader.fileno()  # type: ignore[attr-defined]
    running = len(answers)
    cue.ready()

    while running:
        filled = 0
        deadline_ns = 0
        while filled < work.max_batch_size:
            if filled:
                timeout = max(0.0, (deadline_ns - monotonic_ns()) / 1e9)
                if not select.select((descriptor,), (), (), timeout)[0]:
                    break
            caller, x = requests.get()
            if x is None:
                running -= 1
                break
            if not filled:
                deadline_ns = monotonic_ns() + work.wait_ns
            batch[filled] = x
            callers[caller].append(filled)
            filled += 1
        if filled:
            work.function(batch[:filled], results[:filled])
            for places, queue in zip(callers, answers, strict=True):
                if places:
                    queue.put(results[places])
                    places.clear()


def producer(
    cue: Cue,
    work: Work,
    number: int,
    requests: SimpleQueue[tuple[int, Array | None]],
    answers: SimpleQueue[Array],
) -> bytes:
    """Load the executor through one request queue and an answer queue of its own."""

    def submit(x: Array) -> None:
        requests.put((number, x))

    try:
        return drive(cue, work, number, submit, answers.get)
    finally:
        requests.put((number, None))
