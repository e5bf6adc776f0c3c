"""A producer overwrites its segment while its calls are gathered and answered, value by value.

Both ends in this process, with all that is above the core: whatever kind of value a function takes
and returns, it gets values of that kind, another producer's calls of the same batch get their
results, and nothing is written beside the hostile one's own segment. The core's own accesses are
watched by the sanitizers, under which the same search runs as well.
"""

# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jaxtyping import Float32

from shmbatch.contract.options import ValueOptions, value_options
from shmbatch.contract.packing import packing
from shmbatch.contract.signature import Signature, signature_of
from shmbatch.executor.delivery import Delivery
from shmbatch.executor.staging.devices import Cpu
from shmbatch.executor.staging.staging import Staging
from shmbatch.protocol import layout
from shmbatch.protocol._core import FAILED, PENDING, READY, Batch, Inbox
from tests.native import test_core_sanitized as sanitized
from tests.rings import Wire

CAPACITY, SIZE, MAX_BYTES = 6, 8, 40
LATER_NS = 1 << 62


@dataclass
class Order:
    item: str
    count: int


def ints(xs: list[int]) -> list[int]:
    assert all(type(x) is int for x in xs)
    return xs


def floats(xs: list[float]) -> list[float]:
    assert all(type(x) is float for x in xs)
    return xs


def bools(xs: list[bool]) -> list[bool]:
    assert all(type(x) is bool for x in xs)
    return xs


def texts(xs: list[str]) -> list[str]:
    assert all(type(x) is str and len(x) <= MAX_BYTES for x in xs)
    return xs


def blobs(xs: list[bytes]) -> list[bytes]:
    assert all(type(x) is bytes and len(x) <= MAX_BYTES for x in xs)
    return xs


def fixed(xs: Float32[np.ndarray, "batch 2 3"]) -> Float32[np.ndarray, "batch 2 3"]:
    assert xs.shape[1:] == (2, 3)
    return xs


def ragged(xs: Float32[np.ndarray, "batch seq 2"]) -> Float32[np.ndarray, "batch seq 2"]:
    assert all(x.shape[0] <= 5 and x.shape[1:] == (2,) for x in xs)
    return xs


def padded(xs: Float32[np.ndarray, "batch seq 2"]) -> Float32[np.ndarray, "batch seq 2"]:
    rows, lengths = xs
    assert rows.shape[1] <= 5
    assert lengths.min() >= 0
    assert lengths.max() <= rows.shape[1]
    return rows, lengths


def orders(xs: list[Order]) -> list[Order]:
    assert all(type(x) is Order and type(x.count) is int for x in xs)
    return xs


def anything(xs: list[np.ndarray]) -> list[np.ndarray]:
    assert all(isinstance(x, np.ndarray) and x.nbytes <= MAX_BYTES for x in xs)
    return xs


SEQ = value_options(max_lengths={"seq": 5})
KINDS: dict[str, tuple[Callable[..., Any], ValueOptions, Any]] = {
    "int": (ints, value_options(), 5),
    "float": (floats, value_options(), 0.5),
    "bool": (bools, value_options(), True),
    "str": (texts, value_options(MAX_BYTES), "grün"),
    "bytes": (blobs, value_options(MAX_BYTES), b"\0blob"),
    "array": (fixed, value_options(), np.arange(6, dtype=np.float32).reshape(2, 3)),
    "ragged": (ragged, SEQ, np.ones((3, 2), np.float32)),
    "padded": (
        padded,
        value_options(max_lengths={"seq": 5}, ragged="pad"),
        np.ones((3, 2), np.float32),
    ),
    "msgpack": (orders, value_options(MAX_BYTES), Order("tea", 3)),
    "ndarray": (anything, value_options(MAX_BYTES), np.arange(4)),
}


@cache
def signature(kind: str) -> Signature:
    function, options, _ = KINDS[kind]
    return signature_of(function, f"hostile.{kind}", options)


class Executor:
    """What is between a function and two producers, one of whom is hostile."""

    def __init__(self, kind: str) -> None:
        self.function, _, self.value = KINDS[kind]
        contract = signature(kind)
        self.column = contract.parameters[0]
        self.hostile, self.honest = Wire(contract, CAPACITY), Wire(contract, CAPACITY)
        self.inbox, self.batch = Inbox(), Batch(SIZE)
        for wire in (self.hostile, self.honest):
            self.inbox.attach(wire.executor, 0)
        record_nbytes = self.honest.where.error_nbytes
        address, module = f"hostile.{kind}", __name__
        self.staging = Staging(
            contract,
            SIZE,
            Cpu(),
            address=address,
            module=module,
            record_nbytes=record_nbytes,
        )
        self.delivery = Delivery(address, contract.result, record_nbytes, module=module)
        self.expelled = False

    def packed(self) -> Any:
        packed = packing(self.column, "it")
        pack = self.column.coerce if packed is None else packed.pack
        return pack(self.value, "it")

    def call(self, wire: Wire) -> int:
        return wire.producer.submit((self.packed(),), 0, 0)

    def scribble(self, at: int, data: bytes) -> None:
        """Write *data* at an offset; below zero, over the value of slot ``-1 - at``."""
        if at < 0:
            at = self.hostile.where.columns[0] + (-1 - at) * self.column.nbytes
        at %= len(self.hostile.memory)
        data = data[: len(self.hostile.memory) - at]
        self.hostile.memory[at : at + len(data)] = data

    def publish(self, slot: int) -> None:
        """As a hostile producer may, of any slot."""
        tail = self.hostile.read(layout.TAIL)
        self.hostile.write(layout.INDICES + 4 * (tail & 7), slot)
        self.hostile.write(self.hostile.state_offset(slot % CAPACITY), 9 << 8 | READY)
        self.hostile.write(layout.TAIL, (tail + 1) & 0xFFFFFFFF)

    def run(self, scribbles: list[tuple[int, bytes]]) -> None:
        """Run a batch; what is scribbled is scribbled between its steps."""
        self.inbox.drain(LATER_NS)
        if self.inbox.take(self.batch, SIZE, LATER_NS):
            for at, data in scribbles[::2]:
                self.scribble(at, data)
            inputs, size = self.staging.gather(self.batch)
            value = self.function(*inputs) if size else None
            for at, data in scribbles[1::2]:
                self.scribble(at, data)
            if size:
                self.delivery.returned(self.batch, value)
            self.batch.complete()
        if self.inbox.attention and not self.expelled:
            self.expelled = True
            self.inbox.pop_attention()
            self.inbox.detach(self.hostile.executor)


