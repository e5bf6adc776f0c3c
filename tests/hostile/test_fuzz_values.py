"""A producer overwrites its segment while its calls are gathered and answered, value by value.

Both ends in this process, with all that is above the core: whatever kind of value a function takes
and returns, it gets values of that kind, another producer's calls of the same batch get their
results, and nothing is written beside the hostile one's own segment. The core's own accesses are
watched by the sanitizers, under which the same search runs as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shmbatch.contract.packing import packing
from shmbatch.executor.delivery import Delivery
from shmbatch.executor.staging.devices import Cpu
from shmbatch.executor.staging.staging import Staging
from shmbatch.protocol import layout
from shmbatch.protocol._core import FAILED, PENDING, READY, Batch, Inbox
from tests.hostile.kinds import KINDS, signature
from tests.native import sanitized
from tests.rings import Wire

CAPACITY, SIZE = 6, 8
LATER_NS = 1 << 62


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


def same(examples: int) -> settings:
    """So many that are the same every time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # what is found is found again with a core of our own
        suppress_health_check=list(HealthCheck),
    )


NEW = settings(max_examples=10_000, database=None, deadline=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(same(10), id="10"),
        pytest.param(same(40), id="40", marks=pytest.mark.slow),
        pytest.param(NEW, id="new ones", marks=pytest.mark.soak),
    ],
)
def test_a_function_gets_values_of_its_kind_and_others_their_results(
    kind: str, examples: settings
) -> None:
    @examples
    @given(steps=STEPS)
    def search(steps: list[tuple[str, Any]]) -> None:
        survives(kind, steps)

    search()


@pytest.mark.slow
@pytest.mark.timeout(2 * sanitized.SECONDS)
def test_the_core_stays_inside_of_the_segment_under_the_sanitizers(tmp_path: Any) -> None:
    done = sanitized.run(sanitized.build(tmp_path), __file__, "-k", "values_of_its_kind")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{len(KINDS)} passed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * sanitized.SECONDS)
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
    core = sanitized.build(tmp_path, planted=(planted[0], f"(Py_ssize_t){planted[1]}"))
    done = sanitized.run(core, __file__, "-k", f"values_of_its_kind and {kind}")
    assert done.returncode != 0, done.stdout[-2000:]
    reports = ("AddressSanitizer: ", "runtime error: ")
    assert any(each in done.stderr for each in reports) or "1 failed" in done.stdout


def test_what_the_search_writes_is_seen() -> None:
    """That its scribbles reach values at all, and end in rejected rows and expelled producers."""
    executor = Executor("msgpack")
    ticket, rejected = executor.call(executor.honest), executor.call(executor.hostile)
    offset = executor.hostile.where.columns[0]
    slots = CAPACITY * executor.column.nbytes
    executor.scribble(offset, b"\x07" * slots)
    executor.run([])
    assert got(executor, ticket) == executor.value
    assert executor.hostile.producer.poll(rejected, 0) is FAILED
    assert not executor.expelled
    executor.publish(CAPACITY)
    executor.run([])
    assert executor.expelled
