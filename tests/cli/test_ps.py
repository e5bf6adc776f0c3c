from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shmbatch
from shmbatch.protocol import owners
from tests import processes
from tests.programs import GATED, SERVED, SLOW, environment, ran, started, written


def listed() -> list[dict[str, Any]]:
    result = ran("ps", "--json")
    assert (result.stderr, result.returncode) == ("", 0)
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def serves(name: str) -> None:
    def serving() -> bool:
        owner = owners.owner(name)
        return owner is not None and owner.state == "serving"

    processes.wait_until(serving, f"{name} is served")


def test_it_prints_who_serves_what(tmp_path: Path, transport: str) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file, "--transport", transport) as process:
        serves("served")
        handles = [shmbatch.connect(f"served.{name}") for name in ("double", "pid")]
        (one,) = listed()
        before_s, after_s = one.pop("uptime_s"), shmbatch.statistics("served")["uptime_s"]
        assert 0 <= before_s <= after_s
        assert one == {
            "name": "served",
            "pid": process.pid,
            "state": "serving",
            "transport": transport,
            "producers": 2,
            "functions": {"double": 1, "never": 0, "pid": 1},
            "file": str(file),
        }
        header, line = ran("ps").stdout.splitlines()
        assert header.split() == (
            ["NAME", "PID", "STATE", "UPTIME", "TRANSPORT", "PRODUCERS", "FUNCTIONS", "FILE"]
        )
        assert line.split()[:3] == ["served", str(process.pid), "serving"]
        assert line.split()[4:] == [transport, "2", "double,never,pid", str(file)]
        assert header.index("FILE") == line.index(str(file)), "columns are aligned"
        del handles
        shmbatch.stop("served")


def test_where_nobody_serves_there_is_the_header_alone() -> None:
    assert ran("ps").stdout.splitlines() == [
        "NAME  PID  STATE  UPTIME  TRANSPORT  PRODUCERS  FUNCTIONS  FILE"
    ]
    assert listed() == []


def test_one_that_loads_is_there_and_says_no_more_than_it_can(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SLOW, SERVED)
    with started("start", file, "--name", "given") as process:
        processes.wait_until(
            lambda: (owner := owners.owner("given")) and owner.file, "it has its name"
        )
        (one,) = listed()
        assert (one["name"], one["pid"], one["state"]) == ("given", process.pid, "loading")
        assert (one["functions"], one["producers"], one["file"]) == (None, None, str(file))
        assert ran("ps").stdout.splitlines()[1].split()[4:7] == ["-", "-", "-"]
        (tmp_path / "go").touch()
        serves("given")
        assert listed()[0]["state"] == "serving"
        shmbatch.stop("given")


def test_one_that_drains_is_there(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED, GATED)) as process:
        running = shmbatch.connect("served.gated", timeout=60).spawn(7)
        processes.wait_until((tmp_path / "entered").exists, "the function runs")
        process.send_signal(signal.SIGTERM)
        processes.wait_until(lambda: owners.owner("served").state == "draining", "it drains")
        (one,) = listed()
        assert (one["pid"], one["state"]) == (process.pid, "draining")
        (tmp_path / "gate").touch()
        assert running.get(timeout=60) == 7
        assert process.wait(60) == 0


def test_one_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file) as stopped, started("start", file, "--name", "other") as other:
        serves("served")
        serves("other")
        stopped.send_signal(signal.SIGSTOP)
        try:
            states = {each["name"]: (each["pid"], each["state"]) for each in listed()}
        finally:
            stopped.send_signal(signal.SIGCONT)
        assert states == {
            "served": (stopped.pid, "not answering"),
            "other": (other.pid, "serving"),
        }
        shmbatch.stop("served")
        shmbatch.stop("other")


def test_what_dead_executors_left_is_not_printed_and_not_removed(
    tmp_path: Path, sockets: Path, transport: str
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file, "--transport", transport) as process:
        shmbatch.connect("served.double", timeout=60)
        process.kill()
        process.wait()
    left = sorted(sockets.iterdir())
    assert left != []
    assert listed() == []
    assert "no executor serves 'served'" in ran("stats", "served").stderr
    assert sorted(sockets.iterdir()) == left
    assert ran("stop", "served").returncode == 1
    assert list(sockets.iterdir()) == []


def test_inside_a_run_names_are_what_they_are(tmp_path: Path) -> None:
    """There an app's name means the run's executor; the one that is printed is another's."""
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file) as process:
        serves("served")
        result = ran("ps", "--json", SHMBATCH_NAMES="served=run-1")
        (one,) = json.loads(result.stdout)
        assert (one["pid"], one["state"]) == (process.pid, "serving")
        shmbatch.stop("served")


def test_a_directory_open_to_others_is_refused(sockets: Path) -> None:
    shared = sockets / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    result = ran("ps", SHMBATCH_DIR=os.fspath(shared))
    assert f"error: directory '{shared}' has mode 0755 and must have 0700" in result.stderr
    assert (result.stdout, result.returncode) == ("", 1)
    shared.rmdir()


@pytest.mark.no_transport
def test_a_path_moves_no_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb\x1b[31m"
    folder.mkdir()
    with started("start", written(folder, "served.py", SERVED)):
        serves("served")
        assert ran("ps").stdout.splitlines()[1].endswith(r"/a\nb\x1b[31m/served.py")
        assert listed()[0]["file"] == str(folder / "served.py")
        shmbatch.stop("served")


@pytest.mark.no_transport
@pytest.mark.parametrize("limit", [5, 6, 7, 8])
@pytest.mark.parametrize("verb", [["ps"], ["stats", "served"], ["stop", "served"]])
def test_too_few_descriptors_are_one_line(tmp_path: Path, verb: list[str], limit: int) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)):
        serves("served")
        command = [sys.executable, "-m", "shmbatch"]
        result = subprocess.run(
            ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", *command, *verb],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        if result.returncode:
            assert re.fullmatch(r"error: .*`ulimit -n`\n", result.stderr), result.stderr
            assert result.returncode == 1
        if owners.owner("served"):
            shmbatch.stop("served")
