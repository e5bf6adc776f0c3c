"""A CUDA device keeps every batch's rows apart, however late and out of order it works.

The device is `fake_gpu`. Most tests take the steps of the executor's loop one by one, so that
producers, launches and completions come in every order; some run the loop itself.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.columns import Column
from shmbatch.contract.definition import Definition
from shmbatch.contract.exceptions import unpack_exception
from shmbatch.contract.signature import Signature
from shmbatch.errors import BatchResultError, ConfigError
from shmbatch.executor.dying import DeviceLost
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging import cuda as cuda_module
from shmbatch.executor.staging import direct as direct_module
from shmbatch.executor.staging.cuda import Cuda
from shmbatch.protocol._core import FAILED, PENDING
from tests.executor import worlds
from tests.executor.fake_gpu import FakeGpu, Policy
from tests.executor.worlds import START_NS, Call, Plan, Producer, World
from tests.rings import Wire, array, signature

POLICIES: tuple[Policy, ...] = ("lazy", "random", "eager")
LATER_NS = 1 << 62

each_policy = pytest.mark.parametrize("policy", POLICIES)


def vectors(*parameters: Any, dtype: str = "float32") -> Signature:
    """Parameters as given, and one vector of two on the device; the result is such a vector."""
    vector = array(dtype, 2, library="torch")
    return signature(*parameters, vector, result=vector)


def doubled(rows: Any) -> Any:
    return rows * 2


# ---- the steps of the loop, one by one ----


@dataclass
class Client:
    """A producer, and what became of its calls."""

    wire: Wire
    registration: Any
    pending: dict[int, int] = field(default_factory=dict)  # its calls' numbers, by ticket
    gone: bool = False


class Rig:
    """One function on a fake GPU, and its producers.

    Call *n* is given the vector (n, -n), behind *leading* values of the same number.
    """

    def __init__(
        self,
        gpu: FakeGpu,
        function: Callable[..., Any] = doubled,
        *,
        contract: Signature | None = None,
        leading: Callable[[int], tuple[Any, ...]] = lambda number: (),
        size: int = 4,
        slots: int = 4,
        producers: int = 2,
        direct_dma: Any = False,
        **options: Any,
    ) -> None:
        self.gpu = gpu
        self.cuda = Cuda(gpu)
        for name in ("h2d", "compute", "d2h"):
            getattr(self.cuda, name).name = name
        self.contract = contract or vectors()
        self._leading = leading
        definition = Definition(
            *("f", function, self.contract, BatchParameters(size, 0), slots),
            direct_dma=direct_dma,
            **options,
        )
        self.served = ServedFunction(definition, "app.f", self.cuda, None, 1 << 17)
        self.served.warm_up()
        self.clients: list[Client] = []
        for _ in range(producers):
            self.attach()
        self.numbers = 0
        self.outcomes: dict[int, Any] = {}

    def attach(self) -> Client:
        wire = Wire(self.contract, self.served.capacity)
        registration = self.served.register(wire.executor, wire.memory)
        self.served.inbox.attach(wire.executor, 0)
        self.clients.append(Client(wire, registration))
        return self.clients[-1]

    def submit(self, client: Client, count: int = 1) -> None:
        """Publish calls, as many as there are slots for."""
        for _ in range(0 if client.gone else count):
            number = self.numbers + 1
            vector = self.contract.parameters[-1].coerce(row(number), "row")
            values = (*self._leading(number), vector)
            ticket = client.wire.producer.submit(values, 0, 0)
            if ticket < 0:
                return
            client.pending[ticket] = self.numbers = number

    def launch(self) -> int:
        """Launch a batch if calls wait and there is room for it."""
        served = self.served
        if not served.idle:
            return 0
        inbox, batcher = served.inbox, served.batcher
        waiting = inbox.drain(LATER_NS)
        batcher.observe(waiting, inbox.oldest_ns, LATER_NS, True, inbox.absent)
        return served.launch(LATER_NS) if waiting else 0

    def complete(self) -> None:
        """Complete the oldest batch, and let producers take what is there."""
        if self.served.flights:
            self.served.complete()
        for client in self.clients:
            if not client.gone:
                self._collect(client)

    def _collect(self, client: Client) -> None:
        for ticket, number in list(client.pending.items()):
            outcome = client.wire.producer.poll(ticket, 0)
            if outcome is PENDING:
                continue
            if outcome is FAILED:
                outcome = unpack_exception(client.wire.producer.error(ticket) or b"")
            self.outcomes[number] = outcome
            del client.pending[ticket]

    def leave(self, client: Client) -> None:
        """Let a producer die, as the loop and its connection then do."""
        if not client.gone:
            client.gone = True
            self.served.inbox.detach(client.wire.executor)
            if client.registration is not None:
                client.registration.close()

    def finish(self) -> None:
        """Run what was called, and let everybody go."""
        while self.launch() or self.served.flights:
            self.complete()
        for client in self.clients:
            if not client.gone:
                assert not client.pending, "a call has no outcome"
            self.leave(client)
        self.served.close()
        self.gpu.check()
        assert self.gpu.registered == {}

    def wrong(self, expected: Callable[[int], Sequence[float]] | None = None) -> dict[int, Any]:
        """Return the outcomes that are not twice their call's vector."""
        expected = expected or (lambda number: [2 * number, -2 * number])
        return {
            number: outcome
            for number, outcome in self.outcomes.items()
            if not isinstance(outcome, np.ndarray | memoryview)
            or np.asarray(outcome).tolist() != list(expected(number))
        }


