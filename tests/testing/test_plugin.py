"""The fixtures `executor` and `kill_executor`, as a user's tests get them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmbatch import errors
from shmbatch.testing.executors import ExecutorProcess
from tests.processes import APPS, ROOT, environment
from tests.testing.functions import app

# An executor's life is the same over both; other tests show that.
pytestmark = pytest.mark.no_transport


@pytest.mark.slow
def test_an_executor_serves_a_file_and_an_app(executor: Callable[..., ExecutorProcess]) -> None:
    calls = executor(APPS / "flat.py")
    mine = executor(app)
    assert calls.name != mine.name
    assert mine.connect("scaled").remote(2.0, 3) == 6.0
    assert mine.statistics()["functions"]["scaled"]["calls_done"] == 1
    assert calls.statistics()["pid"] == calls.pid
    mine.stop()
    mine.stop()
    assert mine.status == 0


def test_a_killed_executor_is_dead_and_nobody_complains(
    executor: Callable[..., ExecutorProcess], kill_executor: Callable[[Any], None]
) -> None:
    served = executor("../apps/flat.py")  # beside this file
    triple = served.connect("triple")
    assert triple.remote(2) == 6
    kill_executor(served)
    assert served.status == -signal.SIGKILL
    with pytest.raises(errors.ExecutorGone):
        triple.remote(2)
    with pytest.raises(ProcessLookupError):
        os.kill(served.pid, 0)
    with pytest.raises(errors.ConfigError, match=f"there is no process {served.pid}"):
        kill_executor(served.pid)
    with pytest.raises(errors.ConfigError, match="does not run; there is nothing to kill"):
        kill_executor(served)  # whose pid may be another's


def test_what_cannot_be_started_is_refused(executor: Callable[..., ExecutorProcess]) -> None:
    with pytest.raises(errors.LoadError, match=r"there is no file 'nothing\.py', neither in"):
        executor("nothing.py")
    with pytest.raises(errors.LoadError, match="has no app 'other'"):
        executor(APPS / "flat.py", app="other")
    for option in ("transport", "device", "wait"):
        with pytest.raises(errors.ConfigError, match=f"{option} is 'x'"):
            executor(APPS / "flat.py", **{option: "x"})
    with pytest.raises(errors.ConfigError, match="None is no executor's target; give a file"):
        executor(None)


USERS_TESTS = """
    import os, signal
    import pytest

    def test_good(executor, kill_executor):
        served = executor("served.py")
        assert served.connect("double").remote(4) == 8

    def test_ends_badly(executor):
        call = executor("served.py").connect("leave").spawn(3)
        with pytest.raises(ConnectionError):
            call.get()

    def test_expected(executor):
        served = executor("served.py")
        call = served.connect("leave").spawn(3)
        assert served.wait() == 3

    def test_killed_by_other_means(executor):
        os.kill(executor("served.py").pid, signal.SIGKILL)
"""

SERVED = """
    import os
    import shmbatch

    app = shmbatch.App()

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def double(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def leave(xs: list[int]) -> list[int]:
        os._exit(xs[0])
"""


@pytest.mark.slow
def test_a_test_fails_where_its_executor_has_not_ended_well(tmp_path: Path) -> None:
    from textwrap import dedent

    (tmp_path / "served.py").write_text(dedent(SERVED))
    (tmp_path / "test_users.py").write_text(dedent(USERS_TESTS))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "4 passed, 2 errors" in ran.stdout, ran.stdout + ran.stderr
    for test, status in (("ends_badly", 3), ("killed_by_other_means", -9)):
        assert f"ERROR test_users.py::test_{test} - " in ran.stdout
        assert f"served.py' ended with status {status}; see its output" in ran.stdout


def test_the_plugin_loads_nothing_that_takes_time() -> None:
    code = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import shmbatch.testing.plugin\n"
        "print(sorted(set(sys.modules) - before))\n"
        "from shmbatch.testing import *\n"
        "print([name for name in ('torch', 'hypothesis', 'jaxtyping') if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    loaded = ["shmbatch", "shmbatch.errors", "shmbatch.testing", "shmbatch.testing.plugin"]
    assert ran.stdout.splitlines() == [str(loaded), "[]"], ran.stderr
