"""Devices that are not there, have no room, or are lost while an executor runs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shmbatch
from shmbatch import errors
from tests import processes, programs
from tests.gpu.conftest import APPS, started
from tests.processes import Program, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.no_transport]

ROW = np.ones(4, np.float32)

WAITER = """
import sys
import numpy as np
import shmbatch
never = shmbatch.connect(f"{sys.argv[1]}.never")
call = never.spawn(np.ones(4, np.float32))
print("waiting", flush=True)
try:
    call.get()
except shmbatch.errors.ExecutorGone as error:
    print(error, flush=True)
"""


def test_a_device_that_is_not_there_is_refused(real: str) -> None:
    ran = programs.ran("start", APPS / "onboard.py", "--device", "cuda:99")
    assert ran.returncode != 0
    assert "device is 'cuda:99', but torch sees" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_no_room_for_a_batch_is_refused_with_the_remedy(real: str) -> None:
    ran = programs.ran("start", APPS / "huge.py", "--device", "cuda")
    assert ran.returncode != 0
    assert "no room for 'xs', uint8 of shape (64, 4194304), on cuda:0" in ran.stderr
    assert "out of memory" in ran.stderr
    assert "lower max_batch_size" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_illegal_access_ends_the_executor_and_everybody_hears_why(real: str) -> None:
    executor = started("fatal.py", "fatal", real)
    try:
        double, never, fatal = map(executor.connect, ("double", "never", "out_of_range"))
        assert np.array_equal(double.remote(ROW), ROW * 2)
        waiting = [never.spawn(ROW) for _ in range(3)]
        with Program(WAITER, "fatal") as program, ThreadPoolExecutor(4) as threads:
            assert program.line() == "waiting"
            blocked = threads.submit(never.remote, ROW)
            wait_until(
                lambda: executor.statistics("never")["calls_waiting"] == 5, "all of them wait"
            )
            lost = [fatal.spawn(ROW) for _ in range(3)]
            found = [program.line()]
            for call in (*lost, *waiting):
                with pytest.raises(errors.ExecutorGone) as caught:
                    call.get()
                found.append(str(caught.value))
            error = blocked.exception(processes.PATIENCE_S)
            assert isinstance(error, errors.ExecutorGone)
            found.append(str(error))
        for text in found:
            assert "CUDA error" in text, found
            assert "fatal.out_of_range" in text, found
        status = executor.wait()
        assert status == 1, executor.logged
        assert "lost its device" in executor.logged
    finally:
        executor.kill()
    assert not list(Path(os.environ["SHMBATCH_DIR"]).glob("fatal*"))
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.stop("fatal")


def test_the_device_serves_the_next_executor(real: str) -> None:
    for _ in range(2):
        executor = started("fatal.py", "fatal", real)
        try:
            fatal, double = executor.connect("out_of_range"), executor.connect("double")
            assert np.array_equal(double.remote(ROW), ROW * 2)
            with pytest.raises(errors.ExecutorGone):
                fatal.remote(ROW)
            assert executor.wait() == 1
        finally:
            executor.kill()
            processes.hang_up()
