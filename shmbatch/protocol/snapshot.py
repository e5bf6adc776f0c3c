"""What an executor has counted, as it travels to whoever asks.

It travels as MessagePack in memory of its own, whose descriptor is sent: so it may be of any
size, and nobody waits for its reader. It is raw. What can be computed from it is computed by
whoever asked, not by the executor, which has calls to serve.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple, TypedDict

from ..errors import ProtocolError
from .layout import VERSION


class Latencies(TypedDict):
    """One phase of the calls of a function: what `_core.Phases.read` returned."""

    sum_ns: int
    max_ns: int
    counts: bytes


class FunctionCounts(TypedDict):
    """One function, since its executor started."""

    max_batch_size: int
    wait_ns: int
    slots: int  # of one producer
    segment_nbytes: int  # of one producer
    producers: int  # attached now
    waiting: int  # calls published and not launched, now
    in_flight: int  # calls launched and not done, now
    expired: int  # calls whose deadline passed before they were launched
    cancelled: int  # calls that their producers gave up before they were launched
    rejected: int  # calls taken out of their batch before it ran, or before it ran again
    failed: dict[str, int]  # calls by the kind of their error; without the expired ones
    batch_sizes: dict[str, dict[int, int]]  # by seal reason and size
    halved: int  # executions that failed and whose calls were run again in parts
    out_of_memory: int  # executions that failed so
    memory_limit: int | None  # most calls in a batch for which there is memory; None: not known
    latencies: dict[str, Latencies]  # by phase


class Admission(TypedDict):
    """Who was let in and who was not, since the executor started; and what there is room for."""

    producers: int  # attached now, or gone and not yet forgotten
    producers_max: int
    nbytes: int  # of their segments
    nbytes_max: int
    refused: int  # of another user, beyond a limit, or with a message that made no sense
    expelled: int  # producers that broke the protocol


class Snapshot(TypedDict):
    """One executor."""

    version: str
    name: str
    pid: int
    transport: str
    device: str
    state: str  # serving or draining
    uptime_ns: int
    admission: Admission
    functions: dict[str, FunctionCounts]


class Totals(NamedTuple):
    """Calls and batches of one function, since its executor started."""

    done: int  # calls that have an outcome, whichever
    failed: int  # those of them whose outcome is an error
    ran: int  # those of them that ran in a batch
    batches: int


def totals(counts: FunctionCounts) -> Totals:
    """Add up what is counted apart: an expired or a rejected call is done, and has failed."""
    sizes = batch_sizes(counts)
    ran = sum(size * n for size, n in sizes.items())
    return Totals(
        done=ran + counts["rejected"] + counts["expired"],
        failed=sum(counts["failed"].values()) + counts["expired"],
        ran=ran,
        batches=sizes.total(),
    )


def batch_sizes(counts: FunctionCounts) -> Counter[int]:
    """Return how many batches of each size there were, whatever they were sealed for."""
    return sum((Counter(each) for each in counts["batch_sizes"].values()), Counter[int]())


def store(snapshot: Snapshot) -> int:
    """Return a descriptor of memory that holds *snapshot*; the caller closes it.

    Raises:
        OSError: there is no memory for it, or no descriptor.
    """
    import msgspec

    data = memoryview(msgspec.msgpack.encode(snapshot))
    fd = os.memfd_create("shmbatch-statistics", os.MFD_CLOEXEC)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(fd: int) -> Snapshot:
    """Return what `store` has put behind *fd*, which the caller closes.

    Raises:
        ProtocolError: it is something else.
    """
    import msgspec

    try:
        # From its start: the offset is shared with whoever else holds the memory.
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        return msgspec.msgpack.decode(data, type=Snapshot)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise ProtocolError(
            f"statistics are malformed: {error}; "
            f"the executor must speak version {VERSION} of the protocol, as this process does"
        ) from None