def row(number: int) -> Any:
    return torch.tensor([number, -number], dtype=torch.float32)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 2), st.integers(1, 5)),
        st.just(("launch",)),
        st.just(("complete",)),
        st.tuples(st.just("leave"), st.integers(0, 2)),
    ),
    min_size=4,
    max_size=40,
)
OPTIONS = st.sampled_from(
    [
        {},
        {"direct_dma": True},
        {"batch_sizes": (1, 4)},
        {"batch_sizes": (4,), "direct_dma": True},
        {"batch_sizes": (2, 4), "cuda_graphs": True},
        {"batch_sizes": (1, 3, 4), "cuda_graphs": True, "direct_dma": True},
    ]
)


@given(steps=STEPS, options=OPTIONS, policy=st.sampled_from(POLICIES), data=st.data())
@settings(max_examples=300, deadline=None)
def test_every_call_gets_its_own_result_in_whatever_order_things_happen(
    steps: list[tuple[Any, ...]], options: dict[str, Any], policy: Policy, data: Any
) -> None:
    chance = data.draw(st.randoms(use_true_random=False)) if policy == "random" else 0
    rig = Rig(FakeGpu(policy, chance), producers=3, **options)
    for step, *arguments in steps:
        if step == "submit":
            rig.submit(rig.clients[arguments[0]], arguments[1])
        elif step == "leave":
            rig.leave(rig.clients[arguments[0]])
        else:
            getattr(rig, step)()
        assert len(rig.served.flights) <= 2
    rig.finish()
    assert rig.wrong() == {}


@pytest.mark.parametrize("planted", [False, True])
def test_the_first_batches_are_not_overwritten_by_zeros(planted: bool) -> None:
    """Memory is zeroed on another stream than rows are copied on, and nobody waits again."""
    wrong: dict[int, Any] = {}
    for seed in range(20):
        # Ignored is the wait for the last of three buffers.
        rig = Rig(FakeGpu("random", seed, ignore_synchronize=3 if planted else 0))
        for client in rig.clients:
            rig.submit(client, 4)
            rig.launch()
        rig.finish()
        wrong |= rig.wrong()
    assert bool(wrong) is planted


# ---- each wait is needed ----


