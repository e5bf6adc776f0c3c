from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import shmbatch
from shmbatch.app.load import load_file
from shmbatch.errors import ConfigError, ExecutorGone, ExecutorNotFound, LoadError
from shmbatch.protocol import names, owners
from tests.processes import wait_until
from tests.programs import FIRST_PROGRAM, GATED, SERVED, Watched, line, ran, started, written


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ModuleType]:
    """The served program, imported in this process."""
    path = list(sys.path)
    yield load_file(written(tmp_path, "user_served.py", SERVED, GATED))
    del sys.modules["user_served"]
    sys.path[:] = path


def test_a_program_that_runs_its_own_app_is_a_script(tmp_path: Path) -> None:
    script = """
    if __name__ == "__main__":
        import asyncio

        with app.run():
            asyncio.run(main())
    """
    result = ran(written(tmp_path, "sums.py", FIRST_PROGRAM, script), python=True)
    assert result.stdout == "Sum: 301\nSum: 202\nSum: 103\n"
    assert (result.stderr, result.returncode) == ("", 0)


def test_handles_reach_the_running_app_and_nothing_outside_it(served: ModuleType) -> None:
    with pytest.raises(ExecutorNotFound):
        served.double.remote(1)
    with served.app.run() as running:
        assert served.double.remote(21) == 42
        assert served.pid.remote(0) == running.pid
    with pytest.raises(ExecutorNotFound):
        served.double.remote(1)


def test_leaving_finishes_calls_already_made_and_ends_the_process(served: ModuleType) -> None:
    with served.app.run() as running:
        waiting = [served.never.spawn(i) for i in range(3)]
        executor = Watched(running.pid)
    with executor:
        assert executor.gone(0)
    assert running.pid is None
    assert [call.get() for call in waiting] == [0, 1, 2]


def test_an_app_runs_again_and_again(served: ModuleType) -> None:
    running = served.app.run()
    pids = set()
    for _ in range(3):
        with running:
            pids.add(served.pid.remote(0))
    assert len(pids) == 3


def test_an_app_running_within_itself_gives_its_name_back(served: ModuleType) -> None:
    with served.app.run() as outer:
        assert served.pid.remote(0) == outer.pid
        with served.app.run() as inner:
            assert shmbatch.connect("user_served.pid").remote(0) == inner.pid != outer.pid
        assert shmbatch.connect("user_served.pid").remote(0) == outer.pid
        assert served.pid.remote(0) == outer.pid


def test_one_context_cannot_be_entered_twice_at_once(served: ModuleType) -> None:
    running = served.app.run()
    with running:
        with pytest.raises(ConfigError, match="app 'user_served' runs already in this context"):
            running.__enter__()
        assert served.double.remote(1) == 2


def test_a_pickled_handle_carries_the_private_name(served: ModuleType, tmp_path: Path) -> None:
    reader = "import pickle, sys\nprint(pickle.load(open(sys.argv[1], 'rb')).remote(21))"
    with served.app.run():
        handle = pickle.dumps(served.double)
        # No environment tells the child, and it has not the user's file.
        (tmp_path / "handle").write_bytes(handle)
        result = ran("-c", reader, tmp_path / "handle", python=True, SHMBATCH_NAMES="")
        assert (result.stdout, result.stderr) == ("42\n", "")
        assert pickle.loads(handle).remote(4) == 8


def test_an_executor_that_cannot_load_the_file_says_why(
    tmp_path: Path, served: ModuleType
) -> None:
    (tmp_path / "user_served.py").write_text("1 / 0")
    with pytest.raises(LoadError, match="does not import: ZeroDivisionError: division by zero"):
        served.app.run().__enter__()
    assert "SHMBATCH_NAMES" not in os.environ


def test_an_executor_that_dies_while_it_starts_is_gone(tmp_path: Path, served: ModuleType) -> None:
    (tmp_path / "user_served.py").write_text("import os\nos._exit(3)")
    with pytest.raises(ExecutorGone, match="executor of app 'user_served' died while it started"):
        served.app.run().__enter__()


def test_a_wrong_wait_transport_or_device_is_refused(served: ModuleType) -> None:
    with pytest.raises(ConfigError, match="wait is 'sleep'; it must be one of auto, spin, park"):
        served.app.run(wait="sleep")
    with pytest.raises(ConfigError, match="transport is 'pigeon'; it must be one of linux, posix"):
        served.app.run(transport="pigeon")
    with pytest.raises(ConfigError, match="device is 'tpu'; use auto, cpu, cuda or cuda:N, as in"):
        served.app.run(device="tpu")


