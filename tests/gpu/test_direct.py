"""Copies straight out of producers' slots, on a real device, whatever becomes of the producers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import shmbatch
from tests import processes
from tests.processes import Program, Served, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.no_transport]

LARGE = 65536

# Keeps calls in flight until it is killed.
FLYING = """
import sys
import numpy as np
import shmbatch
slow = shmbatch.connect(f"{sys.argv[1]}.slow_direct", arrays="numpy")
row = np.ones(65536, np.float32)
slow.remote(row)
calls = [slow.spawn(row) for _ in range(48)]
print("flying", flush=True)
while True:
    calls.append(slow.spawn(row))
    calls.pop(0).get()
"""


def large_rows(count: int) -> np.ndarray:
    return np.random.default_rng().random((count, LARGE), np.float32)


def mapped(function: shmbatch.Function, rows: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(result) for result in function.map(rows)])


@pytest.mark.parametrize("function", ["direct", "direct_padded"])
def test_direct_copies_give_what_staging_does(onboard: Served, function: str) -> None:
    direct, gathered = onboard.connect(function), onboard.connect("gathered")
    for count in (1, 3, 8, 40):
        rows = large_rows(count)
        results = mapped(direct, rows)
        assert np.array_equal(results, rows + 1)
        assert np.array_equal(results, mapped(gathered, rows))


def test_segments_are_registered(onboard: Served, real: str) -> None:
    onboard.connect("direct").remote(large_rows(1)[0])
    assert "gathers all rows" not in onboard.logged


def test_a_producer_killed_while_it_is_copied_from_harms_nobody(onboard: Served) -> None:
    direct, slow = onboard.connect("direct"), onboard.connect("slow_direct")
    rows = large_rows(3)
    for _ in range(5):
        before = segments(onboard)
        with Program(FLYING, onboard.name) as producer:
            assert producer.line() == "flying"
            calls = [slow.spawn(row) for row in rows]
            producer.kill()
            for row, call in zip(rows, calls, strict=True):
                assert np.array_equal(call.get(), row + 1)
            assert np.array_equal(mapped(direct, rows), rows + 1)
        wait_until(lambda: onboard.statistics("slow_direct")["producers"] == 1, "it is detached")
        wait_until(lambda: segments(onboard) <= before, "its memory is unmapped")  # noqa: B023
    assert onboard.process.poll() is None


def test_attaching_and_detaching_leaks_nothing(onboard: Served) -> None:
    rows = large_rows(2)

    def cycle() -> None:
        direct = onboard.connect("direct")
        assert np.array_equal(mapped(direct, rows), rows + 1)
        processes.hang_up()
        wait_until(lambda: onboard.statistics("direct")["producers"] == 0, "it is detached")

    for _ in range(5):
        cycle()
    mapped_before, memory_before = segments(onboard), available_nbytes()
    on_device = device_nbytes(onboard)
    for _ in range(200):
        cycle()
    assert segments(onboard) == mapped_before
    assert device_nbytes(onboard) - on_device < 64 << 20
    leaked = 200 * onboard.statistics("direct")["segment_nbytes"]
    # Pages that are still registered are in memory though nobody maps them.
    assert memory_before - available_nbytes() < leaked / 2


def segments(executor: Served) -> int:
    return Path(f"/proc/{executor.pid}/maps").read_text().count("/memfd:shmbatch-segment")


def available_nbytes() -> int:
    line = next(
        line
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return 1024 * int(line.split()[1])


def device_nbytes(executor: Served) -> int:
    in_use = int(executor.connect("memory").remote(0))
    processes.hang_up()
    return in_use
