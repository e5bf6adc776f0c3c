from __future__ import annotations

import json
from pathlib import Path

import shmbatch
from tests.programs import SERVED, ran, started, written

FAILING = """
    @app.function()
    @shmbatch.batched(max_batch_size=3, wait_ms=600_000)
    def picky(xs: list[int]) -> list[int]:
        return [ValueError("odd") if x % 2 else x for x in xs]
"""


def test_stats_prints_a_line_a_function_or_one_json_document(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED, FAILING)):
        picky = shmbatch.connect("served.picky", timeout=60)
        outcomes = list(picky.map(range(6), return_exceptions=True))
        assert [outcomes[i] for i in (0, 2, 4)] == [0, 2, 4]

        result = ran("stats", "served", "--json")
        assert (result.stderr, result.returncode) == ("", 0)
        counted = json.loads(result.stdout)
        assert list(counted) == ["double", "never", "pid", "picky"]
        assert counted["picky"] == {
            "producers": 1,
            "calls_done": 6,
            "calls_failed": 3,
            "batch_sizes": {"3": 2},
            "sealed": {"size": 2, "deadline": 0, "drain": 0},
        }
        assert counted == shmbatch.statistics("served")

        lines = ran("stats", "served").stdout.splitlines()
        assert lines[0] == "double: 0 producers, 0 calls done, 0 failed, batches by size none"
        assert lines[3] == "picky: 1 producers, 6 calls done, 3 failed, batches by size 3:2"
        shmbatch.stop("served")


def test_asking_what_is_not_served_is_a_problem() -> None:
    result = ran("stats", "served")
    assert result.stderr == "error: no executor serves 'served'\n"
    assert (result.stdout, result.returncode) == ("", 1)
