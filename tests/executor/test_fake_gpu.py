"""The fake GPU is as late as it says, and each hazard it is there for shows."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.executor.fake_gpu import CAPTURING, ILLEGAL, FakeGpu, Policy
from tests.executor.fake_gpu_memory import is_poisoned, poisoned

POLICIES: tuple[Policy, ...] = ("lazy", "random", "eager")
SEEDS = 40  # enough for every hazard here to show under random

each_policy = pytest.mark.parametrize("policy", POLICIES)


class Batch:
    """Three streams that double some rows, each with the waits that it needs."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.h2d, self.compute, self.d2h = (gpu.Stream(name) for name in ("h2d", "compute", "d2h"))
        self.room, self.host = gpu.pinned("float32", (4,))
        self.into, self.result = gpu.pinned("float32", (4,))
        self.rows = gpu.zeros("float32", (4,))
        gpu.synchronize()

    def start(self, value: float) -> Any:
        gpu = self.gpu
        copied, computed, landed = gpu.Event(), gpu.Event(), gpu.Event()
        self.room[:] = value
        with gpu.stream(self.h2d):
            self.rows.copy_(self.host, non_blocking=True)
        copied.record(self.h2d)
        self.compute.wait_event(copied)
        with gpu.stream(self.compute):
            doubled = self.rows * 2
        computed.record(self.compute)
        self.d2h.wait_event(computed)
        with gpu.stream(self.d2h):
            self.result.copy_(doubled, non_blocking=True)
        landed.record(self.d2h)
        return landed, doubled


# ---- how late things are ----


@each_policy
def test_what_waits_for_what_it_needs_is_right(policy: Policy) -> None:
    for seed in range(SEEDS):
        batch = Batch(FakeGpu(policy, seed))
        for value in (1.0, 2.0, 3.0):
            landed, _ = batch.start(value)
            landed.synchronize()
            assert batch.into.tolist() == [2 * value] * 4
        batch.gpu.check()


def test_nothing_runs_before_somebody_waits() -> None:
    gpu = FakeGpu()
    batch = Batch(gpu)
    gpu.log.clear()

    landed, _ = batch.start(1)

    assert gpu.log == []
    assert is_poisoned(batch.result)
    landed.synchronize()
    assert gpu.log == [("h2d", "H2D"), ("compute", "mul"), ("d2h", "D2H")]


def test_lazily_nothing_runs_but_what_is_waited_for() -> None:
    gpu = FakeGpu("lazy")
    batch = Batch(gpu)
    landed, _ = batch.start(1)
    with gpu.stream(batch.h2d):
        batch.rows.fill_(7)
    gpu.log.clear()

    landed.synchronize()

    assert ("h2d", "fill_") not in gpu.log
    gpu.synchronize()
    assert gpu.log[-1] == ("h2d", "fill_")


def test_at_random_other_streams_may_overtake() -> None:
    orders = set()
    for seed in range(SEEDS):
        gpu = FakeGpu("random", seed)
        streams = [gpu.Stream(name) for name in "abc"]
        tensor = gpu.zeros("int64", (1,))
        gpu.log.clear()
        for number, stream in enumerate(streams * 2):
            with gpu.stream(stream):
                tensor.fill_(number)
        gpu.synchronize()
        names = [name for name, _ in gpu.log if name != "default"]
        orders.add("".join(names))
    assert len(orders) > 10


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_hypothesis_can_choose_what_runs(chance: Any) -> None:
    batch = Batch(FakeGpu("random", chance))
    landed, _ = batch.start(4)
    landed.synchronize()
    assert batch.into.tolist() == [8] * 4


def test_eagerly_everything_has_run() -> None:
    batch = Batch(FakeGpu("eager"))
    batch.start(1)
    assert batch.into.tolist() == [2] * 4


def test_asking_an_event_again_and_again_lets_it_happen() -> None:
    for policy in POLICIES:
        landed, _ = Batch(FakeGpu(policy)).start(1)
        answers = [landed.query() for _ in range(20)]
        assert answers[-1]
        assert answers[0] is (policy == "eager")


def test_an_event_is_waited_for_as_it_was_recorded_last() -> None:
    gpu = FakeGpu("lazy")
    a, b = gpu.Stream("a"), gpu.Stream("b")
    event = gpu.Event()
    event.synchronize()  # never recorded: at once
    b.wait_event(event)
    tensor = gpu.zeros("int64", (1,))
    gpu.synchronize()
    with gpu.stream(a):
        tensor.fill_(1)
    event.record(a)
    b.wait_event(event)
    with gpu.stream(a):
        tensor.fill_(2)
    event.record(a)  # b goes on waiting for the first
    with gpu.stream(b):
        copy = tensor.clone()
    assert b.clock.knows(a.queue[0])
    b.synchronize()
    assert copy.data.item() == 1


