"""A user without a home that can be written to, as in many containers, is served all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import shmbatch
from tests.programs import SERVED, ran, written

PRINTS = """
    @app.local_entrypoint()
    def main():
        print(double.remote(4))
"""


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # root may write to any folder
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "home"))


@pytest.mark.slow
@pytest.mark.no_transport
@pytest.mark.usefixtures("homeless")
def test_without_a_home_everything_runs_but_a_log_must_be_chosen(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED, PRINTS)
    result = ran("run", file)
    assert (result.stdout, result.stderr, result.returncode) == ("8\n", "", 0)
    refused = ran("start", file, "--detach")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    (said,) = refused.stderr.splitlines()
    assert "--log" in said
    assert ran("start", file, "--detach", "--log", tmp_path / "log").returncode == 0
    assert shmbatch.connect("served.double").remote(4) == 8
    shmbatch.stop("served")
