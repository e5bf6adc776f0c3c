"""The benchmarks of a GPU do what they say, as far as that can be seen without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._works import WrongAnswer
from benchmarks.gpu import copies, overlap, run_all
from benchmarks.gpu._setting import Setting
from shmbatch.executor.staging.cuda import Cuda
from tests import programs
from tests.executor.fake_gpu import FakeGpu

pytestmark = pytest.mark.no_transport


def ran(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "benchmarks.gpu.run_all", *arguments)
    return programs.ran(*command, python=True, cwd=programs.ROOT, **extra)


@pytest.mark.soak  # `make bench-quick` does it, too
def test_every_part_can_be_rehearsed_on_the_cpu() -> None:
    finished = ran("--rehearse")
    assert finished.returncode == 0, finished.stderr
    for part in run_all.PARTS:
        assert f"== {part}, " in finished.stdout
    assert finished.stdout.endswith("rehearsed on the CPU: the figures mean nothing\n")


def test_without_a_device_one_line_says_so(tmp_path: Path) -> None:
    finished = ran("--out", str(tmp_path / "gpu.json"), CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 1
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert "sees no CUDA device" in line
    assert "--rehearse" in line
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    sleeper = "import time; time.sleep(600)"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    assert run_all._ran([sys.executable, "-c", starter], 0.5) is None
    assert run_all._ran([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


def test_what_the_tests_did_is_counted() -> None:
    report = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>
        <testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>
        <testcase name="e"/></testsuite></testsuites>"""
    assert run_all._counts(report) == {
        "passed": 2,
        "skipped": 1,
        "failed": 2,
        "which_failed": ["c", "d"],
    }


# ---- copies, on a device that is not there ----


class FakeSetting(Setting):
    """Waits for the fake device."""

    gpu: FakeGpu

    def synchronize(self) -> None:
        self.gpu.synchronize()


def world(producers: int, direct: bool, gpu: FakeGpu) -> tuple[copies._World, Callable[[], float]]:
    setting = FakeSetting("cuda:0", 1, 0.1, 0.1, 1, Path("unused"))
    object.__setattr__(setting, "gpu", gpu)
    made = copies._World(Cuda(gpu), 4096, producers, direct)
    random = np.random.default_rng(1)
    pool = random.integers(0, 256, 1 << 20, np.uint8)
    return made, lambda: made.rate(setting, pool, random)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("producers", "neighbours"), [(1, 32), (32, 1)])
def test_rows_are_neighbours_or_scattered_as_said(
    producers: int, neighbours: int, direct: bool
) -> None:
    gpu = FakeGpu("random", 5)
    made, rate = world(producers, direct, gpu)
    assert rate() > 0
    assert made.neighbours == neighbours
    copied = [what for stream, what in gpu.log if what == "H2D"]
    rounds = copies.ROUNDS + 1
    runs = producers if direct else 1
    assert len(copied) == rounds * copies.BATCHES * runs
    made.close()


def test_rows_of_another_batch_are_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rate = world(1, False, FakeGpu("lazy"))
    gather = made._staging.gather
    monkeypatch.setattr(made._staging, "gather", lambda batch: gather(made._batches[0]))
    with pytest.raises(WrongAnswer, match=r"rows \[32, 33, .* are not what was given"):
        rate()
    made.close()


# ---- traces ----


def event(category: str, name: str, at: float, lasting: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": at, "dur": lasting}


TRACE: list[dict[str, Any]] = [
    {"ph": "M", "name": "process_name"},
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, 10),  # before all kernels
    event("kernel", "spin_kernel", 10, 100),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20, 30),
    event("kernel", "spin_kernel", 112, 100),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 112, 5),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 107, 10),  # 2 us of it under nothing
    event("kernel", "mul", 150, 20),
    event("cuda_runtime", "cudaMemcpyAsync", 3, 4),
]


def test_copies_under_kernels_are_found_in_a_trace() -> None:
    found = overlap.copies_and_kernels(json.loads(json.dumps(TRACE)))
    assert found == (
        [(0, 10), (20, 50), (107, 117)],
        [(10, 110), (112, 212), (150, 170)],
    )
    assert overlap.share_under(*found) == pytest.approx(38 / 40)
    assert overlap.share_under([], [(0, 1)]) == 0
    assert overlap.share_under([(0, 1)], []) == 0


def test_an_excerpt_shows_batches_and_what_is_copied_under_them() -> None:
    lines = overlap.excerpt(*overlap.copies_and_kernels(TRACE)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["0..100", "2", "33"],
        ["102..202", "2.0", "1", "5"],
    ]
