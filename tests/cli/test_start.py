from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

import shmbatch
from tests.programs import SERVED, Watched, ended, ran, serving, started, written

GATED = """
    import pathlib, time

    gate = pathlib.Path(__file__).with_name("gate")

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def gated(xs: list[int]) -> list[int]:
        gate.with_name("entered").touch()
        while not gate.exists():
            time.sleep(0.001)
        return xs
"""


def test_start_serves_in_the_foreground_and_writes_no_standard_output(tmp_path: Path) -> None:
    with serving(written(tmp_path, "served.py", SERVED)) as process:
        double = shmbatch.connect("served.double")
        assert double.remote(21) == 42
        assert shmbatch.connect("served.pid").remote(0) == process.pid
        shmbatch.stop("served")
        output, _ = process.communicate(timeout=60)
        assert (output, process.returncode) == ("", 0)


def test_a_name_of_its_own_replaces_the_apps(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with serving(file, "--name", "other"), serving(file):
        assert shmbatch.connect("other.pid").remote(0) != shmbatch.connect("served.pid").remote(0)
        shmbatch.stop("other")
        assert shmbatch.connect("served.double").remote(4) == 8
        shmbatch.stop("served")


def test_a_name_already_served_is_refused_and_its_owner_goes_on(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with serving(file) as process:
        refused = ran("start", file)
        assert refused.stderr == (
            f"error: name 'served' is already served by process {process.pid}; "
            f"stop it with `shmbatch stop served` or choose another --name\n"
        )
        assert (refused.stdout, refused.returncode) == ("", 1)
        assert shmbatch.connect("served.double").remote(1) == 2
        shmbatch.stop("served")


def test_of_many_started_at_once_under_one_name_one_serves(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started("start", file)) for _ in range(4)]
        served_by = shmbatch.connect("served.pid", timeout=60).remote(0)
        refused = [each for each in processes if each.pid != served_by]
        assert [ended(each)[0] for each in refused] == [1, 1, 1]
        shmbatch.stop("served")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_calls_already_made_finish(tmp_path: Path, number: signal.Signals) -> None:
    with serving(written(tmp_path, "served.py", SERVED, GATED)) as process:
        running = shmbatch.connect("served.gated").spawn(7)
        waiting = [shmbatch.connect("served.never").spawn(i) for i in range(3)]
        while not (tmp_path / "entered").exists():
            os.sched_yield()
        process.send_signal(number)
        (tmp_path / "gate").touch()
        assert running.get(timeout=60) == 7
        assert [call.get(timeout=60) for call in waiting] == [0, 1, 2]
        assert ended(process)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with serving(written(tmp_path, "served.py", SERVED, GATED)) as process:
        running = shmbatch.connect("served.gated").spawn(7)
        while not (tmp_path / "entered").exists():
            os.sched_yield()
        gone = Watched(process.pid)
        with gone:
            while not gone.gone(0.05):  # the function never ends by itself
                process.send_signal(number)
        assert ended(process)[0] == 128 + number
        with pytest.raises(shmbatch.errors.ExecutorGone):
            running.get(timeout=60)


def test_a_killed_executor_leaves_a_name_that_the_next_one_takes(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with serving(file) as process:
        assert shmbatch.connect("served.double").remote(1) == 2
        process.kill()
        ended(process)
    with serving(file):  # and who connects now does not get the dead one's connection
        assert shmbatch.connect("served.double").remote(1) == 2
        shmbatch.stop("served")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import shmbatch\n1 / 0",
            "does not import: ZeroDivisionError: division by zero (line 2)",
        ),
        ("import shmbatch\nx = 1", "has no app; add `app = shmbatch.App()`"),
        (
            "import shmbatch\napp = shmbatch.App()",
            "has no functions; add one with @app.function()",
        ),
        (
            "import shmbatch\napp = shmbatch.App('a b')",
            "app name is 'a b'; a name is 1 to 40 ASCII letters, digits, '_' or '-'",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(
    tmp_path: Path, text: str, message: str
) -> None:
    for options in ([], ["--name", "given"]):
        result = ran("start", written(tmp_path, "served.py", text), *options)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert (result.stdout, result.returncode) == ("", 1)


def test_a_bad_name_is_refused_before_the_file_is_loaded(tmp_path: Path) -> None:
    result = ran("start", written(tmp_path, "served.py", "1 / 0"), "--name", "a/b")
    assert result.stderr.startswith("error: app name is 'a/b'; a name is 1 to 40 ")
    assert result.returncode == 1


def test_a_directory_open_to_others_is_refused(tmp_path: Path, sockets: Path) -> None:
    shared = sockets / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    refused = ran("start", written(tmp_path, "served.py", SERVED), SHMBATCH_DIR=str(shared))
    assert f"directory '{shared}' has mode 0755 and must have 0700" in refused.stderr
    assert refused.returncode == 1
    shared.rmdir()


def test_calling_an_executor_from_inside_itself_is_refused(tmp_path: Path) -> None:
    inside = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def inside(xs: list[int]) -> list[int]:
        return [double.remote(x) for x in xs]
    """
    with serving(written(tmp_path, "served.py", SERVED, inside)):
        with pytest.raises(shmbatch.errors.ConfigError, match="is called inside its own executor"):
            shmbatch.connect("served.inside").remote(1)
        shmbatch.stop("served")


def test_an_executor_drains_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file, "--supervisor-fd", ours, pass_fds=(ours,)) as process:
        os.close(ours)
        waiting = shmbatch.connect("served.never", timeout=60).spawn(3)
        os.close(theirs)
        assert waiting.get(timeout=60) == 3
        assert ended(process)[0] == 0


@pytest.mark.no_transport  # posix has no slots to be that greedy with; see test_posix
def test_more_slots_than_there_is_memory_for_are_refused_and_others_go_on(tmp_path: Path) -> None:
    greedy = """
    import numpy as np
    from jaxtyping import UInt8

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0, slots=131_072)
    def greedy(xs: UInt8[np.ndarray, "batch 16777216"]) -> list[int]:
        return [0 for _ in xs]
    """
    with serving(written(tmp_path, "served.py", SERVED, greedy)):
        with pytest.raises(shmbatch.errors.HandshakeError) as caught:
            shmbatch.connect("served.greedy")
        assert "one more of 'served.greedy' takes 2199" in str(caught.value)
        assert "give the function fewer slots with slots=" in str(caught.value)
        assert shmbatch.connect("served.double").remote(1) == 2
        shmbatch.stop("served")
