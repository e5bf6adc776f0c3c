"""Values of every kind on their way through a slot: what fits, what comes out, what is refused."""

from __future__ import annotations

import ctypes
import gc
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmbatch.protocol import layout
from shmbatch.protocol._core import DONE, FAILED, SUBMIT_FULL, SUBMIT_MISFIT
from tests.rings import (
    FLOAT,
    INT,
    Pieces,
    Raw,
    Served,
    Wire,
    binary,
    outcome,
    packed,
    ragged,
    shown,
    slot_of,
    text,
)

LARGE_NBYTES = 16 << 20  # copied without the GIL, for long enough that another thread gets it

ROOM = partial(np.empty, dtype=np.uint8)


class Text(str):
    pass


class Binary(bytes):
    pass


class OtherPieces(Pieces):
    pass


def through(column: Raw, value: Any, *, scatter: bool) -> tuple[Any, Any]:
    """Send a value in and out again; return it as gathered, and as polled."""
    wire = Wire((column, column))
    served = Served(wire)
    ticket = wire.submit(value)
    served.take()
    ((gathered,),) = served.batch.gather([None])
    if scatter:
        assert served.batch.scatter([value])
    else:
        assert served.batch.put(0, value)
    served.batch.complete()
    return gathered, outcome(wire, ticket)


# ---- what fits comes out as it was ----


def padded(*pieces: bytes) -> bytes:
    """Return pieces end to end, each at a multiple of 16."""
    joined = b""
    for piece in pieces:
        joined += b"\0" * (-len(joined) % 16) + piece
    return joined


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((text(32), value) for value in ("", "a", "x" * 32, "\0", "é" * 16, "日本語", "𝄞" * 8)),
        (text(0), ""),
        *((binary(32), value) for value in (b"", b"\0", bytes(range(32)))),
        (binary(0), b""),
        (text(100_000), "ä" * 50_000),
        (binary(100_000), b"y" * 100_000),
    ],
    ids=shown,
)
def test_text_and_bytes_arrive_and_return_as_they_were(
    column: Raw, value: Any, scatter: bool
) -> None:
    for result in through(column, value, scatter=scatter):
        assert type(result) is type(value)
        assert result == value


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("allocate", [None, ROOM])
@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (b"",),
        (b"", b"", b""),
        (b"abc",),
        (b"a" * 48,),
        (b"a", b"b" * 16, b"c"),
        (b"a" * 16, b"", b"b" * 32),
        (b"a", b"", b"b" * 17),
        (bytearray(b"abc"), memoryview(b"defg")[1:], np.arange(3)),
        (np.zeros((2, 0)), np.ones((2, 2), "int16").T, np.float64(1.5)),
        (b"",) * 1000,
    ],
    ids=shown,
)
def test_pieces_arrive_and_return_end_to_end(
    pieces: tuple[Any, ...], allocate: Any, scatter: bool
) -> None:
    if any(isinstance(piece, np.ndarray) and not piece.flags.c_contiguous for piece in pieces):
        pieces = tuple(np.ascontiguousarray(piece) for piece in pieces)
    expected = padded(*(memoryview(piece).tobytes() for piece in pieces))

    for result in through(packed(64, allocate), Pieces(pieces), scatter=scatter):
        assert type(result) is (bytes if allocate is None else np.ndarray)
        assert bytes(result) == expected


def test_many_large_pieces_are_stored_without_what_stood_there_before() -> None:
    """The gaps between pieces are zeros, whatever the slot held; and the copy has no GIL."""
    wire = Wire((packed(1 << 20), INT), capacity=1)
    served = Served(wire)
    pieces = [bytes([i]) * (1000 + i) for i in range(200)]

    for value in (Pieces([b"\xff" * (1 << 20)]), Pieces(pieces)):
        ticket = wire.submit(value)
        served.take()
        assert served.batch.gather([None]) == [[padded(*value)]]
        served.answer(0)
        outcome(wire, ticket)


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((-4,), (0,)),
    ((-4,), (1,)),
    ((-4,), (4,)),
    ((3, -4), (3, 2)),
    ((-4, 3), (0, 3)),
    ((-2, -3), (2, 3)),
    ((-2, 2, -3), (1, 2, 0)),
    ((-2, 1, 2, -3), (2, 1, 2, 3)),
    ((-40_000,), (40_000,)),
    ((2, 3), (2, 3)),
    ((-1,) * 20, (1,) * 20),
]


