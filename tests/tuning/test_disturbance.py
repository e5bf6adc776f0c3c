"""How long a thread waited for a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from shmbatch.tuning.disturbance import Disturbance


def test_who_shares_a_cpu_hears_how_long_the_other_one_had_it() -> None:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    disturbance = Disturbance()
    try:
        before_ns, began, used = disturbance.waited_ns(), time.monotonic(), time.thread_time()
        while disturbance.waited_ns() - before_ns < 20_000_000:
            pass  # until the other one has had its turns
        waited_s = (disturbance.waited_ns() - before_ns) / 1e9
        absent_s = time.monotonic() - began - (time.thread_time() - used)
    finally:
        other.kill()
        other.wait()
        disturbance.close()
        os.sched_setaffinity(0, affinity)
    assert waited_s == pytest.approx(absent_s, rel=0.2), "all the time that it had no CPU"


def test_where_the_kernel_does_not_tell_nothing_is_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refused)
    disturbance = Disturbance()
    assert disturbance.waited_ns() == 0
    disturbance.close()
