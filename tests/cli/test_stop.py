from __future__ import annotations

import gc
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

import shmbatch
from shmbatch import errors
from shmbatch.client import stopping
from shmbatch.client.handshake import unserved
from shmbatch.protocol import owners
from tests import processes
from tests.programs import DEAF, HANGING, SERVED, ran, started, written


def test_stop_returns_when_the_process_is_gone(tmp_path: Path, sockets: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        shmbatch.connect("served.double", timeout=60)
        result = ran("stop", "served")
        assert process.poll() == 0, "stop returned before the executor had ended"
        assert list(sockets.iterdir()) == []
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_stop_lets_calls_already_made_finish_and_refuses_later_ones(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        never = shmbatch.connect("served.never", timeout=60)
        waiting = [never.spawn(i) for i in range(3)]
        assert ran("stop", "served").returncode == 0
        assert process.poll() == 0
        assert [call.get(timeout=60) for call in waiting] == [0, 1, 2]
        with pytest.raises(shmbatch.errors.ExecutorClosed, match="takes no more calls"):
            never.remote(3)
        with pytest.raises(shmbatch.errors.ExecutorNotFound, match="no executor serves 'served'"):
            never.remote(3)


def test_stop_now_loses_calls_already_made(tmp_path: Path, sockets: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        waiting = shmbatch.connect("served.never", timeout=60).spawn(1)
        assert ran("stop", "served", "--now").returncode == 0
        assert process.poll() == 0, "as it was asked to"
        assert process.stderr is not None
        assert "served stops now, 1 calls lost\n" in process.stderr.read()
        assert list(sockets.iterdir()) == []
        with pytest.raises(shmbatch.errors.ExecutorGone):
            waiting.get(timeout=60)


def test_stopping_what_is_not_served_is_a_problem(tmp_path: Path) -> None:
    result = ran("stop", "served")
    assert result.stderr == f"error: {unserved('served')}\n"
    assert (result.stdout, result.returncode) == ("", 1)


def test_stopping_a_killed_executor_removes_what_it_left(tmp_path: Path, sockets: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        shmbatch.connect("served.double", timeout=60)
        process.kill()
        process.wait()
        assert list(sockets.iterdir()) != []
        assert ran("stop", "served").returncode == 1
        assert list(sockets.iterdir()) == []


def test_a_bad_name_is_refused() -> None:
    result = ran("stop", "../served")
    assert result.stderr.startswith("error: app name is '../served'; a name is 1 to 40 ")
    assert result.returncode == 1


def test_stop_sees_private_names_from_inside_a_run(tmp_path: Path) -> None:
    main = """
    @app.local_entrypoint()
    def main():
        print(double.remote(2))
        shmbatch.stop("served")
        try:
            double.remote(2)
        except shmbatch.errors.ShmbatchError as error:
            print(type(error).__name__)
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main))
    assert (result.stdout, result.returncode) == ("4\nExecutorClosed\n", 0), result.stderr


def test_several_are_stopped_and_who_is_not_found_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file) as one, started("start", file, "--name", "other") as other:
        for name in ("served", "other"):
            shmbatch.connect(f"{name}.double", timeout=60)
        result = ran("stop", "served", "none", "other", "served", "no/name")
        assert (one.poll(), other.poll()) == (0, 0)
    assert result.stderr.splitlines() == [
        f"error: {unserved('none')}",
        "error: app name is 'no/name'; a name is 1 to 40 ASCII letters, digits, '_' or '-'",
    ]
    assert (result.stdout, result.returncode) == ("", 1)


def test_all_of_them_are_stopped_at_the_same_time_and_named(tmp_path: Path) -> None:
    """Each finishes its call only after the other was told, so one after the other would hang."""
    told = """
    import pathlib, time

    name = pathlib.Path(__file__)

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    async def both(xs: list[int]) -> list[int]:
        import asyncio
        from shmbatch.protocol import owners
        while any(owner.state != "draining" for owner in owners.owners()):
            await asyncio.sleep(0.001)
        return xs
    """
    file = written(tmp_path, "served.py", SERVED, told)
    with started("start", file) as one, started("start", file, "--name", "other") as other:
        calls = [shmbatch.connect(f"{name}.both", timeout=60).spawn(3) for name in APPS]
        result = ran("stop", "--all")
        assert (one.poll(), other.poll()) == (0, 0)
        assert [call.get(timeout=60) for call in calls] == [3, 3]
    assert (result.stdout, result.stderr, result.returncode) == ("other\nserved\n", "", 0)


APPS = ("served", "other")


def test_where_there_is_none_all_of_them_are_none() -> None:
    result = ran("stop", "--all")
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


@pytest.mark.parametrize("arguments", [[], ["--all", "served"]])
def test_names_and_all_are_wrong_usage_together_and_when_both_are_missing(
    arguments: list[str],
) -> None:
    result = ran("stop", *arguments)
    assert "give names, or --all" in result.stderr
    assert (result.stdout, result.returncode) == ("", 2)


ENDLESS = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    async def endless(xs: list[int]) -> list[int]:
        import asyncio, pathlib
        pathlib.Path(__file__).with_name("entered").touch()
        await asyncio.Event().wait()
"""


def watches(pid: int) -> bool:
    """Say whether a process has got hold of another one."""
    return "anon_inode:[pidfd]" in processes.descriptors(pid).values()


def test_one_that_drains_is_waited_for_and_may_be_ended_now(tmp_path: Path, sockets: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED, ENDLESS)) as process:
        running = shmbatch.connect("served.endless", timeout=60).spawn(1)
        processes.wait_until((tmp_path / "entered").exists, "the function runs")
        process.send_signal(signal.SIGTERM)
        processes.wait_until(lambda: owners.owner("served").state == "draining", "it drains")
        with started("stop", "served") as waiting:
            processes.wait_until(lambda: watches(waiting.pid), "it waits")
            assert ran("stop", "served", "--now").returncode == 0
            assert process.wait(60) != 0
            assert waiting.wait(60) == 0
        assert list(sockets.iterdir()) == []
        with pytest.raises(shmbatch.errors.ExecutorGone):
            running.get(timeout=60)


@pytest.mark.parametrize(
    "text", [HANGING, pytest.param(DEAF, marks=pytest.mark.slow)], ids=["hears", "deaf"]
)
def test_one_that_loads_is_interrupted(tmp_path: Path, sockets: Path, text: str) -> None:
    file = written(tmp_path, "served.py", text)
    with started("start", file, "--name", "given") as process:
        processes.wait_until((tmp_path / "importing").exists, "the file is being imported")
        result = ran("stop", "given")
        assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
        assert process.poll() is not None
        assert list(sockets.iterdir()) == []


@pytest.mark.slow
def test_one_that_does_not_answer_is_killed_if_it_is_to_end_now(
    tmp_path: Path, sockets: Path, transport: str
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file, "--transport", transport) as process:
        shmbatch.connect("served.double", timeout=60)
        process.send_signal(signal.SIGSTOP)
        assert ran("stop", "--all", "--now").stdout == "served\n"
        assert process.poll() == -signal.SIGKILL
        assert list(sockets.iterdir()) == []


@pytest.mark.slow
def test_one_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, sockets: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ANSWER_S", 0.5)
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file, "--transport", transport) as process:
        shmbatch.connect("served.double", timeout=60)
        process.send_signal(signal.SIGSTOP)
        remedy = r"answer within 0\.5 seconds; .*; end it with `shmbatch stop served --now`$"
        with pytest.raises(shmbatch.errors.ExecutorNotFound, match=remedy):
            shmbatch.stop("served")
        assert process.poll() is None
        assert ran("stop", "served", "--now").returncode == 0
        assert process.poll() == -signal.SIGKILL
        assert list(sockets.iterdir()) == []


@pytest.mark.no_transport
def test_to_kill_one_that_has_just_died_is_no_fault() -> None:
    process = subprocess.Popen(["true"])
    ending = stopping._Ending("served", process.pid, os.pidfd_open(process.pid), None)
    process.wait()
    stopping._kill(ending)
    ending.close()


@pytest.mark.no_transport
def test_what_is_no_lock_file_keeps_none_from_being_stopped(tmp_path: Path, sockets: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        shmbatch.connect("served.double", timeout=60)
        (sockets / "folder.lock").mkdir()
        (sockets / "link.lock").symlink_to(sockets / "nothing")
        try:
            assert ran("ps").stdout.splitlines()[1].split()[:2] == ["served", str(process.pid)]
            result = ran("stop", "--all")
            assert (result.stdout, result.stderr, result.returncode) == ("served\n", "", 0)
        finally:
            (sockets / "folder.lock").rmdir()
            (sockets / "link.lock").unlink()


def refusals() -> int:
    return sum(type(each) is errors.ExecutorNotFound for each in gc.get_objects())


def test_a_refused_stop_leaves_nothing_for_the_garbage_collector(sockets: Path) -> None:
    """The caller's frames, and what they hold, would live until the next collection."""
    gc.collect()
    gc.disable()
    try:
        before = refusals()  # that other test files hold
        with suppress(errors.ExecutorNotFound):
            shmbatch.stop("nobody")
        assert refusals() == before
    finally:
        gc.enable()