@pytest.mark.parametrize(("axes", "shape"), SHAPES)
def test_a_ragged_array_arrives_and_returns_as_it_was(
    axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    for dtype in ("float64", "bool", "int16", "complex128", "float16"):
        value = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
        for scatter in (False, True):
            for result in through(ragged(dtype, *axes), value, scatter=scatter):
                assert (result.shape, result.dtype) == (shape, value.dtype)
                np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize(
    "buffer", [bytes, bytearray, memoryview, partial(np.frombuffer, dtype="uint8")]
)
def test_a_shape_and_a_buffer_arrive_and_return_as_an_array(
    buffer: Callable[[bytes], Any], scatter: bool
) -> None:
    value = Pieces([(2, 3), buffer(struct.pack("=6h", *range(6)))])

    for result in through(ragged("int16", -4, 3, carrier=Pieces), value, scatter=scatter):
        assert (result.shape, result.dtype) == ((2, 3), np.int16)
        assert result.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((-512, 0), (7, 0)),
        ((0, -512), (0, 512)),
        ((0,), (0,)),
        ((-(2**40), -(2**19), 0), (9, 9, 0)),
    ],
)
def test_a_ragged_array_may_have_no_items_whatever_its_lengths(
    axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    value = np.zeros(shape)

    for result in through(ragged("float64", *axes), value, scatter=True):
        assert result.shape == shape


@given(
    value=st.text(max_size=40) | st.text(st.sampled_from("a\0é日𝄞\ud800"), max_size=40),
    max_bytes=st.integers(0, 5).map(lambda lines: lines * 16),
)
@example(value="\udfff", max_bytes=16)
def test_a_text_fits_if_its_utf8_does(value: str, max_bytes: int) -> None:
    wire = Wire((text(max_bytes), INT))
    served = Served(wire)
    try:
        fits = len(value.encode()) <= max_bytes
    except UnicodeEncodeError:
        fits = False

    assert (wire.producer.submit((value,), 0) >= 0) == fits
    assert served.take() == fits
    if fits:
        assert served.batch.gather([None]) == [[value]]


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=6),
    lines=st.integers(0, 8),
    allocate=st.sampled_from([None, ROOM]),
)
def test_pieces_fit_if_they_do_so_end_to_end(
    pieces: list[bytes], lines: int, allocate: Any
) -> None:
    wire = Wire((packed(16 * lines, allocate), INT))
    served = Served(wire)
    expected = padded(*pieces)

    ticket = wire.producer.submit((Pieces(pieces),), 0)

    assert (ticket >= 0) == (len(expected) <= 16 * lines)
    if served.take():
        ((gathered,),) = served.batch.gather([None])
        assert bytes(gathered) == expected


def test_every_kind_goes_side_by_side_and_neighbours_are_left_alone() -> None:
    columns = (INT, text(20), FLOAT, binary(20), packed(40), ragged("int32", -3, 2), text(16))
    wire = Wire((*columns, text(32)), capacity=3)
    served = Served(wire)

    def values(i: int) -> tuple[Any, ...]:
        pieces, array = Pieces([b"p" * i, b"q" * 9]), np.full((i, 2), i, "int32")
        return i, "é" * i, i / 2, b"b" * (20 - i), pieces, array, "z" * (16 * (i % 2))

    for first in range(0, 9, 3):
        tickets = [wire.submit(*values(i % 4)) for i in range(first, first + 3)]
        served.take()
        gathered = served.batch.gather([None] * len(columns))
        for i, got in zip(range(first, first + 3), zip(*gathered, strict=True), strict=True):
            *before, pieces, array, last = values(i % 4)
            assert got[:4] == tuple(before)
            assert got[4] == padded(*pieces)
            np.testing.assert_array_equal(got[5], array)
            assert got[6] == last
        assert served.batch.scatter([str(i) * 32 for i in range(3)])
        served.batch.complete()
        assert [outcome(wire, ticket) for ticket in tickets] == ["0" * 32, "1" * 32, "2" * 32]


# ---- what does not fit is left to Python ----

IMAGE = ragged("float32", -4, 3)
SHAPED = ragged("float32", -4, 3, carrier=Pieces)
LIAR = (ctypes.c_char * sys.maxsize).from_address(ctypes.addressof(ctypes.c_char()))

