"""`multiprocessing.Pipe`: raw bytes, no pickle, batching loop by hand.

::

    producer 0 --Pipe--> +                                             +--Pipe--> producer 0
    producer 1 --Pipe--> +--> readv --> batch[32, ...] --> f ----------+--Pipe--> producer 1
    ...                                                     send_bytes +--> ...
                                                            all rows of one

Two one-way Pipes for each producer: they are pipes of the kernel, which can be made to hold a
whole image, where a duplex Pipe is a pair of sockets. A Pipe keeps messages apart, so every input
takes a receive of its own. The executor reads what `send_bytes` wrote, a length and a row, with
one readv straight to its place: `recv_bytes_into` reads twice and into memory of its own, which
for an image takes a millisecond. The results of one producer in one batch are one message.
Documentation: Python's "multiprocessing", Connection Objects; for the size of a pipe, F_SETPIPE_SZ
in fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import select
from multiprocessing.connection import Connection
from time import monotonic_ns

import numpy as np

from benchmarks._crew import CONTEXT, PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

LENGTH_NBYTES = 4  # of a message, before it
PIPE_NBYTES = 1 << 20  # what an ordinary user may ask for


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    inputs = [CONTEXT.Pipe(duplex=False) for _ in range(load.producers)]  # receiver, sender
    answers = [CONTEXT.Pipe(duplex=False) for _ in range(load.producers)]
    with Crew(PRELOAD) as crew:
        try:
            for _, sender in inputs:
                if work.row_nbytes > fcntl.fcntl(sender.fileno(), fcntl.F_GETPIPE_SZ):
                    fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, PIPE_NBYTES)
            receivers, senders = [end for end, _ in inputs], [end for _, end in answers]
            crew.add(executor, work, receivers, senders)
            for number in range(load.producers):
                crew.add(producer, work, load, number, inputs[number][1], answers[number][0])
        finally:
            # The executor ends when the last producer hangs up: nobody else may hold an end.
            for pipe in inputs + answers:
                for end in pipe:
                    end.close()
        _, *latencies = crew.measure(warmup_s, measure_s)
    return latencies


def executor(cue: Cue, work: Work, receivers: list[Connection], senders: list[Connection]) -> None:
    """Batch the inputs of all producers until they have hung up."""
    batch, results = work.stacks()
    rows = [memoryview(row).cast("B") for row in batch]
    length = bytearray(LENGTH_NBYTES)
    number_of = {pipe.fileno(): number for number, pipe in enumerate(receivers)}
    places: list[list[int]] = [[] for _ in senders]
    # With one row there or more, epoll says so again: who was left out is in the next batch.
    poll = select.epoll()
    for descriptor in number_of:
        poll.register(descriptor, select.EPOLLIN)
    running, filled, deadline_ns = len(receivers), 0, 0
    cue.ready()

    while running:
        readable = poll.poll(0 if filled else None, work.max_batch_size - filled)
        for descriptor, _ in readable:
            number = number_of[descriptor]
            if not receive(descriptor, length, rows[filled]):
                poll.unregister(descriptor)
                running -= 1
                continue
            if not filled:
                deadline_ns = monotonic_ns() + work.wait_ns
            places[number].append(filled)
            filled += 1
        if not readable and (left_ns := deadline_ns - monotonic_ns()) > 0:
            # epoll's own timeout is in whole milliseconds
            select.select((poll,), (), (), left_ns / 1e9)
        if filled == work.max_batch_size or (filled and monotonic_ns() >= deadline_ns):
            work.function(batch[:filled], results[:filled])
            for its, sender in zip(places, senders, strict=True):
                if its:
                    sender.send_bytes(results[its].data.cast("B"))
                    its.clear()
            filled = 0
    poll.close()


def receive(descriptor: int, length: bytearray, row: memoryview) -> bool:
    """Receive one message of a length and a row; False if the producer has hung up."""
    wanted = len(length) + len(row)
    received = os.readv(descriptor, (length, row))
    if not received:
        return False
    while received < wanted:
        if not (more := os.readv(descriptor, (row[received - wanted :],))):
            raise EOFError("a producer hung up in the middle of a row")
        received += more
    return True


def producer(
    cue: Cue, work: Work, load: Load, number: int, sender: Connection, receiver: Connection
) -> bytes:
    """Load the executor: one message per input, one or more results in each that comes back."""
    results = np.ones((load.in_flight, *work.result_shape), work.result_dtype)
    memory = results.data.cast("B")

    def submit(x: Array) -> None:
        sender.send_bytes(x.data.cast("B"))

    def collect(timeout_s: float | None) -> Array:
        if timeout_s is not None and not select.select((receiver,), (), (), timeout_s)[0]:
            return results[:0]
        return results[: receiver.recv_bytes_into(memory) // work.result_nbytes]

    with sender, receiver:
        return drive(cue, work, load, number, submit, collect)
