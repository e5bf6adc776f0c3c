"""`shmbatch doctor`: what it prints, how it ends, what it removes, and whom it finds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shmbatch.cli import doctor
from shmbatch.doctor import machine
from shmbatch.protocol import leftovers, owners
from tests.processes import wait_until
from tests.programs import SERVED, ran, started, written


def of(subject: str, found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["level"], each["found"]) for each in found if each["subject"] == subject]


def examined(*options: str) -> list[dict[str, Any]]:
    """What it says of this process, on whatever machine."""
    result = CliRunner().invoke(doctor.command, ["--json", *options])
    found: list[dict[str, Any]] = json.loads(result.output)
    assert result.exit_code == any(each["level"] == "problem" for each in found)
    return found


@pytest.mark.no_transport
def test_it_prints_a_line_for_each_check_and_the_remedy_below() -> None:
    result = ran("doctor", SHMBATCH_WAIT="swim")
    assert (result.stderr, result.returncode) == ("", 1)
    lines = result.stdout.splitlines()
    words = ["problem", "settings", "SHMBATCH_WAIT", "is", "'swim'"]
    at = [line.split() for line in lines].index(words)
    assert lines[at + 1].strip() == "-> it must be one of auto, spin, park"
    assert sum(line.startswith("ok ") for line in lines) > 5


@pytest.mark.no_transport
def test_a_directory_that_cannot_be_used_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("SHMBATCH_DIR", str(tmp_path / "file"))
        found = examined()
    assert of("directory of sockets", found) == [
        ("problem", f"'{tmp_path}/file' is not a directory")
    ]
    assert of("executors", found) == []


@pytest.mark.no_transport
def test_without_a_home_executors_in_the_background_have_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file" / "state"))
    found = examined()
    ((level, text),) = of("logs", found)
    assert (level, text.endswith(f"'{tmp_path}/file' is no directory")) == ("warning", True)


@pytest.mark.no_transport
def test_it_finds_who_lives_who_is_deaf_and_what_the_dead_have_left(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the real one: other tests look at what is left there, too.
    shm = tmp_path / "shm"
    shm.mkdir()
    monkeypatch.setattr(machine, "SHARED_MEMORY", shm)
    monkeypatch.setattr(leftovers, "_SHARED_MEMORY", shm)
    file = written(tmp_path, "served.py", SERVED)

    def serves(name: str) -> bool:
        owner = owners.owner(name)
        return owner is not None and owner.state == "serving"

    with (
        started("start", file, "--name", "well") as well,
        started("start", file, "--name", "deaf") as deaf,
        started("start", file, "--name", "dead") as dead,
    ):
        for name in ("well", "deaf", "dead"):
            wait_until(lambda name=name: serves(name), f"{name} is served")
        deaf.send_signal(signal.SIGSTOP)
        dead.kill()
        dead.wait()
        (shm / f"shmbatch-{dead.pid}-ab").touch()
        os.utime(shm / f"shmbatch-{dead.pid}-ab", (1, 1))
        (shm / f"shmbatch-{well.pid}-cd").touch()
        found = examined()
        answers, silent = of("executors", found)[::-1]
        assert silent[0] == "warning"
        assert silent[1].startswith(f"deaf (process {deaf.pid}, serving) does not answer: ")
        assert answers == ("ok", f"well (process {well.pid}, serving)")
        left = f"name dead, /dev/shm/shmbatch-{dead.pid}-ab"
        assert of("left by the dead", found) == [("warning", left)]
        deaf.kill()  # to ask it takes a second
        deaf.wait()
        left = f"name dead, name deaf, /dev/shm/shmbatch-{dead.pid}-ab"
        assert of("left by the dead", examined("--fix")) == [("ok", f"removed: {left}")]
        assert {path.stem for path in sockets.iterdir()} == {"well"}
        assert [entry.name for entry in shm.iterdir()] == [f"shmbatch-{well.pid}-cd"]
        assert of("left by the dead", examined()) == [("ok", "nothing")]
        assert ran("stop", "well").returncode == 0
