"""Timeouts become deadlines on the monotonic clock."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from shmbatch.errors import ConfigError
from shmbatch.protocol import clock


def test_the_clock_is_the_one_that_all_processes_share() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    now = clock.now_ns()

    assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@pytest.mark.parametrize(
    ("timeout", "deadline_ns"),
    [
        (0, 1_000),
        (0.0, 1_000),
        (1, 1_000_001_000),
        (0.5, 500_001_000),
        (1e-6, 2_000),
        (np.float64(0.5), 500_001_000),
        (-3, 1_000),
        (-math.inf, 1_000),
        (None, None),
        (math.inf, None),
        (10**400, None),
        (2**62 / 1e9, None),
    ],
)
def test_a_timeout_becomes_a_deadline(
    timeout: float | None, deadline_ns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now_ns", lambda: 1_000)

    assert clock.deadline_ns(timeout) == deadline_ns


def test_every_deadline_fits_the_64_bits_that_the_core_counts_in() -> None:
    deadline = clock.deadline_ns(math.nextafter(2**62 / 1e9, 0))

    assert deadline is not None
    assert deadline < 2**63


@pytest.mark.parametrize("timeout", [math.nan, "5", True, [1]])
def test_what_is_no_duration_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout is .*; give seconds as a number, or None"):
        clock.deadline_ns(timeout)