class Noting(FakeGpu):
    """Knows for which part of the product each wait was made, and if it told anything."""

    PARTS = (
        *("copying", "fetching", "landing"),
        *("buffer", "warm_up", "capture", "launch", "complete", "forget"),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.of_streams: list[str] = []  # their waits, in order; "" for those that told nothing
        self.of_host: list[str] = []
        self.fails = False  # what is launched or completed now; see `busy`
        super().__init__(*args, **kwargs)

    def wait(self, stream: Any, event: Any) -> None:
        self.of_streams.append(self._parts() if self.is_news(event, stream) else "")
        super().wait(stream, event)

    def wait_on_host(self, event: Any) -> None:
        self.of_host.append(self._parts() if self.is_news(event) else "")
        super().wait_on_host(event)

    def synchronize(self) -> None:
        self.of_host.append(self._parts() if self.is_news(None) else "")
        super().synchronize()

    def _parts(self) -> str:
        names = [frame.f_code.co_name for frame, _ in traceback.walk_stack(None)]
        parts = dict.fromkeys(name for name in reversed(names) if name in self.PARTS)
        return " ".join([*parts, *(["of a batch that fails"] if self.fails else [])])


class Broken(Exception):
    """What the function of `busy` raises now and then."""


def busy(gpu: FakeGpu, **options: Any) -> tuple[Rig, dict[int, Any]]:
    """Have a device do a bit of everything; return what came out wrong.

    Producers call again as soon as they have results, so every slot and every buffer is used
    again at once; one of them dies in between.
    """
    fails = False

    def function(rows: Any) -> Any:
        result = rows * 2
        if fails:
            raise Broken
        return result

    rig = Rig(gpu, function, producers=3, size=4, slots=3, **options)
    failing: list[bool] = []  # of the batches in flight
    for turn in range(14):
        for client in rig.clients:
            rig.submit(client, 3)
        fails = turn % 5 == 4 and "cuda_graphs" not in options
        _tell(gpu, fails)
        if rig.launch():
            failing.append(fails)
        if turn % 3:
            _tell(gpu, failing.pop(0))
            rig.complete()
        if turn == 9:
            _tell(gpu, False)
            rig.leave(rig.clients[0])
    fails = False
    _tell(gpu, False)
    rig.finish()
    return rig, {
        number: outcome
        for number, outcome in rig.wrong().items()
        if not isinstance(outcome, Broken)
    }


def _tell(gpu: FakeGpu, fails: bool) -> None:
    if isinstance(gpu, Noting):
        gpu.fails = fails


BUSY: dict[str, dict[str, Any]] = {
    "staged": {},
    "padded": {"batch_sizes": (3, 4)},
    "direct": {"direct_dma": True},
    "graphs": {"batch_sizes": (2, 4), "cuda_graphs": True},
    "direct graphs": {"batch_sizes": (2, 4), "cuda_graphs": True, "direct_dma": True},
}
SCHEDULES: list[tuple[Policy, int]] = [("lazy", 0), *(("random", seed) for seed in range(12))]

# Waits that tell the waiter something, without which nothing can go wrong all the same.
NOBODY = "nobody is given what such a batch reads too early or too late"
ZEROS = "nobody is given what the function makes of zeros, and calls come later"
REDUNDANT = {
    "launch copying of a batch that fails": NOBODY,
    "launch landing of a batch that fails": NOBODY,
    "complete of a batch that fails": NOBODY,
    "buffer": "the wait for the next buffer covers it; see the first batches for the last one",
    "warm_up copying": ZEROS,
    "warm_up fetching": ZEROS,
    "warm_up": ZEROS,
    "warm_up capture": "torch.cuda.graph waits for the device itself",
}


def caught(options: dict[str, Any], **planted: Any) -> bool:
    """Whether a planted bug shows under any schedule."""
    for schedule in SCHEDULES:
        try:
            _, wrong = busy(FakeGpu(*schedule, **planted), **options)
        except AssertionError:
            return True
        if wrong:
            return True
    return False


@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
def test_nothing_is_wrong_unless_a_bug_is_planted(options: dict[str, Any], quiet: None) -> None:
    assert not caught(options)
    rig, _ = busy(FakeGpu(), **options)
    assert len(rig.outcomes) > 30


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "shmbatch")


@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
def test_a_wait_of_a_stream_that_is_missing_shows(options: dict[str, Any], quiet: None) -> None:
    gpu = Noting()
    busy(gpu, **options)
    assert {"launch copying", "launch fetching"} <= set(gpu.of_streams)
    missed = [
        part
        for number, part in enumerate(gpu.of_streams, 1)
        if part and not caught(options, ignore_wait=number)
    ]
    assert set(missed) <= REDUNDANT.keys()


@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
def test_a_wait_of_the_host_that_is_missing_shows(options: dict[str, Any], quiet: None) -> None:
    gpu = Noting()
    busy(gpu, **options)
    needed = {"complete", "forget"} if "direct_dma" in options else {"complete"}
    assert needed <= set(gpu.of_host)
    missed = [
        part
        for number, part in enumerate(gpu.of_host, 1)
        if part and not caught(options, ignore_synchronize=number)
    ]
    assert set(missed) <= REDUNDANT.keys()


# ---- copies and functions overlap ----


