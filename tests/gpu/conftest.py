"""A real device, or a reason to skip; executors on it that the tests of a module share.

With SHMBATCH_TEST_GPU=cpu the tests that compare results run on the CPU: that says nothing about
a device, and keeps the tests themselves from rotting where there is none.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import processes
from tests.processes import Served

APPS = Path(__file__).parent / "apps"
REHEARSED = os.environ.get("SHMBATCH_TEST_GPU") == "cpu"


def _missing() -> str | None:
    """Say what there is to do before these tests can run; None if they can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


@pytest.fixture(scope="session")
def device(sockets_directory: Path) -> Iterator[str]:
    """The name of the device; the tests are skipped where there is none."""
    if REHEARSED:
        yield "cpu"
        return
    # Here, not when tests are collected: importing torch takes seconds.
    reason = _missing()
    if reason is not None:
        pytest.skip(f"needs a CUDA device, but {reason}")
    with pytest.MonkeyPatch.context() as patch:
        # An executor imports torch and makes a context, which takes long on a cold machine.
        patch.setattr(processes, "PATIENCE_S", 60)
        yield "cuda:0"


@pytest.fixture
def real(device: str) -> str:
    """The device, for tests that mean nothing on a CPU."""
    if REHEARSED:
        pytest.skip("SHMBATCH_TEST_GPU=cpu: this needs a CUDA device")
    return device


def started(file: str, name: str, device: str, **extra: str) -> Served:
    """Serve a file of ``tests/gpu/apps``, or of ``tests/apps``."""
    path = APPS / file
    return Served(str(path) if path.exists() else file, name, "--device", device, **extra)


def stopped(executor: Served) -> None:
    """Have an executor drain, which must end well; its functions may have failed before."""
    try:
        executor.signal(signal.SIGTERM)
        status = executor.wait()
        logged = executor.logged
    finally:
        executor.kill()
    assert status == 0, logged


def serving(file: str, name: str, device: str) -> Iterator[Served]:
    """For a fixture: serve a file until its tests are over."""
    executor = started(file, name, device)
    try:
        yield executor
    except BaseException:
        executor.kill()
        raise
    stopped(executor)


@pytest.fixture(scope="module")
def onboard(device: str) -> Iterator[Served]:
    """`onboard.py` on the device."""
    yield from serving("onboard.py", "onboard", device)


@pytest.fixture(scope="module")
def on_cpu(device: str) -> Iterator[Served]:
    """`onboard.py` on the CPU, to compare with."""
    yield from serving("onboard.py", "on-cpu", "cpu")
