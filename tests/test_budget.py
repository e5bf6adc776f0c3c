"""The budget of instructions holds what it says, and the pictures show what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _report, bench_instructions, plots

pytestmark = pytest.mark.no_transport


def compared(counted: float, held_by: dict[str, str]) -> tuple[str, list[str]]:
    """Hold one count against a budget of 1000; return the verdict and what is above."""
    budget = {"held_by": held_by, "instructions": {"int: remote": 1000}}
    ((*_, verdict),), missed = bench_instructions.comparison({"int: remote": counted}, budget)
    return verdict, missed


def test_a_count_may_be_three_per_cent_above_its_budget_and_no_more() -> None:
    here = bench_instructions.held_by()
    assert compared(1030, here) == ("+3.0%", [])
    assert compared(1031, here) == ("+3.1%, MISSED", ["int: remote"])
    assert compared(500, here) == ("-50.0%", [])


def test_the_budget_of_another_python_holds_nothing() -> None:
    assert compared(5000, {**bench_instructions.held_by(), "python": "3.0"}) == ("", [])


def test_without_valgrind_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    bench_instructions.main(["--check"])
    assert capsys.readouterr().out == "valgrind is not installed; without it nothing is counted\n"


def test_the_committed_budget_has_a_count_for_each_row() -> None:
    budget = json.loads(bench_instructions.BUDGET.read_text())
    payloads = bench_instructions.LABELS
    calls = ("remote", "spawn and get", "remote.aio")
    of_producer = {f"{payload}: {what}": 1.0 for payload in payloads for what in calls}
    batches = ("batch of 1", "batch of 32")
    of_executor = {f"{payload}: {what}": 1.0 for payload in payloads for what in batches}
    rows = bench_instructions.together({"function": 0.0} | of_producer, of_executor)
    assert set(budget["instructions"]) == set(rows)


# ---- pictures ----


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    monkeypatch.setattr(plots, "FOLDER", tmp_path / "plots")
    return tmp_path, tmp_path / "plots"


def figures(*keys: str) -> dict[str, Any]:
    return {key: _report.Spread((1.0, 2.0, 4.0)).document() for key in keys}


MADE: dict[str, Any] = {
    "scale": {
        "axes": {
            axis: [
                {
                    "value": value,
                    **figures("producer_us", "executor_us", "batch_us", "calls_per_s"),
                    **figures("segment_kb", "own_kb", "attach_ms"),
                }
                for value in (1, 1 << 24)
            ]
            for axis in ("producers", "input")
        }
    },
    "waiting": {
        "rows": [
            {
                "situation": "busy",
                "producers": producers,
                "wait": wait,
                **figures("p50_us", "p99_us", "executor_cpus", "producers_cpus"),
            }
            for producers in (1, 16)
            for wait in ("auto", "spin", "park")
        ]
    },
    "pipeline": {
        "systems": {
            f"{kind}_{us}": figures("served_by_alone", "batch_us")
            for kind in ("compute", "sleep")
            for us in (100, 50_000)
        }
    },
}


@pytest.mark.slow
def test_each_result_has_its_pictures_and_those_that_are_missing_are_named(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, drawn = folders
    machine = {"cpu": "x", "cpus_usable": 2, "kernel": "y", "date": "2026-01-02T00:00:00+00:00"}
    for name, document in MADE.items():
        about = {"machine": machine, "parameters": {"runs": 3}}
        (results / f"{name}.json").write_text(json.dumps(document | about))
    (results / "pipeline.json").rename(results / "aside")
    plots.main()
    expected = ["scale-input.png", "scale-producers.png", "waiting.png"]
    assert sorted(file.name for file in drawn.iterdir()) == expected
    assert "no results/pipeline.json" in capsys.readouterr().err

    (results / "aside").rename(results / "pipeline.json")
    first = (drawn / "waiting.png").read_bytes()
    plots.main()
    assert (drawn / "pipeline.png").read_bytes().startswith(b"\x89PNG")
    assert (drawn / "waiting.png").read_bytes() == first, "the same results, another file"