MISFITS: list[tuple[Raw, Any]] = [
    *((text(32), value) for value in ("x" * 33, "é" * 17, "𝄞" * 9, "x" * 10_000, "é" * 32)),
    *((text(32), value) for value in ("\ud800", "a\udfffb", Text("a"), b"a", None, 1)),
    (text(0), "a"),
    *((binary(32), value) for value in (b"x" * 33, Binary(b"a"), bytearray(b"a"), "a", None)),
    (binary(32), memoryview(b"a")),
    (binary(0), b"a"),
    *((packed(32), value) for value in (None, b"a", (b"a",), [b"a"], OtherPieces([b"a"]))),
    *((packed(32), Pieces(pieces)) for pieces in ([None], ["a"], [1], [b"a", b"b", None])),
    *((packed(32), Pieces(pieces)) for pieces in ([b"x" * 33], [b"x", b"y" * 17])),
    (packed(32), Pieces([b"x" * 32, b"y"])),
    (packed(32), Pieces([b"", b"x" * 33, b"z"])),
    (packed(32), Pieces([b"x" * 32, b"", b"", b"z"])),
    (packed(32), Pieces([memoryview(b"abcd")[::2]])),
    (packed(32), Pieces([b"a", np.zeros((2, 2), "int8")[:, :1]])),
    (packed(32), Pieces([b"x", LIAR])),
    (packed(32), Pieces([LIAR])),
    *((IMAGE, value) for value in (None, 1.0, [[0.0] * 3], ((1, 3), b"x" * 12), b"x" * 12)),
    (IMAGE, np.zeros((1, 3), "float64")),
    (IMAGE, np.zeros((1, 3), "int32")),
    (IMAGE, np.zeros((1, 3), ">f4")),
    (IMAGE, np.zeros((5, 3), "float32")),
    (IMAGE, np.zeros((1, 2), "float32")),
    (IMAGE, np.zeros((0, 4), "float32")),
    (IMAGE, np.zeros(3, "float32")),
    (IMAGE, np.zeros((1, 1, 3), "float32")),
    (IMAGE, np.zeros((3, 2), "float32").T),
    (IMAGE, np.zeros((4, 3), "float32")[::2]),
    (IMAGE, np.zeros((1, 3), "float32").view(np.matrix)),
    (IMAGE, np.zeros((1, 3), "datetime64[s]")),
    *((SHAPED, value) for value in (None, np.zeros((1, 3), "float32"), ((1, 3), b"x" * 12))),
    *((SHAPED, Pieces(value)) for value in ([], [(1, 3)], [(1, 3), b"x" * 12, b""])),
    *((SHAPED, Pieces([(1, 3), buffer])) for buffer in (None, "x" * 12, b"x" * 11, b"x" * 13)),
    *((SHAPED, Pieces([(1, 3), buffer])) for buffer in (b"", memoryview(b"x" * 24)[::2])),
    *((SHAPED, Pieces([shape, b"x" * 12])) for shape in (None, [1, 3], (), (3,), (1, 3, 1))),
    *((SHAPED, Pieces([shape, b"x" * 12])) for shape in ((3, 1), (1, "3"), (None, 3), (1.0, 3))),
    *((SHAPED, Pieces([(n, 3), b""])) for n in (-1, -(2**63), 2**63, 2**64, -(2**70), 5)),
    *((SHAPED, Pieces([(-1, n), b"x" * 12])) for n in (-3, 3, 2**62)),
    (SHAPED, Pieces([(2**61, 3), b"x" * 12])),
    (SHAPED, Pieces([Pieces([1, 3]), b"x" * 12])),
]


@pytest.mark.parametrize(("column", "value"), MISFITS, ids=shown)
def test_a_value_that_is_not_exactly_of_its_kind_is_left_to_python(
    column: Raw, value: Any
) -> None:
    wire = Wire((INT, column, column))
    served = Served(wire)

    assert wire.producer.submit((1, value), 0) == SUBMIT_MISFIT
    assert wire.producer.free_slots == 4
    assert wire.read(layout.TAIL) == 0

    out = Wire((INT, column))
    served = Served(out)
    out.submit(1)
    served.take()
    assert not served.batch.put(0, value)
    assert not served.batch.scatter([value])


@pytest.mark.parametrize(
    "results",
    [["a"], ["a", "b", "c"], ("a", "b"), ["a", 1], ["a", "x" * 33], "ab", None, [None] * 2],
)
def test_results_that_are_no_list_of_the_kind_are_left_to_python(results: Any) -> None:
    wire = Wire((INT, text(32)))
    served = Served(wire)
    for i in range(2):
        wire.submit(i)
    served.take()

    assert not served.batch.scatter(results)


