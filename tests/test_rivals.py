"""The benchmark of rivals measures what it says, and survives whatever a rival does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_rivals
from benchmarks._crew import Cue, Schedule
from benchmarks._load import Load, arrivals, drive, drive_async
from benchmarks._works import MLP, TINY, WORKS, Array, Work, WrongAnswer, check
from benchmarks.rivals import asked, environments, listed
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.no_transport

SHORTLY_S = 0.05
ENOUGH = bench_rivals.LEAST_CALLS  # calls; with fewer it is measured again, for longer


# ---- a rival, from outside ----


def rival(manner: str, pid_file: Path, environment: str | None = None) -> listed.Rival:
    options = {"manner": manner, "pid_file": str(pid_file)}
    return listed.Rival(manner, "rivalling", environment, "numpy", options, home="tests")


def detached(pid_file: Path) -> bool:
    """Whether the process lives that the rival has started, if it came so far."""
    return pid_file.exists() and Path("/proc", pid_file.read_text().strip()).exists()


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("dies", "^exit status 134: so far True.*"),
        ("hangs", "^not done after 1 s: "),
        ("answers wrongly", r"^exit status 1: .*WrongAnswer: got \[.*, expected \["),
    ],
)
def test_a_rival_that_fails_is_a_reason_and_nothing_of_it_stays(
    manner: str, reason: str, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    limit_s = 1 if manner == "hangs" else PATIENCE_S
    with pytest.raises(asked.CouldNotRun, match=reason):
        asked.measure(rival(manner, pid_file), TINY, Load(1, 1), 0, SHORTLY_S, limit_s)
    assert not detached(pid_file)


def test_a_rival_that_runs_has_figures_and_nothing_of_it_stays(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    measured = asked.measure(rival("runs", pid_file), TINY, Load(2, 3), 0, SHORTLY_S, PATIENCE_S)
    assert len(measured.latencies) == 2
    assert all(
        len(each) and each.dtype == np.int64 and each.min() >= 0 for each in measured.latencies
    )
    assert measured.version == np.__version__
    assert not detached(pid_file)


def test_what_is_not_installed_is_a_reason_that_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "EMBEDDINGS", tmp_path / "embeddings.npy")
    how = "^not installed: python -m benchmarks.rivals.environments"
    with pytest.raises(asked.CouldNotRun, match=f"{how} raw$"):
        asked.measure(rival("runs", tmp_path, "raw"), TINY, Load(1, 1), 0, SHORTLY_S)
    with pytest.raises(asked.CouldNotRun, match=f"{how} embeddings$"):
        asked.measure(rival("runs", tmp_path), WORKS["embed"], Load(1, 1), 0, SHORTLY_S)


def test_every_rival_of_the_table_is_a_file_and_its_environment_is_known() -> None:
    for each in listed.RIVALS.values():
        assert Path(asked.ROOT, *each.home.split("."), f"{each.module}.py").exists()
        assert each.environment is None or each.environment in listed.ENVIRONMENTS
        json.dumps(dict(each.options))
    for name in listed.ENVIRONMENTS:
        packages = [each.partition("==")[0] for each in environments.requirements(name)]
        assert len(packages) == len(set(packages))
        assert all("==" in each for each in environments.requirements(name))


# ---- what a producer is driven by ----


class StartedCue(Cue):
    """Begins at once."""

    def __init__(self, measure_s: float) -> None:
        self._measure_s = measure_s

    def ready(self) -> Schedule:
        now = time.monotonic_ns()
        return Schedule(now, now + int(self._measure_s * 1e9))


def driven(how: str, work: Work, load: Load, answer: Callable[[Array], Array]) -> bytes:
    """Drive producer 0 against a system that answers in the process."""
    cue = StartedCue(SHORTLY_S)
    submitted: list[Array] = []

    async def answer_later(x: Array) -> Array:
        await asyncio.sleep(0)
        return answer(x)

    def collect(timeout_s: float | None) -> list[Array]:
        results = [answer(x) for x in submitted]
        submitted.clear()
        return results

    if how == "async":
        return asyncio.run(drive_async(cue, work, load, 0, answer_later))
    return drive(cue, work, load, 0, submitted.append, collect)


@pytest.mark.parametrize("rate_per_s", [None, 2000])
@pytest.mark.parametrize("how", ["one thread", "async"])
def test_every_driver_measures_right_answers_and_refuses_wrong_ones(
    how: str, rate_per_s: float | None
) -> None:
    load = Load(1, 4, rate_per_s)
    latencies = np.frombuffer(driven(how, TINY, load, lambda x: x + 1), np.int64)
    assert len(latencies) > 0
    assert latencies.min() >= 0
    with pytest.raises((WrongAnswer, ExceptionGroup)) as wrong:
        driven(how, TINY, load, lambda x: x)
    errors: Any = getattr(wrong.value, "exceptions", [wrong.value])
    assert all(isinstance(error, WrongAnswer) for error in errors)


@pytest.mark.parametrize("how", ["one thread", "async"])
def test_a_stall_counts_for_every_call_that_was_to_begin_meanwhile(how: str) -> None:
    stalled = False

    def stall_once(x: Array) -> Array:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(SHORTLY_S)
        return x + 1

    latencies = np.frombuffer(driven(how, TINY, Load(1, 1, 4000), stall_once), np.int64)
    # About 200 are to begin in that time, evenly: half of them wait for half of the stall.
    assert (latencies > SHORTLY_S * 1e9 / 4).sum() > 50


def test_arrivals_come_at_their_rate_and_at_random() -> None:
    now = time.monotonic_ns()
    load = Load(4, 8, 1000)
    times = [list(arrivals(load, producer, Schedule(now, now + 10**11))) for producer in (0, 1)]
    assert times[0][:5] != times[1][:5]
    gaps = np.diff(times[0])
    assert len(gaps) == pytest.approx(25_000, rel=0.05)  # a quarter of the rate, for 100 s
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution


def test_a_result_may_be_rounded_otherwise_where_its_work_says_so() -> None:
    (x,) = MLP.inputs(0)[:1]
    (answer,) = MLP.answers([x])
    check(answer + 5e-5, answer, MLP.tolerance)
    for wrong in (answer + 5e-4, answer * np.nan, answer[:9], answer.astype("float64")):
        with pytest.raises(WrongAnswer):
            check(wrong, answer, MLP.tolerance)
    with pytest.raises(WrongAnswer):
        check(answer + 5e-5, answer)


# ---- the benchmark's own arithmetic ----


def figures(rate: float) -> dict[str, float]:
    return {"calls_per_s": rate, "p50_us": 1.0, "p99_us": 2.0, "p99.9_us": 3.0}


def test_promises_are_over_the_best_of_each_run_and_survive_the_file(tmp_path: Path) -> None:
    cell = bench_rivals.Cell("tiny", "4x8")
    cell.figures = {
        "shmbatch": [figures(300), figures(600)],
        "sockets": [figures(100), figures(300)],
        "zmq": [figures(150), figures(100)],
    }
    for name, runs in cell.figures.items():
        cell.rows[name] = cell._row(runs, None, "1.0")
    cell.rows["pipe"] = {"error": "it died"}
    (ratio,) = bench_rivals.ratios([cell])
    assert ratio.spread.values == (2, 2)
    assert ratio.holds is False
    assert "it died" in str(cell)

    path = tmp_path / "rivals.json"
    assert bench_rivals.kept(path) == []
    path.write_text(json.dumps({"cells": [cell.document()]}))
    (read,) = bench_rivals.kept(path)
    assert (read.work, read.load, read.rows) == (cell.work, cell.load, cell.rows)
    assert bench_rivals.ratios([read]) == [ratio]
    assert read.rates() == {"shmbatch": 450, "sockets": 200, "zmq": 125}


def test_who_failed_once_is_a_row_with_the_reason_and_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_for = []

    def measure(rival: listed.Rival, work: Work, load: Load, *times: float) -> asked.Measured:
        asked_for.append(rival.module)
        if rival.module == "zeromq" and len(asked_for) > 2:
            raise asked.CouldNotRun("it died")
        return asked.Measured([np.tile([1000, 3000], ENOUGH // 2)], "1.2")

    monkeypatch.setattr(asked, "measure", measure)
    cell = bench_rivals.Cell("tiny", "1x1")
    loads = {"sockets": Load(1, 1), "zmq": Load(1, 1), "pipe": "why not"}
    cell.measure(loads, 3, 0, 0.5)
    assert sorted(asked_for) == ["sockets"] * 3 + ["zeromq"] * 2
    assert cell.rows["sockets"]["calls_per_s"]["runs"] == [2 * ENOUGH] * 3
    assert cell.rows["sockets"]["p50_us"]["median"] == 2
    assert cell.rows["sockets"]["version"] == "1.2"
    assert cell.rows["zmq"] == {"error": "it died"}
    assert cell.rows["pipe"] == {"error": "why not"}
    assert str(cell).endswith("pyzmq ipc: it died\nmultiprocessing Pipe: why not")


def test_who_ends_few_calls_is_measured_longer_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured_s = []

    def measure(
        rival: listed.Rival, work: Work, load: Load, warmup_s: float, measure_s: float
    ) -> asked.Measured:
        measured_s.append(measure_s)
        return asked.Measured([np.full(int(measure_s * 100), 5000)], "")

    monkeypatch.setattr(asked, "measure", measure)
    cell = bench_rivals.Cell("tiny", "1x1")
    cell.measure({"sockets": Load(1, 1)}, 2, 0.5, 1.5)
    assert measured_s == [1.5, 1.5 * bench_rivals.LONGER, 1.5 * bench_rivals.LONGER]
    assert cell.rows["sockets"]["calls_per_s"]["runs"] == [100, 100]


def test_open_loops_take_a_share_of_a_rate_and_who_has_none_is_told() -> None:
    rates = {"shmbatch": 1000.0, "sockets": 100.0}
    names = ["shmbatch", "sockets", "zmq"]
    common = bench_rivals.loads_of(bench_rivals.COMMON, names, rates)
    own = bench_rivals.loads_of(bench_rivals.OWN, names, rates)
    assert [getattr(common[name], "rate_per_s", None) for name in names] == [50, 50, None]
    assert [getattr(own[name], "rate_per_s", None) for name in names] == [300, 30, None]
    assert common["zmq"] == "did not run under 4x8, so there is no rate to take a share of"