def test_a_batch_is_started_before_the_host_waits_for_the_one_before() -> None:
    gpu = FakeGpu()
    rig = Rig(gpu, slots=12)
    gpu.calls.clear()
    rig.submit(rig.clients[0], 12)
    assert [rig.launch() for _ in range(3)] == [4, 4, 0], "two are in flight"
    rig.complete()

    batch = [("h2d", "H2D"), ("compute", "mul"), ("d2h", "D2H")]
    assert gpu.calls == [*batch, *batch, ("host", "synchronize d2h")]
    rig.finish()
    assert rig.wrong() == {}


def test_copies_of_a_batch_overtake_the_function_of_the_batch_before() -> None:
    """They depend on nothing of it, so the device may do both at once."""
    orders = set()
    for seed in range(30):
        gpu = FakeGpu("random", seed)
        rig = Rig(gpu, slots=8)
        gpu.log.clear()
        rig.submit(rig.clients[0], 8)
        rig.launch()
        rig.launch()
        rig.finish()
        assert rig.wrong() == {}
        orders.add(tuple(name for name, _ in gpu.log))
    assert any(order[:2] == ("h2d", "h2d") for order in orders)


@each_policy
def test_many_batches_use_three_sets_of_pinned_memory_in_turn(policy: Policy) -> None:
    gpu = FakeGpu(policy)
    rig = Rig(gpu, producers=1, slots=12)
    assert gpu.pins == 2 * 3  # inputs and results
    allocations = gpu.allocations
    for _ in range(7):
        rig.submit(rig.clients[0], 12)
        while rig.launch():
            pass
        rig.complete()
    rig.finish()
    assert (rig.wrong(), rig.numbers) == ({}, 12 + 6 * 4)
    assert gpu.pins == 6
    batches = sum(name == "H2D" for _, name in gpu.log)
    assert gpu.allocations - allocations == batches == 9  # what the function returns


# ---- what a function is given, and may return ----


def test_a_batch_is_padded_with_its_last_input_up_to_an_allowed_size() -> None:
    sizes: list[int] = []

    def summed(rows: Any) -> Any:
        sizes.append(len(rows))
        return rows + rows.sum(0)

    rig = Rig(FakeGpu(), summed, batch_sizes=(2, 4, 7), size=7, slots=7, producers=1)
    sizes.clear()
    expected: dict[int, list[int]] = {}
    for count, size in ((1, 2), (2, 2), (3, 4), (5, 7), (7, 7)):
        first = rig.numbers + 1
        rig.submit(rig.clients[0], count)
        numbers = range(first, rig.numbers + 1)
        total = sum(numbers) + numbers[-1] * (size - count)
        expected |= {number: [number + total, -number - total] for number in numbers}
        rig.launch()
        rig.complete()
    rig.finish()
    assert sizes == [2, 2, 4, 7, 7]
    assert rig.wrong(expected.__getitem__) == {}


def test_a_padded_batch_must_have_a_result_for_each_row_of_padding() -> None:
    rig = Rig(FakeGpu(), lambda rows: (rows * 2)[:3], batch_sizes=(4,))
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert [str(each) for each in rig.outcomes.values()] == [
        "'app.f' returned a Tensor of length 3 for 4 inputs; "
        "it must return a list or stack of length 4, one array each"
    ] * 3
    assert {type(each) for each in rig.outcomes.values()} == {BatchResultError}


@each_policy
@pytest.mark.parametrize(
    "function",
    [
        lambda rows: [2 * each for each in rows],
        lambda rows: [(2 * each).cpu() for each in rows],
        lambda rows: (2 * rows).cpu(),
        lambda rows: (rows.reshape(-1) * 2).reshape(len(rows), 2),
        lambda rows: torch.cat([rows, rows])[: len(rows)] + rows,
        lambda rows: rows.add_(rows),  # what it was given, changed
    ],
)
def test_results_may_be_anywhere(function: Callable[..., Any], policy: Policy) -> None:
    for sizes in (None, (3, 4)):
        for seed in range(5):
            rig = Rig(FakeGpu(policy, seed), function, batch_sizes=sizes, slots=3)
            for _ in range(4):
                for client in rig.clients:
                    rig.submit(client, 3)
                rig.launch()
            rig.finish()
            assert rig.wrong() == {}


def test_a_result_may_be_what_the_function_was_given() -> None:
    for seed in range(20):
        rig = Rig(FakeGpu("random", seed), lambda rows: rows)
        for _ in range(5):
            rig.submit(rig.clients[0], 3)
            rig.launch()
        rig.finish()
        assert rig.wrong(lambda number: [number, -number]) == {}


