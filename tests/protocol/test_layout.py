"""The diagrams, the constants, ring.h, and the areas of a segment all say the same thing."""

from __future__ import annotations

import itertools
import mmap
import re
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmbatch.contract.batching import MAX_SLOTS, slot_capacity
from shmbatch.executor.room import PRODUCER_NBYTES
from shmbatch.protocol import _core, layout
from tests.rings import Served, Wire

RING_H = (Path(layout.__file__).parent / "ring.h").read_text()

assert layout.__doc__ is not None
# "        64   status    u32 ..." -> ("64", "status"), of the segment, a control block, the bell
SEGMENT_ROWS, CONTROL_ROWS, BELL_ROWS = (
    re.findall(r"^ +(\d+)   ([a-z_]+)", diagram, re.MULTILINE)
    for diagram in re.split("A control block is|The bell, one page", layout.__doc__)
)

# What the segment shows to people with a debugger; no code needs a constant for it.
SHOWN = {"layout_version": layout.LAYOUT_VERSION, "capacity": 4}

capacities = st.integers(1, 300) | st.sampled_from([511, 512, 513, 131_071, 131_072])
column_sizes = st.lists(st.integers(0, 5000), min_size=2, max_size=6)


@pytest.mark.parametrize(("offset", "field"), [row for row in SEGMENT_ROWS if row[1] not in SHOWN])
def test_the_segment_diagram_shows_the_constants(offset: str, field: str) -> None:
    assert getattr(layout, field.upper()) == int(offset)


@pytest.mark.parametrize(("offset", "field"), CONTROL_ROWS)
def test_the_control_diagram_shows_the_constants(offset: str, field: str) -> None:
    assert getattr(layout, f"CONTROL_{field.upper()}") == int(offset)


@pytest.mark.parametrize(("offset", "field"), BELL_ROWS)
def test_the_bell_diagram_shows_the_constants(offset: str, field: str) -> None:
    assert getattr(layout, f"BELL_{field.upper()}") == int(offset)


def test_the_diagrams_are_complete() -> None:
    assert len(SEGMENT_ROWS) == 8
    assert len(CONTROL_ROWS) == 5
    assert len(BELL_ROWS) == 2


def test_ring_h_has_the_sizes_of_the_diagrams() -> None:
    assert layout.HEADER_NBYTES == _core.HEADER_NBYTES
    assert layout.CONTROL_NBYTES == _core.CONTROL_NBYTES
    assert f"sizeof(ring_header) == {layout.HEADER_NBYTES}, " in RING_H
    assert f"sizeof(ring_control) == {layout.CONTROL_NBYTES}, " in RING_H


def test_every_slot_that_may_be_asked_for_has_a_number_in_the_core() -> None:
    assert MAX_SLOTS == _core.MAX_CAPACITY


def test_the_core_stores_each_word_where_the_diagram_draws_it() -> None:
    wire = Wire(capacity=SHOWN["capacity"])
    served = Served(wire)

    shown = {field: wire.read(int(at)) for at, field in SEGMENT_ROWS if field in SHOWN}
    assert shown == SHOWN
    wire.executor.set_status(_core.DRAINING)
    assert wire.read(layout.STATUS) == _core.DRAINING
    wire.executor.set_status(_core.OPEN)
    assert wire.memory[layout.MAGIC : layout.MAGIC + 8] == b"shmbatch"

    deadlines = (0, 1, 5 << 60, 2**64 - 1)
    tickets = [wire.submit(0, 0, deadline_ns=deadline_ns) for deadline_ns in deadlines]
    assert wire.read(layout.TAIL) == 4
    assert [wire.read(layout.INDICES + 4 * i) for i in range(4)] == [0, 1, 2, 3]
    for slot in range(4):
        control = wire.where.controls + layout.CONTROL_NBYTES * slot
        word, published_ns, deadline_ns = struct.unpack_from("=I12xQQ", wire.memory, control)
        assert word == 1 << 8 | _core.READY
        assert published_ns > 0
        assert deadline_ns == deadlines[slot]

    assert wire.producer.withdraw(tickets[0]) == _core.CANCELLED
    assert wire.read(layout.WITHDRAWN) == 1
    assert served.take() == 2  # the call of slot 1 is late
    served.batch.fail(0, b"broken")
    served.batch.complete()
    assert wire.read(layout.COMPLETIONS) == 1 << 16
    failed = wire.where.controls + layout.CONTROL_NBYTES * 2
    assert wire.read(failed + layout.CONTROL_STATE) == 1 << 8 | _core.DONE
    assert wire.read(failed + layout.CONTROL_OUTCOME) == 1
    assert wire.read(failed + layout.CONTROL_ERROR_NBYTES) == len(b"broken")
    expired = wire.where.controls + layout.CONTROL_NBYTES
    assert wire.read(expired + layout.CONTROL_OUTCOME) == 2
    record = wire.where.errors + 2 * wire.where.error_nbytes
    assert wire.memory[record : record + 6] == b"broken"


