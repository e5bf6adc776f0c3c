"""`TorchRuntime` keeps what `Runtime` promises, on a real device, in this process."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shmbatch.contract.columns import WIRE_DTYPES
from shmbatch.errors import ConfigError
from tests.processes import Program

pytestmark = [pytest.mark.gpu, pytest.mark.no_transport]

PAGE = mmap.PAGESIZE

LOSING = """
import torch
from shmbatch.executor.staging.runtime import TorchRuntime
runtime = TorchRuntime(0)
try:
    torch.zeros(1, device="cuda")[torch.tensor([10**6], device="cuda")]
    runtime.synchronize()
except RuntimeError as error:
    print(runtime.is_lost(error), flush=True)
import os
os._exit(0)
"""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """In the place of the check of what tests leave: CUDA opens descriptors as it likes."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def runtime(device: str) -> Any:
    if device == "cpu":
        pytest.skip("SHMBATCH_TEST_GPU=cpu: this needs a CUDA device")
    from shmbatch.executor.staging.runtime import TorchRuntime

    return TorchRuntime(0)


@pytest.fixture
def shared() -> tuple[mmap.mmap, np.ndarray]:
    """A mapping such as a segment is, and it as an array."""
    fd = os.memfd_create("test-runtime")
    os.ftruncate(fd, 64 * PAGE)
    memory = mmap.mmap(fd, 64 * PAGE)
    os.close(fd)
    return memory, np.frombuffer(memory, np.uint8)


def works(runtime: Any) -> bool:
    """Whether a kernel runs and reports nothing."""
    import torch

    answer = torch.ones(1000, device=runtime.name).sum().item()
    runtime.synchronize()
    return bool(answer == 1000)


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_pinned_array_and_its_tensor_are_one_memory(runtime: Any, dtype: str) -> None:
    import torch

    array, tensor = runtime.pinned(dtype, (3, 4))
    assert tensor.is_pinned()
    assert array.dtype == WIRE_DTYPES[dtype]
    assert (array.shape, tuple(tensor.shape)) == ((3, 4), (3, 4))
    assert tensor.dtype == getattr(torch, dtype)
    assert array.ctypes.data == tensor.data_ptr()
    assert not array.any()
    array.view(np.uint8)[:] = 1
    assert tensor.view(torch.uint8).numpy().all()
    on_device = tensor.to(runtime.name, non_blocking=True)
    runtime.synchronize()
    assert bytes(on_device.cpu().view(torch.uint8).numpy()) == array.tobytes()


def test_pinned_memory_may_have_no_rows(runtime: Any) -> None:
    array, tensor = runtime.pinned("float32", (0, 4))
    assert (array.shape, tuple(tensor.shape)) == ((0, 4), (0, 4))


def test_memory_on_the_device_is_zeroed(runtime: Any) -> None:
    import torch

    for dtype in WIRE_DTYPES:
        zeros = runtime.zeros(dtype, (5, 3))
        assert runtime.is_ours(zeros)
        assert not any(zeros.cpu().view(torch.uint8).numpy().tobytes())


def test_what_is_elsewhere_is_not_ours(runtime: Any) -> None:
    import torch

    assert not runtime.is_ours(torch.zeros(1))
    assert not runtime.is_ours(np.zeros(1))
    assert not runtime.is_ours([torch.zeros(1, device=runtime.name)])
    assert runtime.is_ours(runtime.to_device(torch.zeros(1)))


def test_an_event_is_over_when_its_stream_is(runtime: Any) -> None:
    import torch

    stream, event = runtime.Stream(), runtime.Event()
    result = runtime.zeros("float32", (1,))
    runtime.synchronize()
    with runtime.stream(stream):
        torch.cuda._sleep(20_000_000)  # 10 ms or more
        result.fill_(7)
    event.record(stream)
    assert not event.query()
    event.synchronize()
    assert event.query()
    assert result.cpu().item() == 7


def test_waiting_for_an_event_is_sleep(runtime: Any) -> None:
    import time

    import torch

    stream, event = runtime.Stream(), runtime.Event()
    with runtime.stream(stream):
        for _ in range(5):
            torch.cuda._sleep(100_000_000)  # some 50 ms each
    event.record(stream)
    before, since = time.thread_time(), time.monotonic()
    event.synchronize()
    used, passed = time.thread_time() - before, time.monotonic() - since
    assert used < passed / 2, "it spins"