def test_an_exception_among_the_results_is_one_callers() -> None:
    rig = Rig(FakeGpu(), lambda rows: [rows[0] * 2, ValueError("odd"), rows[2] * 2])
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert list(rig.wrong()) == [2]
    assert isinstance(rig.outcomes[2], ValueError)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "complex64"])
@pytest.mark.parametrize("direct_dma", [False, True])
def test_any_dtype_comes_and_goes(dtype: str, direct_dma: bool) -> None:
    def vector(number: int) -> Any:
        return torch.tensor([number, -number]).to(getattr(torch, dtype))

    rig = Rig(FakeGpu(), contract=vectors(dtype=dtype), direct_dma=direct_dma)
    with mock.patch(f"{__name__}.row", vector):
        rig.submit(rig.clients[0], 4)
        rig.submit(rig.clients[1], 2)
    rig.finish()
    raw = rig.contract.result.wire_dtype
    for number, outcome in rig.outcomes.items():
        seen = torch.from_numpy(np.frombuffer(outcome, raw).copy())
        assert torch.equal(seen.view(getattr(torch, dtype)), vector(number) * 2)
    assert len(rig.outcomes) == 6


def test_columns_of_all_kinds_come_together() -> None:
    contract = vectors("int", array("float64", 1), array("uint8", 3, library="torch"))
    seen: list[Any] = []

    def function(numbers: Any, arrays: Any, bytes_: Any, rows: Any) -> Any:
        seen.append((numbers, arrays.copy(), bytes_.cpu()))
        return rows * 2

    def leading(number: int) -> tuple[Any, ...]:
        return number, np.array([number / 2]), np.full(3, number, np.uint8)

    for direct_dma in (False, True):
        rig = Rig(
            *(FakeGpu(), function),
            contract=contract,
            leading=leading,
            batch_sizes=(4,),
            direct_dma=direct_dma,
        )
        rig.submit(rig.clients[0], 3)
        seen.clear()
        rig.finish()
        assert rig.wrong() == {}
        ((numbers, arrays, bytes_),) = seen
        assert numbers == [1, 2, 3, 3]
        assert arrays.tolist() == [[0.5], [1], [1.5], [1.5]]
        assert bytes_.tolist() == [[number] * 3 for number in numbers]


def ragged(padded: bool) -> Column:
    return Column("x0", "ragged", "torch", "float32", (-3,), ("n",), padded)


@each_policy
def test_values_of_variable_length_come_as_a_list_on_the_device(policy: Policy) -> None:
    vector = array("float32", 1, library="torch")
    contract = Signature((ragged(False),), vector)

    def summed(rows: list[Any]) -> Any:
        return [each.sum(0).reshape(1) for each in rows]

    for seed in range(5):
        rig = Rig(FakeGpu(policy, seed), summed, contract=contract, batch_sizes=(4,))
        with mock.patch(f"{__name__}.row", lambda number: torch.ones(number % 4)):
            for _ in range(4):
                rig.submit(rig.clients[0], 3)
                rig.launch()
        rig.finish()
        assert rig.wrong(lambda number: [number % 4]) == {}


@each_policy
def test_values_of_variable_length_come_padded_with_their_lengths(policy: Policy) -> None:
    vector = array("float32", 1, library="torch")
    contract = Signature((ragged(True),), vector)

    def summed(padded: Any) -> Any:
        rows, lengths = padded
        return (rows.sum(1) * 10 + lengths).reshape(len(rows), 1)

    for seed in range(5):
        rig = Rig(FakeGpu(policy, seed), summed, contract=contract, batch_sizes=(4,))
        with mock.patch(f"{__name__}.row", lambda number: torch.ones(number % 4)):
            for _ in range(4):
                rig.submit(rig.clients[0], 3)
                rig.launch()
        rig.finish()
        assert rig.wrong(lambda number: [number % 4 * 11]) == {}


# ---- graphs ----