@each_policy
def test_who_waits_learns_what_happened_before_and_nothing_else(policy: Policy) -> None:
    gpu = FakeGpu(policy)
    a, b, c = (gpu.Stream(name) for name in "abc")
    tensor = gpu.zeros("int64", (1,))
    gpu.synchronize()
    assert not gpu.is_news(None)
    with gpu.stream(a):
        tensor.fill_(1)
    of_a = a.record_event()
    b.wait_event(of_a)
    of_b = b.record_event()
    with gpu.stream(c):
        tensor.fill_(2)
    of_c = c.record_event()

    assert not gpu.is_news(of_a, b)
    assert gpu.is_news(of_b, c)
    assert gpu.is_news(of_c, b)
    assert gpu.is_news(of_a)
    of_b.synchronize()
    assert gpu.calls[-1] == ("host", "synchronize b")
    assert not gpu.is_news(of_a)
    assert gpu.is_news(of_c)
    assert gpu.is_news(None)


# ---- hazards ----


def shows(hazard: Callable[[FakeGpu], Any], right: Any, *policies: Policy) -> None:
    """Check that a bug makes a difference under each of some policies, and none under others."""
    for policy in POLICIES:
        seen = [hazard(FakeGpu(policy, seed)) for seed in range(SEEDS)]
        assert any(each != right for each in seen) is (policy in policies), policy


def test_a_host_buffer_that_is_overwritten_before_the_copy_shows() -> None:
    def hazard(gpu: FakeGpu) -> Any:
        batch = Batch(gpu)
        landed, _ = batch.start(1)
        batch.room[:] = 5
        landed.synchronize()
        return batch.into.tolist()

    shows(hazard, [2] * 4, "lazy", "random")


def test_a_host_buffer_that_is_filled_after_the_copy_was_started_shows() -> None:
    def hazard(gpu: FakeGpu) -> Any:
        batch = Batch(gpu)
        with gpu.stream(batch.h2d):
            batch.rows.copy_(batch.host, non_blocking=True)
        batch.room[:] = 5
        gpu.synchronize()
        return batch.rows.data.tolist()

    shows(hazard, [5] * 4, "eager")


def test_results_that_are_read_before_they_are_there_show() -> None:
    def hazard(gpu: FakeGpu) -> Any:
        batch = Batch(gpu)
        batch.start(1)
        return batch.into.tolist()

    shows(hazard, [2] * 4, "lazy", "random")


def test_results_of_the_batch_before_are_not_there_any_more() -> None:
    batch = Batch(FakeGpu())
    landed, kept = batch.start(1)
    landed.synchronize()
    assert (batch.into.tolist(), len(kept)) == ([2] * 4, 4)
    batch.start(1)
    assert is_poisoned(batch.result)


@pytest.mark.parametrize("number", [1, 2])
def test_each_wait_between_streams_that_is_missing_shows(number: int) -> None:
    def hazard(gpu: FakeGpu) -> Any:
        gpu.ignore_wait = number
        batch = Batch(gpu)
        landed, _ = batch.start(1)
        landed.synchronize()
        return batch.into.tolist()

    shows(hazard, [2] * 4, "lazy", "random")


@pytest.mark.parametrize("number", [2, 3])
def test_each_wait_of_the_host_that_is_missing_shows(number: int) -> None:
    def hazard(gpu: FakeGpu) -> Any:
        gpu.ignore_synchronize = number
        batch = Batch(gpu)
        seen = []
        for value in (1, 2):
            landed, _ = batch.start(value)
            landed.synchronize()
            seen += batch.into.tolist()
        return seen

    shows(hazard, [2] * 4 + [4] * 4, "lazy", "random")


def test_memory_that_is_filled_with_zeros_after_it_was_written_shows() -> None:
    """torch's zeros are queued like anything else."""

    def hazard(gpu: FakeGpu) -> Any:
        h2d = gpu.Stream("h2d")
        _, host = gpu.pinned("int64", (2,))
        host.fill_(3)
        rows = gpu.zeros("int64", (2,))
        with gpu.stream(h2d):
            rows.copy_(host, non_blocking=True)
        gpu.synchronize()
        return rows.data.tolist()

    shows(hazard, [3, 3], "random")