def test_buffers_are_let_go_whatever_becomes_of_their_call() -> None:
    columns = (packed(32), ragged("int8", -8, carrier=Pieces), INT)
    wire = Wire((*columns, packed(32)), capacity=1)
    served = Served(wire)
    first, second, third = (bytearray(b"abcdef") for _ in range(3))

    def values(last: Any) -> tuple[Any, ...]:
        return Pieces([first, b"", second]), Pieces([(6,), third]), last

    assert wire.producer.submit(values("no int"), 0) == SUBMIT_MISFIT
    assert wire.producer.submit((*values(1)[:1], Pieces([(7,), third]), 1), 0) == SUBMIT_MISFIT
    assert wire.producer.submit((Pieces([first, None]), *values(1)[1:]), 0) == SUBMIT_MISFIT
    assert wire.producer.submit((Pieces([first, second] * 2), *values(1)[1:]), 0) == SUBMIT_MISFIT
    wire.submit(*values(1))
    assert wire.producer.submit(values(2), 0) == SUBMIT_FULL
    served.take()
    assert served.batch.put(0, Pieces([first, second]))
    assert served.batch.scatter([Pieces([first, second])])
    assert not served.batch.put(0, Pieces([first, second, b"x"]))

    for data in (first, second, third):
        data.clear()  # BufferError if a view of it were still held


# ---- columns that do not fit ----


@pytest.mark.parametrize(
    ("column", "changes"),
    [
        *((text(32), {"nbytes": nbytes}) for nbytes in (0, 8, 15, 17, 40, -16)),
        *((binary(32), {"nbytes": nbytes}) for nbytes in (0, 8, 40, -16)),
        *((packed(32), {"nbytes": nbytes}) for nbytes in (0, 8, 40, -16)),
        *((IMAGE, {"nbytes": nbytes}) for nbytes in (0, 16, 48, 56, 63, -64)),
        *((IMAGE, {"itemsize": itemsize}) for itemsize in (0, -4, 8, sys.maxsize)),
        (IMAGE, {"shape": ()}),
        (IMAGE, {"shape": (-5, 3)}),
        (IMAGE, {"shape": (-4, 3, 2)}),
        (IMAGE, {"shape": (-4,) * 65}),
        (IMAGE, {"shape": (-(2**62), -4)}),
        (IMAGE, {"shape": (-sys.maxsize, -sys.maxsize, -2)}),
        (IMAGE, {"shape": (-sys.maxsize - 1, 0)}),
        (IMAGE, {"shape": (sys.maxsize, sys.maxsize)}),
        (IMAGE, {"shape": (2**64,)}),
        (IMAGE, {"shape": ("4",)}),
        (IMAGE, {"kind": 8}),
        (IMAGE, {"kind": -1}),
        (INT, {"nbytes": 16}),
        (INT, {"kind": 2**31}),
        (INT, {"itemsize": 2**64}),
        (INT, {"itemsize": "8"}),
    ],
    ids=shown,
)
def test_a_column_that_does_not_fit_its_kind_is_refused(
    column: Raw, changes: dict[str, Any]
) -> None:
    whole = Wire((column, column))
    changed = replace(column, **changes).at(whole.where.columns[0])
    *shared, columns = whole.arguments()

    with pytest.raises((ValueError, TypeError, OverflowError)):
        type(whole.executor)(*shared, (changed, columns[1]), layout.LAYOUT_VERSION)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        type(whole.producer)(
            *shared, (columns[0], changed), whole.bell_memory, lambda bits: None, None
        )


# ---- padded ----


@st.composite
def ragged_batches(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[tuple[int, ...]]]:
    """Draw a dtype, the axes of a column, and the shapes of some values in it."""
    axis = st.integers(1, 4)
    axes = draw(st.lists(axis | axis.map(int.__neg__), min_size=1, max_size=4))
    shapes = [
        tuple(draw(st.integers(0, -n)) if n < 0 else n for n in axes)
        for _ in range(draw(st.integers(1, 7)))
    ]
    return draw(st.sampled_from(["int8", "float32", "complex128"])), tuple(axes), shapes