@each_policy
def test_what_is_captured_is_not_called_again(policy: Policy) -> None:
    sizes: list[int] = []

    def function(rows: Any) -> Any:
        sizes.append(len(rows))
        return rows * 2

    rig = Rig(FakeGpu(policy), function, batch_sizes=(2, 4), cuda_graphs=True)
    assert set(sizes) == {2, 4}
    sizes.clear()
    for _ in range(4):
        rig.submit(rig.clients[0], 3)
        rig.submit(rig.clients[1], 2)
        rig.launch()
    rig.finish()
    assert sizes == []
    assert rig.wrong() == {}


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (lambda rows: rows.sum(1).sum(0).item(), "AcceleratorError: CUDA error: operation not"),
        (lambda rows: rows.cpu(), "AcceleratorError: CUDA error: operation not permitted when"),
        (lambda rows: torch.zeros(2).copy_(rows[0]), "AcceleratorError: CUDA error: operation"),
    ],
)
def test_a_function_that_cannot_be_captured_runs_as_it_is(
    refused: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def function(rows: Any) -> Any:
        refused(rows)
        return rows * 2

    rig = Rig(FakeGpu(), function, batch_sizes=(2, 4), cuda_graphs=True)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"app.f runs without CUDA graphs: {reason}")
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert rig.wrong() == {}


def test_a_captured_function_must_return_a_tensor_of_the_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(FakeGpu(), lambda rows: [2 * each for each in rows], batch_sizes=(4,))
    caplog.clear()
    rig = Rig(FakeGpu(), lambda rows: list(rows * 2), batch_sizes=(4,), cuda_graphs=True)
    assert [record.getMessage() for record in caplog.records] == [
        "app.f runs without CUDA graphs: TypeError: it returned a list, not a tensor on the device"
    ]
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert rig.wrong() == {}


# ---- straight from the slots ----


def test_neighbouring_slots_are_one_copy_and_nothing_is_gathered() -> None:
    gpu = FakeGpu()
    rig = Rig(gpu, size=8, slots=8, direct_dma=True)
    assert sorted(gpu.registered.values()) == [rig.served.layout.nbytes] * 2
    rig.submit(rig.clients[0], 3)
    rig.submit(rig.clients[1], 2)
    gpu.log.clear()
    rig.finish()
    assert rig.wrong() == {}
    # Producers take turns, so rows of one stand apart.
    assert 2 <= gpu.log.count(("h2d", "H2D")) <= 5


@each_policy
def test_slots_are_not_given_back_while_they_are_copied(policy: Policy) -> None:
    """A producer that calls again at once would overwrite them."""
    for seed in range(20):
        rig = Rig(FakeGpu(policy, seed), producers=1, slots=2, size=2, direct_dma=True)
        for _ in range(8):
            rig.submit(rig.clients[0], 2)
            rig.launch()
            rig.complete()
        rig.finish()
        assert (rig.wrong(), rig.numbers) == ({}, 16)


@each_policy
def test_a_producer_may_die_while_its_slots_are_copied(policy: Policy) -> None:
    for seed in range(10):
        gpu = FakeGpu(policy, seed)
        rig = Rig(gpu, size=3, slots=3, direct_dma=True)
        for _ in range(2):
            for client in rig.clients:
                rig.submit(client, 3)
            rig.launch()
        rig.leave(rig.clients[0])
        assert len(gpu.registered) == 1
        rig.attach()
        rig.submit(rig.clients[2], 3)
        rig.finish()
        assert rig.wrong() == {}


def test_where_segments_are_not_registered_all_rows_are_gathered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(FakeGpu(refuses=True), direct_dma=True)
    assert [record.getMessage() for record in caplog.records] == [
        "app.f gathers all rows: CUDA does not register the "
        f"{rig.served.layout.nbytes} bytes of a segment"
    ]
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert rig.wrong() == {}


def test_a_batch_with_one_producer_that_is_not_registered_is_gathered() -> None:
    gpu = FakeGpu()
    rig = Rig(gpu, size=8, slots=4, direct_dma=True)
    gpu.refuses = True
    rig.attach()
    gpu.log.clear()
    for number in (2, 0, 1):
        rig.submit(rig.clients[number], 2)
    rig.launch()
    rig.submit(rig.clients[0], 2)
    rig.finish()
    assert gpu.log.count(("h2d", "H2D")) == 2  # a gathered batch, and a run of two slots
    assert rig.wrong() == {}


SIZES_NBYTES = (1 << 14, 1 << 15)