def shown(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def got(executor: Executor, ticket: int) -> Any:
    """Return the honest one's result, unpacked."""
    value = executor.honest.producer.poll(ticket, 0)
    assert value is not PENDING
    assert value is not FAILED, executor.honest.producer.error(ticket)
    packed = packing(executor.column, "it")
    return value if packed is None else packed.unpack(value, "it")


WORDS = st.sampled_from(
    [bytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x05" + bytes(7), b"\x80" * 16, b"\x29\0\0\0"]
)
DATA = st.one_of(WORDS, st.binary(min_size=1, max_size=48))
# Often where values and states stand, and anywhere.
AT = st.one_of(
    st.integers(-CAPACITY, -1),
    st.integers(0, 1200),
    st.integers(0, 1 << 16),
    st.integers(0, 300).map((8).__mul__),
)
SCRIBBLES = st.lists(st.tuples(AT, DATA), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, CAPACITY)),
        st.tuples(st.just("call"), st.just(0)),
        st.tuples(st.just("scribble"), st.tuples(AT, DATA)),
        st.tuples(st.just("run"), SCRIBBLES),
    ),
    max_size=12,
)


def survives(kind: str, steps: list[tuple[str, Any]]) -> None:
    executor = Executor(kind)
    honest = bytes(executor.honest.memory)
    executor.run([])
    assert bytes(executor.honest.memory) == honest
    for step, argument in steps:
        ticket = executor.call(executor.honest)
        if step == "publish":
            executor.publish(argument)
        elif step == "call" and not executor.expelled:
            executor.call(executor.hostile)
        elif step == "scribble":
            executor.scribble(*argument)
        executor.run(argument if step == "run" else [])
        assert shown(got(executor, ticket)) == shown(executor.value)


def searching(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # what is found is found again with a core of our own
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("kind", KINDS)
@searching(10)
@given(steps=STEPS)
def test_a_function_gets_values_of_its_kind_and_others_their_results(
    kind: str, steps: list[tuple[str, Any]]
) -> None:
    survives(kind, steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@searching(40)
@given(steps=STEPS)
def test_so_it_is_for_many_more_of_them(kind: str, steps: list[tuple[str, Any]]) -> None:
    survives(kind, steps)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10_000, database=None, deadline=None)
@given(steps=STEPS)
def test_nor_does_one_break_it_that_nobody_has_tried_before(
    kind: str, steps: list[tuple[str, Any]]
) -> None:
    survives(kind, steps)


@pytest.mark.slow
@pytest.mark.timeout(2 * sanitized.WATCHDOG_SECONDS)
def test_the_core_stays_inside_of_the_segment_under_the_sanitizers(tmp_path: Any) -> None:
    done = sanitized.run(
        sanitized.build(tmp_path, "gcc"), "gcc", __file__, "-k", "values_of_its_kind"
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{len(KINDS)} passed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * sanitized.WATCHDOG_SECONDS)
@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (("length <= (uint64_t)self->room ? (Py_ssize_t)length : self->room", "length"), "bytes"),
        (("length < 0 ? 0 : length > -most ? -most : (Py_ssize_t)length", "length"), "ragged"),
    ],
    ids=["any length", "any shape"],
)
def test_control_a_length_that_is_believed_is_found(
    planted: tuple[str, str], kind: str, tmp_path: Any
) -> None:
    core = sanitized.build(tmp_path, "gcc", (planted[0], f"(Py_ssize_t){planted[1]}"))
    done = sanitized.run(core, "gcc", __file__, "-k", f"values_of_its_kind and {kind}")
    assert done.returncode != 0, done.stdout[-2000:]
    assert "AddressSanitizer: " in done.stderr or "1 failed" in done.stdout


def test_what_the_search_writes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """That its scribbles reach values at all, and end in rejected rows and expelled producers."""
    executor = Executor("msgpack")
    ticket, _ = executor.call(executor.honest), executor.call(executor.hostile)
    offset = executor.hostile.where.columns[0]
    slots = CAPACITY * executor.column.nbytes
    executor.scribble(offset, b"\x07" * slots)
    executor.run([])
    assert got(executor, ticket) == executor.value
    assert not executor.expelled
    executor.publish(CAPACITY)
    executor.run([])
    assert executor.expelled