@settings(deadline=None)
@given(drawn=ragged_batches(), spare=st.integers(0, 3))
@example(drawn=("int8", (-3, 2, -3, 2), [(0, 2, 3, 2), (3, 2, 0, 2), (1, 2, 1, 2)]), spare=0)
@example(drawn=("int8", (-3,), [(0,), (0,)]), spare=0)
def test_rows_are_padded_with_zeros_to_the_longest_of_the_batch(
    drawn: tuple[str, tuple[int, ...], list[tuple[int, ...]]], spare: int
) -> None:
    """Against numpy; the rows are those of two producers, in slots that were used before."""
    dtype, axes, shapes = drawn
    column = ragged(dtype, *axes)
    wires = [Wire((INT, column, INT), capacity=8) for _ in range(2)]
    served = Served(*wires)
    for wire in wires:  # what stood in the slots before must not shine through
        start, end = wire.where.columns[1], wire.where.columns[2]
        wire.memory[start:end] = b"\xee" * (end - start)
    values = [
        np.arange(1, prod(shape) + 1).reshape(shape).astype(dtype) + i
        for i, shape in enumerate(shapes)
    ]
    for i, value in enumerate(values):
        wires[i % 2].submit(i, value)
    served.take()
    (order,) = [served.batch.gather([None, None])[0]]
    longest = [max(lengths) for lengths in zip(*shapes, strict=True)]
    expected = np.zeros((len(values), *longest), dtype)
    for row, i in enumerate(order):
        expected[(row, *map(slice, shapes[i]))] = values[i]
    variable = [axis for axis, n in enumerate(axes) if n < 0]
    room = np.full(expected.size + spare, 77).astype(dtype)
    lengths = np.full((len(values) + spare, len(variable)), -1)

    _, shape = served.batch.gather([None, (room, lengths)])

    assert shape == expected.shape
    np.testing.assert_array_equal(room[: expected.size].reshape(shape), expected)
    assert (room[expected.size :] == 77).all()
    assert lengths[: len(values)].tolist() == [
        [shapes[i][axis] for axis in variable] for i in order
    ]
    assert (lengths[len(values) :] == -1).all()


def test_a_large_block_is_padded_as_a_small_one() -> None:
    wire = Wire((ragged("float64", -200, 7, -30), INT), capacity=8)
    served = Served(wire)
    shapes = [(200, 7, 1), (0, 7, 30), (3, 7, 29)]
    for shape in shapes:
        wire.submit(np.full(shape, float(shape[2])))
    served.take()
    room, lengths = np.full((3, 200, 7, 30), np.nan), np.empty((3, 2), "int64")

    assert served.batch.gather([(room, lengths)]) == [(3, 200, 7, 30)]

    assert lengths.tolist() == [[200, 1], [0, 30], [3, 29]]
    assert [row.sum() for row in room] == [200 * 7, 0, 3 * 7 * 29 * 29.0]


@pytest.mark.parametrize(
    "pair",
    [
        (np.zeros(17), np.zeros((2, 1), "int64")),
        (np.zeros(18), np.zeros((1, 1), "int64")),
        (np.zeros((3, 12)).T, np.zeros((2, 1), "int64")),
        (np.zeros(18), np.zeros((4, 2), "int64")[:, ::2]),
        (b"x" * 1000, np.zeros((2, 1), "int64")),
        (np.zeros(18), b"x" * 1000),
        (None, np.zeros((2, 1), "int64")),
        (np.zeros(18), None),
        (np.zeros(18),),
        np.zeros(18),
        [np.zeros(18), np.zeros((2, 1), "int64")],
    ],
    ids=shown,
)
def test_a_pair_that_does_not_fit_is_refused_and_the_batch_goes_on(pair: Any) -> None:
    wire = Wire((ragged("float64", -4, 3), INT))
    served = Served(wire)
    tickets = [wire.submit(np.ones((length, 3))) for length in (3, 1)]
    served.take()

    with pytest.raises((ValueError, TypeError, BufferError)):
        served.batch.gather([pair])

    room, lengths = np.empty(18), np.empty((2, 1), "int64")
    assert served.batch.gather([(room, lengths)]) == [(2, 3, 3)]
    served.answer(1, 2)
    assert [outcome(wire, ticket) for ticket in tickets] == [1, 2]


@pytest.mark.parametrize("column", [INT, text(16), binary(16), packed(16)])
def test_only_arrays_are_gathered_into_a_pair(column: Raw) -> None:
    wire = Wire((column, INT))
    served = Served(wire)
    wire.submit({0: 1, 4: "a", 5: b"a", 6: Pieces([b"a"])}[column.kind])
    served.take()

    with pytest.raises(TypeError, match="pair of buffers"):
        served.batch.gather([(np.zeros(100), np.zeros(100, "int64"))])


# ---- what a hostile producer wrote ----