@pytest.mark.parametrize(
    ("direct_ns", "least_nbytes"),
    [
        ((50, 50), 1 << 14),
        ((150, 50), 1 << 15),
        ((50, 150), direct_module.NEVER),  # who is slower with the largest rows is slow
        ((150, 150), direct_module.NEVER),
    ],
)
def test_rows_are_copied_directly_from_the_size_on_from_which_that_is_faster(
    direct_ns: tuple[int, ...], least_nbytes: int
) -> None:
    gpu = FakeGpu("random")
    gathered_ns = 100
    rounds = direct_module._ROUNDS + 1
    # As they are measured: of each size all the gathered rounds, then all the direct ones.
    durations = (
        ns for each in direct_ns for which in (gathered_ns, each) for ns in [which] * rounds
    )
    times_ns = [at_ns for ns in durations for at_ns in (1000, 1000 + ns)]
    with (
        mock.patch.object(direct_module, "_ROWS_NBYTES", SIZES_NBYTES),
        mock.patch.object(direct_module, "now_ns", side_effect=times_ns) as clock,
    ):
        assert direct_module.measured(gpu, gpu.Stream("h2d")) == least_nbytes
    assert clock.call_count == len(times_ns)
    assert gpu.registered == {}
    gpu.check()


def test_where_nothing_is_registered_nothing_is_copied_directly() -> None:
    gpu = FakeGpu(refuses=True)
    with mock.patch.object(direct_module, "_ROWS_NBYTES", SIZES_NBYTES):
        assert direct_module.measured(gpu, gpu.Stream("h2d")) == direct_module.NEVER
    assert gpu.calls == []


def test_what_is_worth_it_is_measured_once_and_for_large_rows_only() -> None:
    contract = vectors(*(array("uint8", nbytes, library="torch") for nbytes in SIZES_NBYTES))
    measured = mock.Mock(return_value=1 << 15)
    with mock.patch.object(cuda_module, "measured", measured):
        Rig(FakeGpu(), direct_dma="auto").finish()
        assert measured.call_count == 0
        gpu = FakeGpu()
        rig = Rig(
            *(gpu, lambda small, large, rows: rows * 2),
            contract=contract,
            leading=lambda number: tuple(np.zeros(nbytes, np.uint8) for nbytes in SIZES_NBYTES),
            direct_dma="auto",
        )
        for _ in range(2):
            direct = rig.cuda.direct(contract, rig.served.layout, "auto", "app.g")
            assert direct is not None
            assert direct.columns == {1}
    assert measured.call_count == 1
    assert len(gpu.registered) == 2
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert rig.wrong() == {}


# ---- faults ----


def test_a_function_that_raises_fails_its_batch_and_no_other() -> None:
    for seed in range(10):
        fails = iter([False, True, True, False, False])

        def function(rows: Any, fails: Any = fails) -> Any:
            result = rows * 2
            if next(fails):
                raise Broken("as planned")
            return result

        rig = Rig(FakeGpu("random", seed), function)
        for _ in range(5):
            rig.submit(rig.clients[0], 2)
            rig.launch()
            if len(rig.served.flights) == 2:
                rig.complete()
        rig.finish()
        failed = {number: str(outcome) for number, outcome in rig.wrong().items()}
        assert failed == dict.fromkeys((3, 4, 5, 6), "as planned")
        assert len(rig.outcomes) == 10


@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
def test_a_device_without_room_for_a_function_is_refused_by_name(
    options: dict[str, Any], quiet: None
) -> None:
    gpu = FakeGpu()
    Rig(gpu, **options).finish()
    for number in range(1, 7):
        with pytest.raises(ConfigError, match=r"no room for '(x0|result)', float32 of .* cuda:0"):
            Rig(FakeGpu(no_pinned_at=number), **options)
    for number in range(1, 4):
        with pytest.raises(ConfigError, match=r"no room for 'x0'.*memory.*lower max_batch_size"):
            Rig(FakeGpu(no_memory_at=number), **options)


def test_graphs_without_room_are_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    gpu = FakeGpu(no_memory_at=4)  # after the buffers of three sets
    rig = Rig(gpu, batch_sizes=(4,), cuda_graphs=True)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("app.f runs without CUDA graphs: OutOfMemoryError: CUDA out of memory.")
    rig.submit(rig.clients[0], 3)
    rig.finish()
    assert rig.wrong() == {}


def test_a_function_without_room_fails_its_batch_and_no_other() -> None:
    gpu = FakeGpu(no_memory_at=3 + 2)
    rig = Rig(gpu)
    for _ in range(3):
        rig.submit(rig.clients[0], 4)
        rig.launch()
        rig.complete()
    rig.finish()
    assert sorted(rig.wrong()) == [5, 6, 7, 8]
    assert type(rig.outcomes[5]).__name__ == "OutOfMemoryError"