def test_the_device_goes_to_the_executor(served: ModuleType) -> None:
    with served.app.run(device="cpu") as running:
        arguments = Path(f"/proc/{running.pid}/cmdline").read_text().split("\0")
        assert shmbatch.statistics(names.resolve("user_served"))["device"] == "cpu"
    assert arguments[arguments.index("--device") + 1] == "cpu"
    with served.app.run() as running:  # which the environment may decide
        assert "--device" not in Path(f"/proc/{running.pid}/cmdline").read_text()


@pytest.mark.parametrize("wait", ["auto", "spin", "park"])
def test_how_to_wait_goes_to_the_executor_and_to_producers(
    served: ModuleType, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_WAIT", "park")
    with served.app.run(wait=wait):
        assert os.environ["SHMBATCH_WAIT"] == wait
        assert served.double.remote(21) == 42
    assert os.environ["SHMBATCH_WAIT"] == "park"


def test_a_killed_executor_comes_back(served: ModuleType) -> None:
    with served.app.run() as running:
        first = served.pid.remote(0)
        os.kill(first, signal.SIGKILL)
        later = served.pid.remote(0)
        assert running.pid == later != first
    assert running.pid is None


def test_a_call_that_waited_runs_in_the_next_executor_and_one_that_ran_is_lost(
    tmp_path: Path, served: ModuleType
) -> None:
    with served.app.run() as running:
        lost, waiting = served.gated.spawn(1), served.gated.spawn(2)
        wait_until((tmp_path / "entered").exists, "the first one runs")
        os.kill(running.pid, signal.SIGKILL)
        (tmp_path / "gate").touch()
        assert waiting.get(timeout=60) == 2
        with pytest.raises(ExecutorGone, match="died; calls that it had taken may or may not"):
            lost.get(timeout=60)


@pytest.mark.slow  # four pauses, and five executors that do not start
def test_an_executor_that_does_not_come_back_is_gone_with_the_cause(
    tmp_path: Path, served: ModuleType
) -> None:
    with served.app.run() as running:
        assert served.double.remote(1) == 2
        waiting = served.never.spawn(1)
        (tmp_path / "user_served.py").write_text("1 / 0")
        os.kill(running.pid, signal.SIGKILL)
        for call in (waiting.get, lambda: served.double.remote(1)):
            with pytest.raises(ExecutorGone, match="did not start 5 times in a row: Load"):
                call()
        assert running.pid is None


def test_an_exception_in_the_context_stops_the_executor_too(served: ModuleType) -> None:
    def fail() -> None:
        with served.app.run() as running:
            watched.append(Watched(running.pid))
            raise ZeroDivisionError

    watched: list[Watched] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    with watched[0] as executor:
        assert executor.gone(0)


def test_several_apps_of_one_file_run_side_by_side(tmp_path: Path) -> None:
    text = """
    import os
    import shmbatch

    apps = one, two = shmbatch.App("one"), shmbatch.App("two")

    def pid(xs: list[int]) -> list[int]:
        return [os.getpid()] * len(xs)

    batched = shmbatch.batched(max_batch_size=1, wait_ms=0)
    first, second = (app.function()(batched(pid)) for app in apps)

    if __name__ == "__main__":
        with one.run() as a, two.run() as b:
            print(first.remote(0) == a.pid != b.pid == second.remote(0))
    """
    result = ran(written(tmp_path, "both.py", text), python=True)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_a_file_may_import_another_files_app(tmp_path: Path) -> None:
    written(tmp_path, "user_models.py", SERVED)
    user = """
    import user_models

    if __name__ == "__main__":
        with user_models.app.run():
            print(user_models.double.remote(21))
    """
    result = ran(written(tmp_path, "user.py", user), python=True)
    assert (result.stdout, result.stderr) == ("42\n", "")


def test_a_killed_parent_leaves_no_executor_behind(tmp_path: Path) -> None:
    script = """
    if __name__ == "__main__":
        import threading

        with app.run() as running:
            print(running.pid, flush=True)
            threading.Event().wait()
    """
    file = written(tmp_path, "served.py", SERVED, script)
    with (
        started(file, python=True) as process,
        Watched(int(line(process))) as executor,
        Watched(owners.owners()[0].keeper) as supervisor,
    ):
        process.kill()
        assert executor.gone()
        assert supervisor.gone()


def test_importing_a_program_starts_nothing(tmp_path: Path, sockets: Path) -> None:
    file = written(tmp_path, "user_quiet.py", SERVED)
    spec = importlib.util.spec_from_file_location("user_quiet", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert list(sockets.iterdir()) == []
