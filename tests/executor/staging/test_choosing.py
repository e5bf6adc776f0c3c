"""Which device a function runs on, and what is said where it is not to be had."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.errors import ConfigError
from shmbatch.executor.staging import choosing, runtime
from shmbatch.executor.staging.choosing import devices_for
from tests.rings import ADD, array, signature

TENSORS = signature(array("float32", 2, library="torch"))
RETURNS_TENSORS = signature("int", result=array("float32", 2, library="torch"))


def definition(contract: Any) -> Definition:
    return Definition("f", lambda *xs: xs, contract, BatchParameters(4, 0), None)


def torch_that(*, cuda: str | None = "12.8", sees: int = 1, **more: Any) -> Any:
    """Return what `cuda_runtime` looks at of torch."""
    return SimpleNamespace(
        __version__="2.13.0+cpu" if cuda is None else "2.13.0+cu128",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: sees > 0, device_count=lambda: sees),
        **more,
    )


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put another torch in the place of ours."""

    def replace(fake: Any) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake)

    return replace


@pytest.mark.parametrize(
    ("fake", "device", "message"),
    [
        (
            None,
            "cuda",
            "device is 'cuda', but torch is not installed; "
            r"install it with `pip install shmbatch\[torch\]`, or use device cpu",
        ),
        (
            torch_that(cuda=None),
            "cuda:0",
            r"device is 'cuda:0', but torch 2.13.0\+cpu is built without CUDA; "
            "install a build that has it, or use device cpu",
        ),
        (
            torch_that(sees=0),
            "cuda",
            r"but torch 2.13.0\+cu128 sees no CUDA device; check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device cpu",
        ),
        (
            torch_that(sees=2),
            "cuda:2",
            "device is 'cuda:2', but torch sees 2 CUDA devices, cuda:0 to cuda:1; use one of them",
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_to_do(
    torch: Any, fake: Any, device: str, message: str
) -> None:
    torch(fake)
    with pytest.raises(ConfigError, match=message):
        devices_for([definition(ADD)], device)


def test_a_device_that_cannot_be_used_is_refused_with_its_own_words(
    torch: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(index: int) -> Any:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCUDA kernel errors ...")

    torch(torch_that())
    monkeypatch.setattr(runtime, "TorchRuntime", busy)
    reason = "cuda:0 cannot be used: CUDA error: all CUDA-capable devices are busy; "
    with pytest.raises(ConfigError, match=reason + "see whether"):
        devices_for([definition(TENSORS)], "cuda")
    with caplog.at_level(logging.WARNING, "shmbatch"):
        (device,) = devices_for([definition(TENSORS)], "auto")
    assert device.name == "cpu"
    assert caplog.messages == [reason + "functions on tensors run on the CPU"]


@pytest.mark.parametrize("fake", [None, torch_that(cuda=None), torch_that(sees=0)])
def test_auto_is_the_cpu_where_there_is_no_gpu(torch: Any, fake: Any) -> None:
    torch(fake)
    (device,) = devices_for([definition(TENSORS)], "auto")
    assert (device.name, device.depth) == ("cpu", 1)


def test_functions_without_tensors_run_on_the_cpu(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(name="cuda:0")
    torch(torch_that())
    monkeypatch.setattr(runtime, "TorchRuntime", lambda index: object())
    monkeypatch.setattr("shmbatch.executor.staging.cuda.Cuda", lambda runtime: gpu)
    definitions = [definition(each) for each in (ADD, TENSORS, RETURNS_TENSORS)]
    for device in ("auto", "cuda"):
        names = [each.name for each in devices_for(definitions, device)]
        assert names == ["cpu", "cuda:0", "cuda:0"]
    assert [each.name for each in devices_for(definitions, "cpu")] == ["cpu"] * 3


def test_nobody_asks_torch_where_no_signature_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cuda_runtime", lambda device: pytest.fail("it was asked"))
    for device in ("auto", "cpu"):
        (chosen,) = devices_for([definition(ADD)], device)
        assert type(chosen) is choosing.Cpu
