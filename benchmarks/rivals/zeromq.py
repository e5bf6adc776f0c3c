"""pyzmq over `ipc`: a ROUTER and one DEALER per producer, raw rows, batching loop by hand.

::

    producer 0 (DEALER) --row--> +                                            +--> producer 0
    producer 1 (DEALER) --row--> +--> ROUTER --> batch[32, ...] --> f --------+--> producer 1
    ...                               recv_into                  rows of one  +--> ...
                                                                 in one message

Every process has an I/O thread of ZeroMQ's, which does the system calls and hands messages over.
Rows are received straight to their place in the batch; images are sent without a copy by the
producer. Documentation: the guide, "The Asynchronous Client/Server Pattern"; pyzmq, `recv_into`;
for the timed wait, whose own resolution is a millisecond, ZMQ_FD in zmq_getsockopt(3).
"""

from __future__ import annotations

import select
import tempfile
from pathlib import Path
from time import monotonic_ns

import numpy as np

from benchmarks._crew import PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

RETRY_MS = 5
SEND_BUFFER_NBYTES = 1 << 20
COPIED_NBYTES = 1 << 16  # what is smaller is cheaper copied than kept until it is sent


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    with tempfile.TemporaryDirectory() as folder, Crew(PRELOAD) as crew:
        address = f"ipc://{Path(folder, 'router')}"
        crew.add(executor, work, load, address)
        for number in range(load.producers):
            crew.add(producer, work, load, number, address)
        _, *latencies = crew.measure(warmup_s, measure_s)
    return latencies


def executor(cue: Cue, work: Work, load: Load, address: str) -> None:
    """Batch the inputs of all producers until each has sent an empty message."""
    import zmq

    batch, results = work.stacks()
    rows = [memoryview(row).cast("B") for row in batch]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        descriptor = router.getsockopt(zmq.FD)
        places: dict[bytes, list[int]] = {}  # of each producer in the batch
        running, filled, deadline_ns = load.producers, 0, 0
        for _ in range(load.producers):  # each is connected when it has its greeting back
            router.send_multipart(router.recv_multipart())
        cue.ready()

        while running:
            try:
                caller = router.recv(zmq.NOBLOCK if filled else 0)
            except zmq.Again:
                if (left_ns := deadline_ns - monotonic_ns()) > 0:
                    select.select((descriptor,), (), (), left_ns / 1e9)
                    continue
            else:
                if not router.recv_into(rows[filled]):
                    running -= 1
                    continue
                if not filled:
                    deadline_ns = monotonic_ns() + work.wait_ns
                places.setdefault(caller, []).append(filled)
                filled += 1
                if filled < work.max_batch_size and monotonic_ns() < deadline_ns:
                    continue
            work.function(batch[:filled], results[:filled])
            for caller, its in places.items():
                router.send(caller, zmq.SNDMORE)
                router.send(results[its])
            places.clear()
            filled = 0


def producer(cue: Cue, work: Work, load: Load, number: int, address: str) -> bytes:
    """Load the executor: one message per input, one or more results in each that comes back."""
    import zmq

    results = np.ones((load.in_flight, *work.result_shape), work.result_dtype)
    memory = results.data.cast("B")
    copied = work.row_nbytes < COPIED_NBYTES
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.SNDBUF, SEND_BUFFER_NBYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, RETRY_MS)  # where the executor is not there yet
        dealer.connect(address)
        descriptor = dealer.getsockopt(zmq.FD)

        def submit(x: Array) -> None:
            dealer.send(x, copy=copied)

        def collect(timeout_s: float | None) -> Array:
            if timeout_s is None:
                return results[: dealer.recv_into(memory) // work.result_nbytes]
            deadline_ns = monotonic_ns() + int(timeout_s * 1e9)
            while True:
                try:
                    nbytes = dealer.recv_into(memory, flags=zmq.NOBLOCK)
                    return results[: nbytes // work.result_nbytes]
                except zmq.Again:
                    if (left_ns := deadline_ns - monotonic_ns()) <= 0:
                        return results[:0]
                    select.select((descriptor,), (), (), left_ns / 1e9)

        dealer.send(b"")
        dealer.recv()
        try:
            return drive(cue, work, load, number, submit, collect)
        finally:
            dealer.send(b"")
