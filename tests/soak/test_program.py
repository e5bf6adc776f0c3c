"""The soak of `make soak`, for a moment: it runs, its books balance, and it says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak.ledger import LANES, Column, Ledger, Mark, place_of
from tests.processes import ROOT, environment


def soaked(folder: Path, *options: object) -> tuple[int, dict[str, Any], str]:
    """Run a short soak; its status, its report, and all that it wrote."""
    out = folder / "soak.json"
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--out", str(out), *map(str, options)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    document = json.loads(out.read_text()) if out.exists() else {}
    return ended.returncode, document, ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", ["linux", "posix"])
def test_a_short_soak_loses_nothing(tmp_path: Path, transport: str) -> None:
    status, report, output = soaked(
        tmp_path, "--minutes", 0.33, "--seed", 1, "--transport", transport
    )
    assert (status, report.get("violations")) == (0, []), output
    calls, harm = report["calls"], report["harm"]
    lost = calls.pop("lost with killed producers")
    calls.pop("connects")
    assert calls.pop("submitted") == sum(calls.values()) + lost
    assert calls["right"] > 0
    assert min(calls[each] for each in ("cancelled", "timeout", "deadline", "dropped")) > 0
    for what in ("producers killed", "executors killed", "executors stopped for a while"):
        assert harm[what] > 0, what


def test_a_ledger_finds_calls_that_ran_too_often_or_not_at_all(tmp_path: Path) -> None:
    Ledger.create(tmp_path)
    executions = os.open(tmp_path / "executions", os.O_RDWR)
    producer = Ledger(tmp_path, 3)
    everybody = Ledger(tmp_path)
    try:
        producer.lane(2)[Column.SUBMITTED] += 5
        assert everybody.lanes_of(3)[2, Column.SUBMITTED] == 5
        assert int(everybody.rows[:9].sum()) == 5, "nobody else's"
        for number, (mark, times) in enumerate(
            [(Mark.RAN, 1), (Mark.RAN, 2), (Mark.RAN, 0), (Mark.NEVER_RAN, 0), (Mark.NEVER_RAN, 1)]
        ):
            place = place_of(3, LANES - 1, number)
            assert place is not None
            producer.mark(place, mark)
            os.pwrite(executions, bytes([times]), place)
        assert everybody.executed_wrongly(producers=3) == dict.fromkeys(
            ("executed twice", "never executed", "executed all the same"), 0
        )
        assert everybody.executed_wrongly(producers=4) == {
            "executed twice": 1,
            "never executed": 1,
            "executed all the same": 1,
        }
    finally:
        os.close(executions)
        producer.close()
        everybody.close()
