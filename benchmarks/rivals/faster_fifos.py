"""faster-fifo: its queues in shared memory, raw bytes, batching loop by hand.

::

    producer 0 --number, row--> +                                               +--> answers[0]
    producer 1 --number, row--> +--> one queue --get_many--> batch --> f -------+--> answers[1]
    ...                                                            rows of one  +--> ...
                                                                   in one message

`get_many` takes all that is there under one lock. Instead of pickle the queues are given functions
that pass bytes. Documentation: its README.
"""

from __future__ import annotations

from queue import Empty
from time import monotonic_ns
from typing import Any

import numpy as np

from benchmarks._crew import PATIENCE_S, PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

NUMBER_NBYTES = 8  # of a producer, before the row


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    import faster_fifo
    import faster_fifo_reduction  # noqa: F401 - its queues can then be given to processes

    def queue(messages: int, nbytes: int) -> Any:
        room = (messages + 1) * (nbytes + 64)
        return faster_fifo.Queue(room, loads=as_it_is, dumps=as_it_is)

    requests = queue(load.producers * (load.in_flight + 1), NUMBER_NBYTES + work.row_nbytes)
    answers = [queue(load.in_flight, work.result_nbytes) for _ in range(load.producers)]
    with Crew(PRELOAD) as crew:
        crew.add(executor, work, requests, answers)
        for number in range(load.producers):
            crew.add(producer, work, load, number, requests, answers[number])
        _, *latencies = crew.measure(warmup_s, measure_s)
    return latencies


def as_it_is(message: Any) -> Any:
    """Instead of pickle: bytes into the queue, a view of the receive buffer out of it."""
    return message


def executor(cue: Cue, work: Work, requests: Any, answers: list[Any]) -> None:
    """Batch the inputs of all producers until each has sent its number alone."""
    batch, results = work.stacks()
    rows = batch.reshape(len(batch), -1).view(np.uint8)
    callers: list[list[int]] = [[] for _ in answers]  # per producer: its places in the batch
    running, filled, deadline_ns = len(answers), 0, 0
    cue.ready()

    while running:
        timeout_s = max(0.0, (deadline_ns - monotonic_ns()) / 1e9) if filled else PATIENCE_S
        try:
            messages = requests.get_many(
                timeout=timeout_s, max_messages_to_get=work.max_batch_size - filled
            )
        except Empty:
            messages = ()
        for message in messages:
            if len(message) == NUMBER_NBYTES:
                running -= 1
                continue
            if not filled:
                deadline_ns = monotonic_ns() + work.wait_ns
            data = np.frombuffer(message, np.uint8)
            rows[filled] = data[NUMBER_NBYTES:]
            callers[data[0]].append(filled)
            filled += 1
        if filled == work.max_batch_size or (filled and monotonic_ns() >= deadline_ns):
            work.function(batch[:filled], results[:filled])
            for places, answer in zip(callers, answers, strict=True):
                if places:
                    answer.put(results[places].tobytes())
                    places.clear()
            filled = 0


def producer(cue: Cue, work: Work, load: Load, number: int, requests: Any, answers: Any) -> bytes:
    """Load the executor through one request queue and an answer queue of its own."""
    header = number.to_bytes(NUMBER_NBYTES, "little")
    none: tuple[Array, ...] = ()

    def submit(x: Array) -> None:
        requests.put(b"".join((header, x.data)))

    def collect(timeout_s: float | None) -> Array | tuple[Array, ...]:
        try:
            messages = answers.get_many(timeout=PATIENCE_S if timeout_s is None else timeout_s)
        except Empty:
            return none
        results = np.frombuffer(b"".join(messages), work.result_dtype)
        return results.reshape(-1, *work.result_shape)

    try:
        return drive(cue, work, load, number, submit, collect)
    finally:
        requests.put(header)