def freed_early(gpu: FakeGpu, meanwhile: Callable[[Batch, Any], None]) -> Any:
    batch = Batch(gpu)
    landed, doubled = batch.start(1)
    meanwhile(batch, doubled)
    del doubled
    landed.synchronize()
    return batch.into.tolist()


def test_memory_that_is_freed_while_another_stream_reads_it_shows() -> None:
    shows(lambda gpu: freed_early(gpu, lambda batch, doubled: None), [2] * 4, "lazy", "random")


def test_memory_that_is_freed_is_kept_for_recorded_streams() -> None:
    shows(
        lambda gpu: freed_early(gpu, lambda batch, doubled: doubled.record_stream(batch.d2h)),
        [2] * 4,
    )


def test_memory_that_is_freed_when_its_stream_knows_better_is_safe() -> None:
    shows(
        lambda gpu: freed_early(gpu, lambda batch, doubled: batch.compute.wait_stream(batch.d2h)),
        [2] * 4,
    )


def test_memory_that_is_freed_while_another_stream_computes_with_it_shows() -> None:
    def hazard(gpu: FakeGpu) -> Any:
        other = gpu.Stream("other")
        ones = gpu.zeros("int64", (2,)) + 1
        other.wait_stream(gpu.current_stream())
        with gpu.stream(other):
            sums = torch.cat([ones, ones])
        del ones
        other.synchronize()
        return sums.data.tolist()

    shows(hazard, [1] * 4, "lazy", "random")


def test_memory_that_is_freed_is_good_for_its_own_stream() -> None:
    gpu = FakeGpu()
    one = gpu.zeros("int64", (2,)) + 1
    three = (one + 1) + 1
    del one
    assert three.tolist() == [3, 3]


def test_a_view_keeps_its_memory() -> None:
    def hazard(gpu: FakeGpu) -> Any:
        batch = Batch(gpu)
        landed, doubled = batch.start(1)
        view = doubled.reshape(2, 2)[1:].detach()
        del doubled
        landed.synchronize()
        return batch.into.tolist() and view.data.tolist()

    shows(hazard, [[2, 2]])


def test_a_write_to_memory_that_was_freed_is_a_violation() -> None:
    gpu = FakeGpu()
    h2d = gpu.Stream("h2d")
    _, host = gpu.pinned("int64", (2,))
    rows = gpu.empty("int64", (2,))
    with gpu.stream(h2d):
        rows.copy_(host, non_blocking=True)
    del rows
    with pytest.raises(AssertionError, match="H2D on h2d writes to memory that was freed"):
        gpu.check()


# ---- copies that do not wait for anybody ----


def test_pageable_memory_is_copied_at_once() -> None:
    gpu = FakeGpu()
    array = np.array([1, 2])
    rows = gpu.empty("int64", (2,))
    rows.copy_(gpu.tensor(array, "int64"), non_blocking=True)
    array[:] = 0
    host = torch.zeros(2, dtype=torch.int64)
    assert host.copy_(rows, non_blocking=True).tolist() == [1, 2]
    assert gpu.to_device(host).data.tolist() == [1, 2]


def test_pinned_memory_is_copied_at_once_unless_told() -> None:
    gpu = FakeGpu()
    array, host = gpu.pinned("float32", (2, 2))
    rows = gpu.empty("float32", (2,))
    rows.copy_(host[1], non_blocking=True)
    assert is_poisoned(rows.data)
    rows.copy_(host[1])
    assert rows.data.tolist() == [0, 0]
    host[0].copy_(rows + 1)
    assert array.tolist() == [[1, 1], [0, 0]]


@each_policy
def test_reading_waits_for_the_current_stream_and_for_no_other(policy: Policy) -> None:
    gpu = FakeGpu(policy)
    other = gpu.Stream("other")
    five = gpu.zeros("int64", (1,)) + 5
    assert (five.item(), int(five), float(five), bool(five > 4)) == (5, 5, 5.0, True)
    assert five.cpu().tolist() == five.tolist() == [5]
    with gpu.stream(other):
        late = five + 1
    assert (late.item() == 6) is (policy == "eager")
    with gpu.stream(other):
        assert late.item() == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool", "complex64"])
