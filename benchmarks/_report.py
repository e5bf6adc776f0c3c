"""How measurements become numbers: medians, ratios, machine facts, tables and JSON.

A benchmark measures every system once per run, in several runs. A *ratio* divides two systems
of the same run, so that what disturbed the whole run cancels; only then is the median taken.
Reports print microseconds and calls per second, with the range over the runs in brackets.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over all runs."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{number(self.median)} ({number(low)}..{number(high)})"

    def document(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "runs": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """What one system's figure is of another's, run by run.

    `floor` is the least the project promises, `ceiling` the most; a ratio may have neither.
    """

    what: str
    spread: Spread
    floor: float | None = None
    ceiling: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps the promise; None where nothing is promised."""
        if self.floor is not None:
            return self.spread.median >= self.floor
        if self.ceiling is not None:
            return self.spread.median <= self.ceiling
        return None

    @property
    def promise(self) -> str:
        if self.floor is not None:
            return f"at least {number(self.floor)}"
        if self.ceiling is not None:
            return f"at most {number(self.ceiling)}"
        return ""

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            **self.spread.document(),
            "floor": self.floor,
            "ceiling": self.ceiling,
            "holds": self.holds,
        }


def ratio(
    what: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Ratio:
    """Divide two systems' figures within each run."""
    values = tuple(a / b for a, b in zip(above, below, strict=True))
    return Ratio(what, Spread(values), floor, ceiling)


def percentiles_us(samples_ns: NDArray[np.int64]) -> dict[str, float]:
    """The percentiles of durations in nanoseconds, in microseconds."""
    p50, p99, p999 = np.percentile(samples_ns, [50, 99, 99.9]) / 1000
    return {"p50_us": float(p50), "p99_us": float(p99), "p99.9_us": float(p999)}


def closed_loop(latencies: Sequence[bytes], measure_s: float) -> dict[str, float]:
    """Calls per second, and percentiles, of producers with latencies as `_load.drive` has them.

    Raises:
        RuntimeError: One of them finished no call.
    """
    if not all(latencies):
        raise RuntimeError("a producer finished no call in the measured time")
    together = np.concatenate([np.frombuffer(each, np.int64) for each in latencies])
    return {"calls_per_s": len(together) / measure_s, **percentiles_us(together)}


def jain(served: Sequence[int]) -> float:
    """Jain's index of what each got: 1 where all got the same, 1/n where one of n got all."""
    shares = np.array(served, float)
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def number(value: float) -> str:
    """Four significant digits or all of the integer part, without an exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{decimals}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns of plain text, the first to the left and the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rendered = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rendered.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(rendered)


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """One system's figures, gathered over its runs."""
    return {key: Spread(tuple(run[key] for run in runs)) for key in runs[0]}


def promises(ratios: Sequence[Ratio]) -> str:
    """The table of what was measured and what is promised; empty without ratios."""
    if not ratios:
        return ""
    verdicts = {True: "holds", False: "MISSED", None: ""}
    rows = [[r.what, str(r.spread), r.promise, verdicts[r.holds]] for r in ratios]
    return table(["what", "measured", "floor", ""], rows)


def machine_facts(now: datetime) -> dict[str, Any]:
    """What a reader needs to judge the figures; `now` is the date they get.

    Call it before measuring: what is busy then are the others on the machine. The load average
    remembers for minutes what ran before.
    """
    return {
        "date": now.isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "shmbatch": _version("shmbatch"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "busy": round(_busy(0.5), 3),
        "commit": _commit(),
    }


def facts_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']}, {facts['cpus_usable']} of {facts['cpus']} CPUs, {facts['kernel']}, "
        f"{facts['python']}, numpy {facts['numpy']}, busy before: {facts['busy']:.0%}"
    )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write the whole document or nothing: readers never find half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)


def _busy(seconds: float) -> float:
    """The share of all CPUs' time that something takes now, looked at for so long."""
    first, first_idle = _ticks()
    time.sleep(seconds)
    last, last_idle = _ticks()
    return 1 - (last_idle - first_idle) / max(1, last - first)


def _ticks() -> tuple[int, int]:
    """The time of all CPUs since the machine was booted, and how much of it they were idle."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, idle, iowait, *rest = map(int, fields)
    return user + nice + system + idle + iowait + sum(rest), idle + iowait


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with a plus sign if tracked files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return finished.stdout.strip()
