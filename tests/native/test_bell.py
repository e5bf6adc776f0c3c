"""Decides whether the bell counts rings right wherever its 30-bit count stands, and as modelled.

bell.c makes ring.h callable from here; the model's restatement of the arithmetic is held against
it. What threads do to the bell is for the model and for ring_stress.c.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.model.ring_steps import PARKED, POLLING, STEP, WORD, missing, quorum_of
from tests.native.compiling import compile_c

SOURCE = Path(__file__).with_name("bell.c")
COUNTS = WORD // STEP
MANY = 1 << 20  # calls; no more are ever waited for

counts = st.integers(0, COUNTS - 1) | st.integers(COUNTS - 2 * MANY, COUNTS - 1)
calls = st.integers(1, 40) | st.integers(1, MANY)
bits = st.sampled_from([PARKED, POLLING])


@pytest.fixture(scope="module")
def bell(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("bell") / "bell.so"
    complaints = compile_c(SOURCE, library, ("-O2", "-shared", "-fPIC"))
    assert not complaints, complaints
    loaded = ctypes.CDLL(str(library))
    for name in ("bell_ring", "bell_quorum", "bell_look"):
        getattr(loaded, name).restype = ctypes.c_uint32
    return loaded


@settings(max_examples=300)
@given(count=counts, calls=st.integers(1, 40), bit=bits)
@example(count=COUNTS - 1, calls=1, bit=PARKED)
@example(count=COUNTS - 1, calls=2, bit=PARKED)
@example(count=COUNTS - 20, calls=40, bit=POLLING)
def test_the_ring_that_makes_the_quorum_wakes_and_so_does_every_later_one(
    bell: ctypes.CDLL, count: int, calls: int, bit: int
) -> None:
    bell.bell_set(count * STEP)
    assert bell.bell_arm(count * STEP, bit, calls)
    rung = [bell.bell_ring(False) for _ in range(calls + 20)]
    assert rung == [0] * (calls - 1) + [bit] * 21
    bell.bell_disarm()
    assert bell.bell_look() == (count + calls + 20) * STEP % WORD
    assert bell.bell_ring(False) == 0


@settings(max_examples=1_000)
@given(count=counts, calls=calls, bit=bits, rings=calls)
def test_many_rings_after_the_announcement_are_counted_as_few_are(
    bell: ctypes.CDLL, count: int, calls: int, bit: int, rings: int
) -> None:
    bell.bell_set(count * STEP)
    assert bell.bell_arm(count * STEP, bit, calls)
    before = (count + rings - 1) * STEP % WORD | bit
    bell.bell_set(before)
    assert bell.bell_ring(False) == (bit if rings >= calls else 0)
    # The model's restatement, number by number.
    assert bell.bell_quorum() == quorum_of(count * STEP, calls)
    assert missing(bell.bell_quorum(), before) == (calls - rings) * STEP


@given(count=counts, calls=calls, bit=bits)
def test_an_urgent_ring_wakes_whatever_is_missing(
    bell: ctypes.CDLL, count: int, calls: int, bit: int
) -> None:
    bell.bell_set(count * STEP)
    assert bell.bell_arm(count * STEP, bit, calls)
    assert bell.bell_ring(True) == bit


@given(count=counts, calls=calls, bit=bits)
def test_a_ring_since_the_look_keeps_the_executor_awake(
    bell: ctypes.CDLL, count: int, calls: int, bit: int
) -> None:
    bell.bell_set(count * STEP)
    assert bell.bell_ring(False) == 0
    assert not bell.bell_arm(count * STEP, bit, calls)
    assert bell.bell_look() == (count + 1) * STEP % WORD
    assert bell.bell_ring(False) == 0