def test_any_dtype_is_computed_with_as_torch_does(dtype: str) -> None:
    gpu = FakeGpu()
    rows = gpu.zeros(dtype, (3, 2))
    sums = (rows + rows)[1:].sum(-1)
    plain = torch.zeros((3, 2), dtype=getattr(torch, dtype))
    assert is_poisoned(sums.data)
    assert sums.dtype == (plain + plain).sum(-1).dtype
    assert sums.cpu().tolist() == [0, 0]
    assert is_poisoned(poisoned((2,), rows.dtype))
    assert not is_poisoned(rows.cpu())


def test_functions_of_torch_take_tensors_of_the_device() -> None:
    gpu = FakeGpu()
    ones = gpu.zeros("float32", (2, 3)) + 1
    weight = gpu.to_device(torch.ones(4, 3))
    assert (torch.nn.functional.linear(ones, weight) @ weight).tolist() == [[12.0] * 3] * 2
    assert isinstance(ones, torch.Tensor)
    assert torch.cat([ones, 2 * ones]).sum(1).tolist() == [3, 3, 6, 6]
    assert ones.mul_(3).tolist() == [[3.0] * 3] * 2
    assert (1 - ones).tolist() == [[-2.0] * 3] * 2
    with pytest.raises(RuntimeError, match="same device"):
        ones + torch.ones(3)
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        np.asarray(ones)


def test_shapes_that_do_not_fit_are_refused() -> None:
    gpu = FakeGpu()
    with pytest.raises(RuntimeError, match="must match"):
        gpu.zeros("int64", (3,)).copy_(torch.zeros(2))


# ---- registered memory ----


@pytest.fixture
def segment() -> Any:
    return np.frombuffer(mmap.mmap(-1, 4 * mmap.PAGESIZE), np.uint8)


def address_of(array: Any) -> int:
    return int(array.ctypes.data)


def test_registered_memory_is_as_good_as_pinned(segment: Any) -> None:
    gpu = FakeGpu()
    slots = gpu.tensor(segment[:16], "uint8")
    rows = gpu.zeros("uint8", (16,))
    assert gpu.register(address_of(segment), segment.nbytes)
    gpu.copy_runs([(rows[:8], slots[8:]), (rows[8:], slots[:8])], gpu.Stream("h2d"))
    segment[:8] = 1  # read late: this is what is copied
    gpu.synchronize()
    assert rows.data.tolist() == [0] * 8 + [1] * 8

    gpu.unregister(address_of(segment))
    gpu.copy_runs([(rows, slots)], gpu.current_stream())
    assert rows.data.tolist() == [1] * 8 + [0] * 8
    gpu.check()


def test_memory_that_is_only_partly_registered_is_refused(segment: Any) -> None:
    gpu = FakeGpu()
    gpu.register(address_of(segment), mmap.PAGESIZE)
    rows = gpu.empty("uint8", (2 * mmap.PAGESIZE,))
    with pytest.raises(RuntimeError, match="invalid argument"):
        rows.copy_(gpu.tensor(segment[: 2 * mmap.PAGESIZE], "uint8"), non_blocking=True)


def test_a_device_may_refuse_to_register(segment: Any) -> None:
    gpu = FakeGpu(refuses=True)
    assert not gpu.register(address_of(segment), segment.nbytes)
    assert gpu.registered == {}
    gpu.check()


def test_registering_nothing_or_the_same_again_is_a_violation(segment: Any) -> None:
    gpu = FakeGpu()
    at = address_of(segment)
    with pytest.raises(AssertionError, match="0 bytes were registered"):
        gpu.register(at, 0)
    gpu.register(at, mmap.PAGESIZE + 1)
    with pytest.raises(AssertionError, match="partly again"):
        gpu.register(at + mmap.PAGESIZE + 100, 10)
    gpu.register(at + 2 * mmap.PAGESIZE, 10)
    with pytest.raises(AssertionError, match="never registered"):
        gpu.unregister(at + 1)
    with pytest.raises(AssertionError):  # somebody may have caught the others
        gpu.check()


@each_policy
def test_unregistering_under_a_copy_is_a_violation(policy: Policy, segment: Any) -> None:
    """Also if the copy happens to be over: nobody has waited for it."""
    gpu = FakeGpu(policy)
    at = address_of(segment)
    h2d = gpu.Stream("h2d")
    rows = gpu.zeros("uint8", (16,))
    for waits in (True, False):
        gpu.register(at, segment.nbytes)
        gpu.copy_runs([(rows, gpu.tensor(segment[16:32], "uint8"))], h2d)
        if waits:
            h2d.synchronize()
            gpu.unregister(at)
        else:
            with pytest.raises(AssertionError, match="while H2D on h2d may be under way"):
                gpu.unregister(at)