LENGTHS = [0, 1, 31, 32, 33, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("column", [text(32), binary(32), packed(32), packed(32, ROOM)])
def test_a_length_that_was_overwritten_stays_within_its_slot(column: Raw, length: int) -> None:
    wire = Wire((column, column), capacity=2)
    served = Served(wire)
    value = {4: "a", 5: b"a", 6: Pieces([b"a"])}[column.kind]
    tickets = [wire.submit(value) for _ in range(2)]
    served.take()
    at = wire.value_offset(0, 0)
    wire.memory[at : at + 48] = struct.pack("=QQ", length, 2**64 - 1) + b"s" * 32

    ((scribbled, honest),) = served.batch.gather([None])

    clamped = b"s" * min(length, 32)
    assert scribbled == clamped.decode() if column.kind == 4 else bytes(scribbled) == clamped
    assert honest == "a" if column.kind == 4 else bytes(honest) == b"a"
    assert served.batch.scatter([value] * 2)
    served.batch.complete()
    struct.pack_into("=Q", wire.memory, wire.value_offset(-1, 0), length)
    assert len(outcome(wire, tickets[0])) == min(length, 32)
    assert outcome(wire, tickets[1]) in ("a", b"a", np.frombuffer(b"a", "uint8"))


@given(payload=st.binary(min_size=32, max_size=32))
@example(payload=b"\xff" * 32)
@example(payload=b"\xed\xa0\x80" * 10 + b"\xf4\x90")
def test_a_text_that_is_no_utf8_is_still_a_text(payload: bytes) -> None:
    wire = Wire((text(32), INT))
    served = Served(wire)
    wire.submit("x" * 32)
    at = wire.value_offset(0, 0) + 16
    wire.memory[at : at + 32] = payload
    served.take()

    assert served.batch.gather([None]) == [[payload.decode(errors="replace")]]


words = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 6)


@given(shape=st.tuples(words, words, words))
@example(shape=(2**62, 2**62, 2**62))
@example(shape=(-1, -(2**63), 2**63 - 1))
def test_a_shape_that_was_overwritten_is_one_that_the_column_has(
    shape: tuple[int, int, int],
) -> None:
    wire = Wire((ragged("int16", -3, 2, -5), INT), capacity=2)
    served = Served(wire)
    tickets = [wire.submit(np.ones((1, 2, 1), "int16")) for _ in range(2)]
    served.take()
    at = wire.value_offset(0, 0)
    struct.pack_into("=3q", wire.memory, at, *shape)
    possible = (min(max(shape[0], 0), 3), 2, min(max(shape[2], 0), 5))
    room, lengths = np.empty(2 * 3 * 2 * 5, "int16"), np.empty((2, 2), "int64")

    ((scribbled, honest),) = served.batch.gather([None])
    (padded_shape,) = served.batch.gather([(room, lengths)])

    assert scribbled.shape == possible
    assert honest.tolist() == [[[1], [1]]]
    assert padded_shape == (2, max(possible[0], 1), 2, max(possible[2], 1))
    assert lengths.tolist() == [[possible[0], possible[2]], [1, 1]]
    served.answer(1, 2)
    assert [outcome(wire, ticket) for ticket in tickets] == [1, 2]


def test_shapes_that_change_while_they_are_read_are_read_once() -> None:
    """A scribbler flips between two shapes; what is gathered fits together all the same."""
    wire = Wire((ragged("int8", -64, -64), INT), capacity=2)
    served = Served(wire)
    for _ in range(2):
        wire.submit(np.ones((64, 64), "int8"))
    served.take()
    stop = threading.Event()
    at = wire.value_offset(0, 0)

    def scribble() -> None:
        shapes = [struct.pack("=2q", *shape) for shape in ((64, 64), (1, 2**62), (-1, 64), (0, 0))]
        while not stop.is_set():
            for shape in shapes:
                wire.memory[at : at + 16] = shape

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        room, lengths = np.empty(2 * 64 * 64, "int8"), np.empty((2, 2), "int64")
        for _ in range(2000):
            ((row, honest),) = served.batch.gather([None])
            assert row.size <= honest.size == 64 * 64
            (shape,) = served.batch.gather([(room, lengths)])
            assert shape == (2, 64, 64)
            assert (lengths >= 0).all()
            assert (lengths <= 64).all()
    finally:
        stop.set()
        thread.join()


# ---- what is allocated ----


