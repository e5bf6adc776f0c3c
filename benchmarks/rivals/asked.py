"""How a rival is measured from outside: once, in its environment, and nothing of it stays.

A rival is somebody else's program: it may not start, may die, hang, answer wrongly, or end and
leave processes behind. Whatever it does, `measure` returns after a known time, with figures or
with the reason why there are none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._load import Load
from benchmarks._works import Work
from benchmarks.rivals import kept
from benchmarks.rivals.environments import check_answers_known, python_of
from benchmarks.rivals.listed import Rival

ROOT = Path(__file__).parents[2]
STARTING_S = 120.0  # the time that a rival has beside that in which it is measured
SHARED_MEMORY = Path("/dev/shm")
LINES = 6  # of what it wrote last, for the report


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out: each producer's latencies in nanoseconds, and the version measured."""

    latencies: list[NDArray[np.int64]]
    version: str


class CouldNotRun(Exception):
    """A rival did not come to an end with figures; the message is the last that it wrote."""


def measure(
    rival: Rival,
    work: Work,
    load: Load,
    warmup_s: float,
    measure_s: float,
    starting_s: float = STARTING_S,
) -> Measured:
    """Measure a rival once, in fresh processes, all of which have ended when this returns.

    Raises:
        CouldNotRun: It is not installed, died, hung (for *starting_s* seconds longer than it was
            to be measured), or answered wrongly.
    """
    try:
        python = python_of(rival.environment)
        check_answers_known(work)
    except FileNotFoundError as error:
        raise CouldNotRun(str(error)) from None
    limit_s = starting_s + warmup_s + measure_s
    before = _shared_memory(rival.leaves)
    with tempfile.TemporaryDirectory(prefix="rival-", ignore_cleanup_errors=True) as folder:
        out, log = Path(folder, "out.npz"), Path(folder, "log")
        command = [sys.executable, "-m", "benchmarks.rivals.kept", limit_s]
        command += [python, "-m", "benchmarks.rivals", f"{rival.home}.{rival.module}"]
        command += [json.dumps(dict(rival.options)), rival.package or "", work.name]
        command += [load.producers, load.in_flight, load.rate_per_s or 0, warmup_s, measure_s, out]
        environment = {
            **os.environ,
            **rival.variables,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore:resource_tracker",  # what it tidies up is no reason
            "TMPDIR": folder,
        }
        try:
            status = _run([str(part) for part in command], folder, environment, log)
        finally:
            left = _shared_memory((Path(folder).name,)) | _shared_memory(rival.leaves) - before
            for path in left:
                path.unlink(missing_ok=True)
        if status != 0:
            timed_out = status == kept.TOO_LONG
            how = f"not done after {limit_s:.0f} s" if timed_out else f"exit status {status}"
            raise CouldNotRun(f"{how}: {_last_lines(log, folder)}")
        with np.load(out) as arrays:
            latencies = [arrays[f"producer_{i}"] for i in range(load.producers)]
            version = str(arrays["version"])
    # In an open loop a producer may have nothing to do for so long.
    if not (all if load.rate_per_s is None else any)(map(len, latencies)):
        raise CouldNotRun("a producer finished no call in the measured time")
    return Measured(latencies, version)


def _run(command: list[str], folder: str, environment: dict[str, str], log: Path) -> int:
    """Run the command, which is `kept`; interrupted, have it end everything all the same."""
    with log.open("wb") as written:
        keeper = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who then tell it
        )
        try:
            return keeper.wait()
        finally:
            keeper.terminate()
            keeper.wait()


def _shared_memory(beginnings: tuple[str, ...]) -> set[Path]:
    return {
        entry
        for entry in SHARED_MEMORY.iterdir()
        if beginnings and entry.name.startswith(beginnings)
    }


def _last_lines(log: Path, folder: str) -> str:
    """What a rival wrote last, without what its paths have of this machine."""
    text = log.read_text(errors="replace").replace(f"{ROOT}/", "").replace(folder, "TMPDIR")
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(line.strip() for line in lines[-LINES:]) or "wrote nothing"
