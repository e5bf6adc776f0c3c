from __future__ import annotations

from pathlib import Path

import pytest

import shmbatch
from tests.programs import SERVED, ran, started, written


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
        assert process.poll() == 1
        assert list(sockets.iterdir()) == []
        with pytest.raises(shmbatch.errors.ExecutorGone):
            waiting.get(timeout=60)


def test_stopping_what_is_not_served_is_a_problem(tmp_path: Path) -> None:
    result = ran("stop", "served")
    assert result.stderr == "error: no executor serves 'served'\n"
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