@pytest.mark.parametrize("made", [None, b"x" * 32, bytearray(31), np.empty(64, "uint8")[::2]])
@pytest.mark.parametrize("kind", ["packed", "ragged"])
def test_an_allocated_buffer_that_does_not_fit_is_refused(kind: str, made: Any) -> None:
    asked: list[Any] = []

    def allocate(size: Any) -> Any:
        asked.append(size)
        return made

    if kind == "packed":
        column, value = packed(32, allocate), Pieces([b"y" * 32])
    else:
        column = Raw(7, 64, Pieces, "B", (-32,), allocate, 1)
        value = Pieces([(32,), b"y" * 32])
    wire = Wire((column, column), capacity=1)
    served = Served(wire)
    ticket = wire.submit(value)
    served.take()

    with pytest.raises((TypeError, ValueError, BufferError)):
        served.batch.gather([None])
    assert served.batch.put(0, value)
    served.batch.complete()
    with pytest.raises((TypeError, ValueError, BufferError)):
        wire.producer.poll(ticket, 0)
    assert wire.producer.free_slots == 1
    assert asked == ([32] * 2 if kind == "packed" else [(32,)] * 2)


def test_an_allocation_that_fails_loses_that_result_only() -> None:
    def allocate(nbytes: int) -> Any:
        raise MemoryError("no room")

    wire = Wire((INT, packed(32, allocate)), capacity=2)
    served = Served(wire)
    tickets = [wire.submit(i) for i in range(2)]
    served.take()
    assert served.batch.scatter([Pieces([b"a"]), Pieces()])
    served.batch.complete()

    for ticket in tickets:
        with pytest.raises(MemoryError, match="no room"):
            wire.producer.poll(ticket, 0)
    assert wire.producer.free_slots == 2


# ---- large values let other threads run ----


@pytest.fixture
def counter() -> Iterator[Callable[[], int]]:
    """Count how often another thread ran, which it does whenever somebody lets go of the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    count, stop = [0], threading.Event()

    def run() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)  # lets go of the GIL, and waits for it again

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: count[0]
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


KINDS: dict[str, tuple[Raw, Any]] = {
    "str": (text(LARGE_NBYTES), "x" * LARGE_NBYTES),
    "bytes": (binary(LARGE_NBYTES), b"x" * LARGE_NBYTES),
    "packed": (packed(LARGE_NBYTES, ROOM), Pieces([b"x" * LARGE_NBYTES])),
    "packed, as bytes": (packed(LARGE_NBYTES), Pieces([b"x" * LARGE_NBYTES])),
    "ragged": (ragged("int8", -LARGE_NBYTES), np.ones(LARGE_NBYTES, "int8")),
}


@pytest.mark.parametrize("way", ["submit", "gather", "pad", "put", "scatter", "poll"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_value_is_copied_without_the_gil(
    kind: str, way: str, counter: Callable[[], int]
) -> None:
    """All but a text that comes out: the decoder needs it."""
    if (kind == "str" and way in ("gather", "poll")) or (kind != "ragged" and way == "pad"):
        return
    column, value = KINDS[kind]
    wire = Wire((column, column), capacity=1)
    served = Served(wire)
    room, lengths = np.empty(LARGE_NBYTES, "int8"), np.empty((1, 1), "int64")
    let_run: set[str] = set()

    def watched(step: str, operation: Callable[..., Any], *arguments: Any) -> Any:
        before = counter()
        result = operation(*arguments)
        if counter() != before:
            let_run.add(step)
        return result

    while way not in let_run:
        ticket = watched("submit", wire.submit, value)
        served.take()
        watched("gather", served.batch.gather, [None])
        if kind == "ragged":
            watched("pad", served.batch.gather, [(room, lengths)])
        assert watched("put", served.batch.put, 0, value)
        assert watched("scatter", served.batch.scatter, [value])
        served.batch.complete()
        assert len(watched("poll", outcome, wire, ticket)) == LARGE_NBYTES


def test_a_list_that_another_thread_empties_is_left_to_python() -> None:
    """Large results are copied without the GIL, and the list is the user's own."""
    nbytes = 1 << 20
    wire = Wire((INT, binary(nbytes)), capacity=8)
    served = Served(wire)
    value = b"x" * nbytes
    for i in range(8):
        wire.submit(i)
    served.take()
    emptied, stop = threading.Event(), threading.Event()
    results: list[bytes] = []

    def empty() -> None:
        while not stop.is_set():
            if results:
                results.clear()
                emptied.set()

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        refused = 0
        while refused < 20:
            emptied.clear()
            results.extend([value] * 8)
            refused += not served.batch.scatter(results)
            emptied.wait()
    finally:
        stop.set()
        thread.join()


