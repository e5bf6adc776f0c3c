from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import shmbatch
from shmbatch.cli import stats
from tests.programs import SERVED, ran, started, written

FAILING = """
    @app.function()
    @shmbatch.batched(max_batch_size=3, wait_ms=600_000)
    def picky(xs: list[int]) -> list[int]:
        return [ValueError("odd") if x % 2 else x for x in xs]
"""


def steady(counted: dict[str, Any]) -> dict[str, Any]:
    """What does not change while nobody calls."""
    return {key: value for key, value in counted.items() if key != "uptime_s"}


def test_stats_prints_a_table_a_function_or_one_json_document(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED, FAILING)):
        picky = shmbatch.connect("served.picky", timeout=60)
        outcomes = list(picky.map(range(6), return_exceptions=True))
        assert [outcomes[i] for i in (0, 2, 4)] == [0, 2, 4]

        result = ran("stats", "served", "--json")
        assert (result.stderr, result.returncode) == ("", 0)
        counted = json.loads(result.stdout)
        assert steady(counted) == steady(shmbatch.statistics("served"))
        assert list(counted["functions"]) == ["double", "never", "pid", "picky"]
        function = counted["functions"]["picky"]
        latencies = function.pop("latency_us")
        assert [(phase, times["count"]) for phase, times in latencies.items()] == [
            *(("waiting", 6), ("staging", 6), ("running", 6), ("delivering", 6))
        ]
        assert function.pop("segment_nbytes") > 0
        assert function == {
            "max_batch_size": 3,
            "wait_ms": 600_000.0,
            "producers": 1,
            "slots": 64,
            "calls_waiting": 0,
            "calls_in_flight": 0,
            "calls_done": 6,
            "calls_failed": 3,
            "failed": {"ValueError": 3},
            "calls_cancelled": 0,
            "batches": 2,
            "mean_batch_size": 3.0,
            "batch_sizes": {"3": 2},
            "sealed": {"size": 2, "all": 0, "deadline": 0, "drain": 0},
            "batch_sizes_by_reason": {"size": {"3": 2}, "all": {}, "deadline": {}, "drain": {}},
            "executions_halved": 0,
            "executions_out_of_memory": 0,
            "memory_limit": None,
        }

        first, *tables = ran("stats", "served").stdout.split("\n\n")
        first, producers = first.splitlines()
        assert producers.startswith("producers: 1 of at most ")
        assert first.startswith(f"served: serving, process {counted['pid']}, up ")
        assert first.endswith(
            f", transport {counted['transport']}, device cpu, protocol {counted['version']}"
        )
        double, _, _, picked = (table.splitlines() for table in tables)
        assert double[0] == "double: up to 4 calls in 0 ms"
        assert double[2:] == [
            "  calls: 0 waiting, 0 in flight, 0 done, 0 failed",
            "  batches: none",
        ]
        assert picked[1].startswith("  1 producer, each with 64 slots in ")
        assert picked[2:7] == [
            "  calls: 0 waiting, 0 in flight, 6 done, 3 failed",
            "  failed: 3 ValueError",
            "  batches: 2, mean size 3.0",
            "    sealed by  batches  sizes",
            "    size             2  3:2",
        ]
        assert picked[7].split() == [
            *("latency,", "µs", "calls", "mean", "p50", "p90", "p99", "p99.9", "max")
        ]
        assert [line.split()[:2] for line in picked[8:]] == [
            [phase, "6"] for phase in ("waiting", "staging", "running", "delivering")
        ]
        assert len({len(line) for line in picked[7:]}) == 1  # aligned
        shmbatch.stop("served")


def test_asking_what_is_not_served_is_a_problem() -> None:
    result = ran("stats", "served")
    assert result.stderr == (
        "error: no executor serves 'served'; see `shmbatch ps`, or start one with "
        "`shmbatch start FILE`\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)


def test_many_batch_sizes_are_shown_by_powers_of_two() -> None:
    assert stats._sizes({str(size): 1 for size in range(1, 9)}) == (
        "1:1 2:1 3:1 4:1 5:1 6:1 7:1 8:1"
    )
    assert stats._sizes({str(size): 2 for size in range(1, 10)}) == "1:2 2-3:4 4-7:8 8-15:4"