@each_policy
@pytest.mark.parametrize("options", BUSY.values(), ids=BUSY)
def test_a_device_that_is_lost_ends_the_executor_whenever_it_happens(
    options: dict[str, Any], policy: Policy, quiet: None
) -> None:
    whole = FakeGpu(policy)
    busy(whole, **options)
    buffers = 3  # are filled with zeros, without which there is no executor
    for number in range(buffers + 1, whole.operations + 1):
        gpu = FakeGpu(policy, illegal_at=number)
        with pytest.raises(DeviceLost, match=r"illegal memory access .* in app\.f"):
            busy(gpu, **options)


# ---- the loop itself ----


def in_the_loop(
    gpu: FakeGpu,
    plan: Plan,
    body: Callable[..., Any] = doubled,
    *,
    slow_ms: float | None = None,
    beside: Sequence[Plan] = (),
    **options: Any,
) -> World:
    """Return a world with a fake GPU; where *slow_ms* is given, the loop need not wait for it."""

    def watch(landing: Any) -> None:
        def land() -> None:
            landing.wait_elsewhere()
            world.wake()

        assert slow_ms is not None
        world.at(world.now_ns + round(slow_ms * worlds.MS), land)

    definition = partial(Definition, **options)
    with mock.patch.object(worlds, "Definition", definition):
        world = World(
            *(plan, *beside),
            device=Cuda(gpu),
            signature=vectors(),
            body=body,
            watch=None if slow_ms is None else watch,
        )
    world.strict = False
    return world


@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 1), st.integers(1, 4)), max_size=12
    ),
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 1000),
    slow_ms=st.sampled_from([None, 0.5, 3]),
    sizes=st.sampled_from([None, (1, 4)]),
)
@settings(max_examples=150, deadline=None)
def test_through_the_loop_every_call_gets_its_own_result(
    arrivals: list[tuple[int, int, int]],
    policy: Policy,
    seed: int,
    slow_ms: float | None,
    sizes: Any,
) -> None:
    gpu = FakeGpu(policy, seed)
    plan = Plan(max_batch_size=4, wait_ns=2 * worlds.MS, slots=8, producers=2)
    world = in_the_loop(gpu, plan, slow_ms=slow_ms, batch_sizes=sizes)
    calls: list[tuple[int, Call]] = []

    def submit(producer: Producer) -> None:
        producer.collect()
        number = len(calls) + 1
        call = producer.submit(values=(row(number).numpy(),))
        if call is not None:
            calls.append((number, call))

    for at_ms, which, count in arrivals:
        for _ in range(count):
            world.at(START_NS + at_ms * worlds.MS, partial(submit, world.producers[which]))
    for producer in world.producers:
        producer.waiting.clear()
    world.run()
    for producer in world.producers:
        producer.collect()
    assert [call.outcome.tolist() for _, call in calls] == [[2 * n, -2 * n] for n, _ in calls]
    gpu.check()


@each_policy
def test_async_functions_run_on_the_device_too(policy: Policy) -> None:
    async def body(rows: Any) -> Any:
        first = rows * 2
        over = world.events.create_future()  # type: ignore[union-attr]
        world.at(world.now_ns + worlds.MS, lambda: over.set_result(None))
        await over
        return first

    gpu = FakeGpu(policy)
    plan = Plan(max_batch_size=2, wait_ns=0, slots=4, is_async=True)
    world = in_the_loop(gpu, plan, body)
    calls: list[Call] = []

    def submit() -> None:
        call = world.producers[0].submit(values=(row(len(calls) + 1).numpy(),))
        assert call is not None
        calls.append(call)

    for at_ms in (0, 0, 0, 5):
        world.at(START_NS + at_ms * worlds.MS, submit)
    world.producers[0].waiting.clear()
    world.run()
    assert [call.outcome.tolist() for call in calls] == [[2 * n, -2 * n] for n in (1, 2, 3, 4)]
    gpu.check()


def test_scalars_of_a_list_are_not_read_before_they_have_landed() -> None:
    gpu = FakeGpu("lazy")
    cuda = Cuda(gpu)
    results = cuda.results(array("float32", library="torch"), 4)
    value = gpu.zeros("float32", (2,)) + 7

    with cuda.fetching():
        host = results.fetched([value[0], value[1]], 2)
    cuda.landing(value).wait()

    assert [float(each) for each in host] == [7, 7]
