"""`multiprocessing.Queue` and `SimpleQueue`: arrays pickled, batching loop by hand.

::

    producer 0 --(0, x)--+                                                +--> answers[0]
    producer 1 --(1, x)--+--> one request queue --> batch[32, ...] --> f -+--> answers[1]
    ...                                                                   +--> ...

The results of one producer in one batch go back as one stacked array: one pickle for all. A Queue
has a thread in every process that puts into it, which pickles and writes; a SimpleQueue writes
where `put` is called. Documentation: Python's "multiprocessing", Pipes and Queues.
"""

from __future__ import annotations

import queue
import select
from collections.abc import Callable
from multiprocessing.queues import Queue, SimpleQueue
from time import monotonic_ns
from typing import Any, TypeAlias

from benchmarks._crew import CONTEXT, PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

AnyQueue: TypeAlias = "Queue[Any] | SimpleQueue[Any]"


def measure(
    work: Work, load: Load, warmup_s: float, measure_s: float, *, kind: str
) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    make: Callable[[], AnyQueue] = getattr(CONTEXT, kind)
    requests = make()
    answers = [make() for _ in range(load.producers)]
    try:
        with Crew(PRELOAD) as crew:
            crew.add(executor, work, requests, answers)
            for number in range(load.producers):
                crew.add(producer, work, load, number, requests, answers[number])
            _, *latencies = crew.measure(warmup_s, measure_s)
    finally:
        for each in (requests, *answers):
            each.close()
    return latencies


def executor(cue: Cue, work: Work, requests: AnyQueue, answers: list[AnyQueue]) -> None:
    """Batch the inputs of all producers until each has sent its None."""
    batch, results = work.stacks()
    callers: list[list[int]] = [[] for _ in answers]  # per producer: its places in the batch
    receive = receiver(requests)
    running = len(answers)
    cue.ready()

    while running:
        filled = 0
        deadline_ns = 0
        while filled < work.max_batch_size:
            timeout_s = max(0.0, (deadline_ns - monotonic_ns()) / 1e9) if filled else None
            request = receive(timeout_s)
            if request is None:
                break
            caller, x = request
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
            for places, answer in zip(callers, answers, strict=True):
                if places:
                    answer.put(results[places])
                    places.clear()


def producer(
    cue: Cue, work: Work, load: Load, number: int, requests: AnyQueue, answers: AnyQueue
) -> bytes:
    """Load the executor through one request queue and an answer queue of its own."""
    receive = receiver(answers)

    def submit(x: Array) -> None:
        requests.put((number, x))

    def collect(timeout_s: float | None) -> Array | tuple[()]:
        results = receive(timeout_s)
        return () if results is None else results

    try:
        return drive(cue, work, load, number, submit, collect)
    finally:
        requests.put((number, None))


def receiver(source: AnyQueue) -> Callable[[float | None], Any]:
    """How to take the next one out of a queue; None if there is none for so many seconds."""
    if isinstance(source, SimpleQueue):
        # It cannot wait with a timeout and builds a selector for each empty(): watch its
        # descriptor instead. Nobody else reads from it.
        simple = source
        descriptor = simple._reader.fileno()  # type: ignore[attr-defined]

        def receive_simply(timeout_s: float | None) -> Any:
            if timeout_s is not None and not select.select((descriptor,), (), (), timeout_s)[0]:
                return None
            return simple.get()

        return receive_simply

    def receive(timeout_s: float | None) -> Any:
        try:
            return source.get(True, timeout_s)
        except queue.Empty:
            return None

    return receive