def test_one_stream_waits_for_another(runtime: Any) -> None:
    import torch

    first, second, event = runtime.Stream(), runtime.Stream(), runtime.Event()
    value, copy = runtime.zeros("float32", (1,)), runtime.zeros("float32", (1,))
    runtime.synchronize()
    with runtime.stream(first):
        torch.cuda._sleep(20_000_000)
        value.fill_(7)
    event.record(first)
    second.wait_event(event)
    with runtime.stream(second):
        copy.copy_(value)
    runtime.synchronize()
    assert copy.cpu().item() == 7


def test_a_mapping_is_registered_copied_from_and_unregistered(
    runtime: Any, shared: tuple[mmap.mmap, np.ndarray]
) -> None:
    _, array = shared
    array[:] = np.random.default_rng().integers(0, 256, len(array), np.uint8)
    for _ in range(3):
        assert runtime.register(array.ctypes.data, array.nbytes)
        tensor = runtime.tensor(array, "uint8")
        assert tensor.is_pinned()
        rows = runtime.zeros("uint8", (64 * PAGE,))
        runtime.synchronize()
        stream = runtime.Stream()
        pairs = [
            (rows[at : at + PAGE], tensor[at : at + PAGE]) for at in range(0, len(array), PAGE)
        ]
        runtime.copy_runs(pairs, stream)
        runtime.synchronize()
        assert np.array_equal(rows.cpu().numpy(), array)
        runtime.unregister(array.ctypes.data)
        assert not runtime.tensor(array, "uint8").is_pinned()
    assert works(runtime)


def test_a_refused_registration_leaves_no_error_behind(
    runtime: Any, shared: tuple[mmap.mmap, np.ndarray]
) -> None:
    _, array = shared
    address = array.ctypes.data
    assert not runtime.register(address, 0)
    assert works(runtime)
    assert runtime.register(address, array.nbytes)
    assert not runtime.register(address, array.nbytes), "it is registered already"
    assert works(runtime)
    runtime.unregister(address)
    runtime.unregister(address)  # twice
    assert works(runtime)


def test_an_unaligned_mapping_is_registered_or_refused_cleanly(
    runtime: Any, shared: tuple[mmap.mmap, np.ndarray]
) -> None:
    _, array = shared
    address = array.ctypes.data + 1
    if runtime.register(address, PAGE):  # drivers differ
        runtime.unregister(address)
    assert works(runtime)


def test_what_is_captured_is_replayed(runtime: Any) -> None:
    import torch

    stream = runtime.Stream()
    with runtime.stream(stream):
        fixed = runtime.zeros("float32", (4,))
        (fixed * 2).sum()
        runtime.synchronize()
        graph, result = runtime.capture(lambda: fixed * 2, stream)
        for value in (1.0, 5.0):
            fixed.fill_(value)
            graph.replay()
            assert result.clone().tolist() == [2 * value] * 4
    assert torch.cuda.current_stream() != stream


def test_what_waits_for_the_device_is_not_captured(runtime: Any) -> None:
    stream = runtime.Stream()
    with runtime.stream(stream):
        fixed = runtime.zeros("float32", (1,))
        with pytest.raises(RuntimeError):
            runtime.capture(lambda: fixed.item(), stream)
        runtime.synchronize()
        assert (fixed + 1).item() == 1
    assert works(runtime)


def test_out_of_memory_is_no_loss(runtime: Any) -> None:
    import torch

    with pytest.raises(torch.OutOfMemoryError) as caught:
        runtime.zeros("uint8", (1 << 50,))
    assert not runtime.is_lost(caught.value)
    assert not runtime.is_lost(ValueError("CUDA error: said somebody"))
    assert not runtime.is_lost(RuntimeError("CUDA error: of another kind"))
    assert works(runtime)


def test_an_illegal_access_is_a_loss(runtime: Any) -> None:
    with Program(LOSING) as program:  # since this process would have no device any more
        assert program.line() == "True"


def test_a_device_that_is_not_there_is_refused(runtime: Any) -> None:
    from shmbatch.executor.staging.runtime import cuda_runtime

    with pytest.raises(ConfigError, match=r"'cuda:99', but torch sees \d+ CUDA devices"):
        cuda_runtime("cuda:99")
    for name in ("auto", "cuda", "cuda:0"):
        found = cuda_runtime(name)
        assert found is not None
        assert found.name == "cuda:0"