def test_the_core_stores_the_words_of_the_bell_where_the_diagram_draws_them() -> None:
    memory = mmap.mmap(-1, layout.BELL_NBYTES)
    bell = _core.Bell(memory)

    for _ in range(5):
        bell.ring()
    assert bell.arm(bell.look(), _core.POLLING, 7)

    assert struct.unpack_from("=I", memory, layout.BELL_WORD) == (5 << 2 | _core.POLLING,)
    assert struct.unpack_from("=I", memory, layout.BELL_QUORUM) == (5 + 7,)


@given(capacity=capacities, column_nbytes=column_sizes)
@example(capacity=1, column_nbytes=[0, 0])
def test_areas_stand_behind_each_other_on_cache_lines(
    capacity: int, column_nbytes: list[int]
) -> None:
    where = layout.layout(capacity, column_nbytes)
    ring_size = 1 << (capacity - 1).bit_length()
    areas = [
        (0, layout.HEADER_NBYTES),
        (layout.INDICES, 4 * ring_size),
        (where.controls, layout.CONTROL_NBYTES * capacity),
        *(
            (offset, nbytes * capacity)
            for offset, nbytes in zip(where.columns, column_nbytes, strict=True)
        ),
        (where.errors, where.error_nbytes * capacity),
        (where.nbytes, 0),
    ]

    assert ring_size >= capacity
    for (start, nbytes), (following, _) in itertools.pairwise(areas):
        assert start % layout.CACHE_LINE == 0
        assert start + nbytes <= following < start + nbytes + layout.CACHE_LINE
    assert where.nbytes % layout.CACHE_LINE == 0


@given(capacity=st.integers(1, _core.MAX_CAPACITY))
def test_error_records_are_useful_and_bounded_for_every_capacity(capacity: int) -> None:
    nbytes = layout.error_nbytes(capacity)

    assert layout.ERROR_NBYTES_MIN <= nbytes <= layout.ERROR_NBYTES_MAX
    assert nbytes % 8 == 0
    assert nbytes == layout.ERROR_NBYTES_MIN or nbytes * capacity <= layout.ERRORS_NBYTES


@given(batch=st.integers(1, 65_536), column_nbytes=column_sizes)
def test_a_default_segment_stays_within_its_limit(batch: int, column_nbytes: list[int]) -> None:
    """`slot_nbytes` counts short error records; longer ones cost what they may at most."""
    slot = layout.slot_nbytes(column_nbytes)
    capacity = slot_capacity(batch, None, slot, PRODUCER_NBYTES)
    rounding = 4 * capacity + layout.CACHE_LINE * (len(column_nbytes) + 4)

    nbytes = layout.layout(capacity, column_nbytes).nbytes

    assert nbytes <= PRODUCER_NBYTES + layout.ERRORS_NBYTES + rounding


@given(nbytes=st.integers(0, 1 << 40))
def test_alignment_rounds_up_to_the_next_cache_line(nbytes: int) -> None:
    aligned = layout.align(nbytes)

    assert aligned % layout.CACHE_LINE == 0
    assert 0 <= aligned - nbytes < layout.CACHE_LINE