# ---- graphs ----


def captured(gpu: FakeGpu) -> tuple[Any, Any, Any]:
    rows = gpu.zeros("int64", (2,))
    graph, result = gpu.capture(lambda: (rows + 1) * 2, gpu.Stream("compute"))
    return rows, graph, result


@each_policy
def test_a_graph_computes_when_it_is_replayed(policy: Policy) -> None:
    gpu = FakeGpu(policy)
    rows, graph, result = captured(gpu)
    assert not gpu.is_news(None), "a capture waits for the device"
    assert is_poisoned(result.data)
    for value in (1, 5):
        rows.fill_(value)
        graph.replay()
        assert result.tolist() == [2 * (value + 1)] * 2


def test_the_result_of_a_graph_is_overwritten_by_the_next_replay() -> None:
    gpu = FakeGpu()
    rows, graph, result = captured(gpu)
    d2h = gpu.Stream("d2h")
    into, host = gpu.pinned("int64", (2,))
    graph.replay()
    d2h.wait_stream(gpu.current_stream())
    with gpu.stream(d2h):
        host.copy_(result, non_blocking=True)
    rows.fill_(7)
    graph.replay()
    gpu.current_stream().synchronize()
    d2h.synchronize()
    assert into.tolist() == [16, 16]


def test_a_graph_does_not_keep_its_inputs() -> None:
    gpu = FakeGpu()
    rows, graph, result = captured(gpu)
    del rows
    graph.replay()
    assert result.tolist() != [2, 2]


@pytest.mark.parametrize(
    "body",
    [
        lambda gpu, rows: rows.item(),
        lambda gpu, rows: rows.cpu(),
        lambda gpu, rows: gpu.synchronize(),
        lambda gpu, rows: gpu.current_stream().synchronize(),
        lambda gpu, rows: rows.copy_(torch.zeros(1), non_blocking=True),
        lambda gpu, rows: gpu.pinned("int64", (2,)),
        lambda gpu, rows: gpu.capture(lambda: None, gpu.current_stream()),
    ],
)
def test_waiting_while_a_graph_is_captured_is_refused(body: Any) -> None:
    gpu = FakeGpu()
    rows = gpu.zeros("int64", (1,))
    with pytest.raises(RuntimeError, match="captur"):
        gpu.capture(lambda: body(gpu, rows), gpu.Stream())

    assert (rows + 1).item() == 1
    assert not gpu.is_lost(RuntimeError(CAPTURING))


def test_a_capture_is_broken_though_its_error_was_caught() -> None:
    gpu = FakeGpu()

    def body() -> None:
        with pytest.raises(RuntimeError, match=CAPTURING):
            gpu.synchronize()

    with pytest.raises(RuntimeError, match="previous error during capture"):
        gpu.capture(body, gpu.Stream())


def test_a_capture_waits_for_nothing_outside_of_it() -> None:
    gpu = FakeGpu()
    outside = gpu.Stream("outside").record_event()
    stream = gpu.Stream("compute")
    with pytest.raises(RuntimeError, match="uncaptured work"):
        gpu.capture(lambda: stream.wait_event(outside), stream)
    _, inside = gpu.capture(lambda: stream.record_event(), stream)
    with pytest.raises(RuntimeError):
        inside.synchronize()


# ---- faults ----


def test_memory_runs_out_when_asked_to() -> None:
    gpu = FakeGpu(no_memory_at=2, no_pinned_at=1)
    one = gpu.zeros("int64", (1,))
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory.* 8 bytes"):
        one + 1
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu.pinned("int64", (1,))
    assert (one + 1).item() == 1
    assert not gpu.is_lost(torch.OutOfMemoryError("CUDA out of memory"))


@each_policy
def test_after_an_illegal_access_nothing_works(policy: Policy) -> None:
    gpu = FakeGpu(policy, illegal_at=2)
    rows = gpu.zeros("int64", (1,))
    rows.copy_(rows) if policy != "eager" else None
    with pytest.raises(RuntimeError, match=ILLEGAL) as raised:
        _ = (rows + 1).item()
    assert gpu.is_lost(raised.value)
    assert not gpu.is_lost(ValueError("of the function"))
    for call in (gpu.synchronize, gpu.Event, lambda: rows + 1, lambda: gpu.zeros("int64", ())):
        with pytest.raises(RuntimeError, match=ILLEGAL):
            call()