def test_threads_that_submit_large_values_at_once_get_their_own_back() -> None:
    nbytes = 1 << 18
    columns = (text(nbytes), binary(nbytes), packed(nbytes), ragged("int8", -nbytes))
    wire = Wire((*columns, binary(nbytes)), capacity=4)
    served = Served(wire)
    failures: list[Any] = []
    finished = threading.Event()

    def call(letter: int) -> None:
        own = bytes([letter]) * (nbytes - letter)
        array = np.frombuffer(own, "int8")
        for _ in range(20):
            ticket = SUBMIT_FULL
            while ticket == SUBMIT_FULL:
                ticket = wire.producer.submit((own.decode(), own, Pieces([own]), array), 0)
            while wire.producer.state(ticket) != DONE:
                pass
            if outcome(wire, ticket) != own:
                failures.append(letter)

    def serve() -> None:
        while not finished.is_set():
            if served.take():
                texts, datas, pieces, arrays = served.batch.gather([None] * 4)
                for row in zip(texts, datas, pieces, arrays, strict=True):
                    if not row[0].encode() == row[1] == row[2] == row[3].tobytes():
                        failures.append(row[0][:1])
                served.batch.scatter(datas)
                served.batch.complete()

    executor = threading.Thread(target=serve)
    callers = [threading.Thread(target=call, args=(letter,)) for letter in b"abc"]
    for thread in (executor, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    finished.set()
    executor.join()

    assert failures == []
    assert wire.producer.free_slots == 4


# ---- nothing leaks ----


def test_nothing_is_left_of_the_values_of_any_kind() -> None:
    columns = (text(64), binary(64), packed(64, ROOM), packed(64), ragged("int16", -4, 2))
    shaped = ragged("int16", -4, 2, carrier=Pieces)
    results = (text(64), binary(64), packed(64, ROOM), ragged("int16", -4, 2), shaped)
    array, data, long = np.ones((3, 2), "int16"), bytearray(b"abc"), b"y" * 65
    pair = Pieces([(3, 2), bytearray(12)])
    good = ("é", b"bytes", Pieces([data, b"x"]), Pieces([data]), array, pair)
    misfits = (
        "\ud800",
        long,
        Pieces([data, None]),
        Pieces([data, long]),
        array.T,
        Pieces([(9, 9), data]),
    )
    room, lengths = np.empty(100, "int16"), np.empty((8, 1), "int64")
    outs = [("é", "\ud800"), (b"b", long), *[(Pieces([data]), Pieces([data, long]))]]
    outs += [(array, array.T), (pair, Pieces([(3, 2), data]))]
    wires = [Wire((*columns, shaped, result), capacity=2) for result in results]

    def a_round() -> None:
        for wire, (fits, does_not) in zip(wires, outs, strict=True):
            served = Served(wire)
            tickets = [wire.submit(*good) for _ in range(2)]
            assert wire.producer.submit(good, 0) == SUBMIT_FULL
            for i, misfit in enumerate(misfits):
                values = (*good[:i], misfit, *good[i + 1 :])
                assert wire.producer.submit(values, 0) == SUBMIT_MISFIT
            served.take()
            served.batch.gather([None] * 5 + [(room, lengths)])
            with pytest.raises(ValueError, match="bytes"):
                served.batch.gather([None] * 5 + [(room[:1], lengths)])
            with pytest.raises(TypeError):
                served.batch.gather([None] * 5 + [(room, None)])
            assert not served.batch.scatter([fits, does_not])
            assert served.batch.scatter([fits, fits])
            assert not served.batch.put(0, does_not)
            served.batch.reject(0, b"why")
            served.batch.complete()
            assert wire.producer.poll(tickets[0], 0) is FAILED
            assert wire.producer.error(tickets[0]) == b"why"
            outcome(wire, tickets[1])
            late = wire.submit(*good, deadline_ns=1)
            served.take()
            assert wire.producer.error(late) is None
            assert slot_of(late) < 2
            served.inbox.detach(wire.executor)

    things = [
        None,
        Pieces,
        np.ndarray,
        ROOM,
        array,
        data,
        long,
        pair,
        room,
        lengths,
        *good,
        *misfits,
    ]
    for _ in range(20):
        a_round()
    gc.collect()
    references = [sys.getrefcount(each) for each in things]
    blocks = sys.getallocatedblocks()

    rounds = 100
    for _ in range(rounds):
        a_round()
    gc.collect()

    grown = [
        (each, sys.getrefcount(each) - before)
        for each, before in zip(things, references, strict=True)
        if sys.getrefcount(each) - before >= rounds // 2
    ]
    assert grown == []
    assert sys.getallocatedblocks() - blocks < rounds // 2
    data.clear()  # BufferError if a view of it were still held
