"""Where every byte of a segment lives.

Executor and producer compute these offsets each for itself, from the capacity and the sizes of
the columns; nothing is ever read back out of the segment. This file and ``ring.h`` *are* the
format: change either and raise ``LAYOUT_VERSION``. Pure arithmetic; it maps no memory.

A segment belongs to one (producer, function) pair::

    offset   field              type    stored by   meaning
    ------   ----------------   -----   ---------   -------------------------------------------
         0   magic              u64     executor    "shmbatch", for people with a debugger
         8   layout_version     u32     executor    LAYOUT_VERSION, for the same people
        12   capacity           u32     executor    slots, likewise; nobody reads it back
        64   status             u32     executor    open, draining, closed, expelled, replaced
       128   tail               u32     producer    slot indices published so far
       192   completions        u32     both        batches completed << 16 | sleeping threads
       256   withdrawn          u32     producer    calls cancelled so far
       384   indices            u32[]   producer    ring of slot indices; a power of two
       ...   controls           64 B[]  both        one control block a slot
       ...   columns            bytes   producer    one array [capacity, *shape] a parameter
       ...   result             bytes   executor    one array [capacity, *shape]
       ...   errors             bytes   executor    one error record a slot

A control block is one cache line::

    offset   field              type    stored by   meaning
    ------   ----------------   -----   ---------   -------------------------------------------
         0   state              u32     both        generation << 8 | flags | state; see ring.h
         4   outcome            u32     executor    value, error or expired; valid when done
         8   error_nbytes       u32     executor    length of the error record
        16   published_ns       u64     producer    monotonic clock at publish, nanoseconds
        24   deadline_ns        u64     producer    taken later than this it never runs; 0: none

The bell, one page for all producers of an executor::

    offset   field              type    stored by   meaning
    ------   ----------------   -----   ---------   -------------------------------------------
         0   word               u32     both        rings so far << 2 | polling | parked
        64   quorum             u32     executor    the count of rings that is worth a wake-up

Every area starts on a cache line. Columns are structures of arrays, so that calls in
neighbouring slots are gathered and scattered by one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import PROTOCOL_VERSION

LAYOUT_VERSION = 3
# What both sides must have in common: of the control messages, and of the segments.
VERSION = f"{PROTOCOL_VERSION}.{LAYOUT_VERSION}"

CACHE_LINE = 64
HEADER_NBYTES = 384
CONTROL_NBYTES = 64

MAGIC = 0
STATUS = 64
TAIL = 128
COMPLETIONS = 192
WITHDRAWN = 256
INDICES = HEADER_NBYTES

CONTROL_STATE = 0
CONTROL_OUTCOME = 4
CONTROL_ERROR_NBYTES = 8
CONTROL_PUBLISHED_NS = 16
CONTROL_DEADLINE_NS = 24

BELL_WORD = 0
BELL_QUORUM = 64
BELL_NBYTES = 4096  # a page is the least that can be mapped

# An error record holds class, message and the end of the traceback. Large rings get shorter
# ones, so that errors never cost more than this much a segment.
ERRORS_NBYTES = 1 << 20
ERROR_NBYTES_MIN = 512
ERROR_NBYTES_MAX = 4096


def align(nbytes: int) -> int:
    """Round up to a whole number of cache lines."""
    return -(-nbytes // CACHE_LINE) * CACHE_LINE


def error_nbytes(capacity: int) -> int:
    """Room for one error record, bytes."""
    return min(max(ERRORS_NBYTES // capacity // 8 * 8, ERROR_NBYTES_MIN), ERROR_NBYTES_MAX)


def slot_nbytes(column_nbytes: Sequence[int]) -> int:
    """About what one slot adds to a segment: its values (inputs and result) and its control."""
    return CONTROL_NBYTES + 4 + ERROR_NBYTES_MIN + sum(column_nbytes)


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of one segment, in bytes."""

    capacity: int
    controls: int
    columns: tuple[int, ...]  # inputs in order, then the result
    errors: int
    error_nbytes: int
    nbytes: int


def layout(capacity: int, column_nbytes: Sequence[int]) -> Layout:
    """Lay out a segment of *capacity* slots.

    Args:
        column_nbytes: bytes of one value of each input column in order, then of the result.
    """
    ring_size = 1 << (capacity - 1).bit_length()
    controls = align(INDICES + 4 * ring_size)
    offset = align(controls + CONTROL_NBYTES * capacity)
    columns = []
    for nbytes in column_nbytes:
        columns.append(offset)
        offset = align(offset + nbytes * capacity)
    record = error_nbytes(capacity)
    return Layout(
        capacity=capacity,
        controls=controls,
        columns=tuple(columns),
        errors=offset,
        error_nbytes=record,
        nbytes=align(offset + record * capacity),
    )
