"""UNIX sockets: the batching loop that a good engineer writes by hand.

::

    producer 0 --input rows--> socketpair --recv_into--> batch[32, ...] --> f --> results
    producer 1 --...           (stream)                  (preallocated)           |
        ^                                                                         |
        +---------------------------- result rows --------------------------------+

One stream socketpair per producer and no framing: rows have a fixed size. The executor reads
rows straight to their place in the batch, without blocking, so that a producer that is still
sending a large row holds up nobody; a started row keeps its place.

Two manners, both with one send per input:

coalesced  One receive takes all rows that are there, on both sides; all results of a producer
           leave in one send; send buffers hold a whole row. The fastest that was found.
one by one Every receive takes one row, every result has a send of its own, the buffers are the
           system's. What a call costs when each travels alone, as in most client libraries.
"""

from __future__ import annotations

import bisect
import select
import socket
from time import monotonic_ns

import numpy as np

from benchmarks._crew import PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

SEND_BUFFER_NBYTES = 1 << 20  # asked for; the kernel grants net.core.wmem_max at most


def measure(
    work: Work, load: Load, warmup_s: float, measure_s: float, *, coalesced: bool
) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    pairs = [socket.socketpair() for _ in range(load.producers)]
    with Crew(PRELOAD) as crew:
        try:
            crew.add(executor, work, [server for server, _ in pairs], coalesced)
            for number, (_, client) in enumerate(pairs):
                crew.add(producer, work, load, number, client, coalesced)
        finally:
            # The executor ends when the last producer hangs up: nobody else may hold an end.
            for pair in pairs:
                for end in pair:
                    end.close()
        _, *latencies = crew.measure(warmup_s, measure_s)
    return latencies


class _Peer:
    """What the executor knows of one producer."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.unread = memoryview(b"")  # the rest of a started row's place in the batch
        self.rows: list[tuple[int, int]] = []  # first row and one past the last, in order


def executor(cue: Cue, work: Work, sockets: list[socket.socket], coalesced: bool) -> None:
    """Batch the rows of all producers until they have hung up."""
    batch, results = work.stacks()
    places = memoryview(batch).cast("B")  # type: ignore[arg-type]
    answers = memoryview(results).cast("B")  # type: ignore[arg-type]
    row_nbytes, result_nbytes, size = work.row_nbytes, work.result_nbytes, work.max_batch_size
    most_nbytes = len(places) if coalesced else row_nbytes  # for one receive
    peers = {sock.fileno(): _Peer(sock) for sock in sorted(sockets, key=socket.socket.fileno)}
    filled = 0  # rows with a place, started ones included
    deadline_ns = 0
    served = -1  # whose row was the last: where a batch is full, others come first in the next
    cue.ready()

    while peers:
        timeout = None if not filled else max(0.0, (deadline_ns - monotonic_ns()) / 1e9)
        readable, _, _ = select.select(peers, (), (), timeout)
        turn = bisect.bisect(readable, served)
        for fd in readable[turn:] + readable[:turn]:
            peer = peers[fd]
            place = peer.unread or places[filled * row_nbytes :][:most_nbytes]
            if not place:
                continue  # the batch is full: what this producer sent is for the next one
            served = fd
            received = peer.socket.recv_into(place, 0, socket.MSG_DONTWAIT)
            if received == 0:
                if peer.unread:
                    raise EOFError("a producer hung up in the middle of a row")
                del peers[fd]
                peer.socket.close()
            elif peer.unread:
                peer.unread = place[received:]
            else:
                if not filled:
                    deadline_ns = monotonic_ns() + work.wait_ns
                first, filled = filled, filled - (-received // row_nbytes)
                peer.rows.append((first, filled))
                peer.unread = place[received : (filled - first) * row_nbytes]

        if filled == size or (filled and monotonic_ns() >= deadline_ns):
            for peer in peers.values():
                if peer.unread:
                    received = peer.socket.recv_into(peer.unread, 0, socket.MSG_WAITALL)
                    if received < len(peer.unread):
                        raise EOFError("a producer hung up in the middle of a row")
                    peer.unread = memoryview(b"")
            work.function(batch[:filled], results[:filled])
            for peer in peers.values():
                rows = [answers[a * result_nbytes : b * result_nbytes] for a, b in peer.rows]
                if coalesced and len(rows) > 1:
                    rows = [memoryview(b"".join(rows))]
                for row in rows:
                    peer.socket.sendall(row)
                peer.rows.clear()
            filled = 0


def producer(
    cue: Cue, work: Work, load: Load, number: int, sock: socket.socket, coalesced: bool
) -> bytes:
    """Load the executor: one send per input, receives as the manner says."""
    result_nbytes = work.result_nbytes
    results = np.ones((load.in_flight if coalesced else 1, *work.result_shape), work.result_dtype)
    memory = memoryview(results).cast("B")  # type: ignore[arg-type]
    if coalesced:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_NBYTES)

    def collect(timeout_s: float | None) -> Array:
        if timeout_s is not None and not select.select((sock,), (), (), timeout_s)[0]:
            return results[:0]
        received = 0
        while received == 0 or received % result_nbytes:
            more = sock.recv_into(memory[received:])
            if more == 0:
                raise EOFError("the executor hung up")
            received += more
        return results[: received // result_nbytes]

    with sock:
        # numpy says only from Python 3.12 on that its arrays are buffers, hence the comments
        # for the type checker here and above.
        return drive(cue, work, load, number, sock.sendall, collect)  # type: ignore[arg-type]
