"""`ensure`: whoever comes gets a handle, and one executor loads the file, whoever dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmbatch
from shmbatch.app import detaching
from shmbatch.errors import (
    ConfigError,
    ExecutorGone,
    ExecutorNotFound,
    LoadError,
    ShmbatchError,
    UnknownFunction,
)
from shmbatch.protocol import owners, ownership
from shmbatch.protocol.transport import TRANSPORTS
from tests import processes
from tests.programs import (
    GATED,
    SERVED,
    SLOW,
    Watched,
    environment,
    line,
    processes_of,
    ran,
    started,
    written,
)

pytestmark = pytest.mark.no_transport  # but where one is asked for
over_both = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True, scope="module")

MANY = 32

# Notes in a file each time it is imported.
NOTED = """
    import os, pathlib
    with open(pathlib.Path(__file__).with_name("imports"), "a") as imports:
        print(os.getpid(), file=imports)
"""

# Says that it is there, waits for the end of its input, then ensures; prints what comes of it.
CALLER = """
    import sys
    import shmbatch
    import shmbatch.app.ensuring

    print("ready", flush=True)
    sys.stdin.read()
    try:
        print(shmbatch.ensure("served.pid", sys.argv[1]).remote(0))
    except shmbatch.errors.ShmbatchError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(autouse=True)
def its_logs(logs: Path) -> Path:
    return logs


@contextlib.contextmanager
def callers(folder: Path, file: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that ensure the same at the same time, once `at_once` is called."""
    script = written(folder, "caller.py", CALLER)
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, str(script), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            found.append(process)
        for process in found:
            assert line(process) == "ready"
        yield found


def at_once(found: list[subprocess.Popen[str]]) -> None:
    for process in found:
        assert process.stdin is not None
        process.stdin.close()


def said(found: list[subprocess.Popen[str]]) -> list[str]:
    return [line(process) for process in found]


def loading() -> owners.Owner | None:
    owner = owners.owner("served")
    return owner if owner is not None and owner.file is not None else None


@over_both
def test_what_nobody_serves_is_started_and_outlives_the_caller(
    tmp_path: Path, its_logs: Path, transport: str
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    script = f"""
    import shmbatch
    print(shmbatch.ensure("served.pid", {str(file)!r}).remote(0))
    """
    result = ran(written(tmp_path, "caller.py", script), python=True)
    assert result.stderr == ""
    pid = int(result.stdout)
    assert shmbatch.connect("served.pid", timeout=0).remote(0) == pid
    assert shmbatch.statistics("served")["transport"] == transport
    assert "served serves" in (its_logs / "served.log").read_text()
    with Watched(pid) as executor:
        shmbatch.stop("served")
        assert executor.gone(0)


def test_the_device_goes_to_an_executor_that_is_started(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    pid = shmbatch.ensure("served.pid", file, device="cpu").remote(0)
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert arguments[arguments.index("--device") + 1] == "cpu"
    shmbatch.stop("served")


def test_what_is_served_already_is_connected_to_and_the_file_not_looked_at(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        shmbatch.connect("served.double", timeout=60)
        assert shmbatch.ensure("served.pid", tmp_path / "none.py").remote(0) == process.pid
        shmbatch.stop("served")


@over_both
@pytest.mark.slow
def test_of_32_processes_at_once_one_starts_the_one_executor(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    file = written(tmp_path, "served.py", NOTED, SERVED)
    started_by = "import sys\nif 'start' in sys.argv: open({!r}, 'a').write('x')"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        started_by.format(str(tmp_path / "pythons"))
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}:{os.environ['PYTHONPATH']}")
    with callers(tmp_path, file, MANY) as found:
        at_once(found)
        pids = set(said(found))
    assert len(pids) == 1
    assert (tmp_path / "imports").read_text().split() == list(pids)
    assert (tmp_path / "pythons").read_text() == "x", "an executor was started in vain"
    assert sorted(each.name for each in sockets.iterdir()) == ["served.lock", "served.sock"]
    shmbatch.stop("served")


@pytest.mark.slow
def test_of_32_processes_at_once_all_hear_why_the_file_does_not_load(
    tmp_path: Path, sockets: Path
) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, "1 / 0")
    with callers(tmp_path, file, MANY) as found:
        at_once(found)
        processes.wait_until(loading, "it loads")
        for process in found:  # each is a part of it, and none has come too late
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        (tmp_path / "go").touch()
        (reason,) = set(said(found))
    assert reason.startswith("LoadError: ")
    assert "does not import: ZeroDivisionError: division by zero (line " in reason
    assert len((tmp_path / "imports").read_text().split()) == 1
    assert list(sockets.iterdir()) == []
    assert processes_of(file) == []


def joined(pid: int) -> bool:
    """Say whether a process has joined an attempt."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(entry.readlink()).endswith(".starting"):
                return True
    return False


@pytest.mark.slow
def test_where_the_starter_is_killed_while_it_loads_the_others_get_that_executor(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, SERVED)
    with callers(tmp_path, file, 1) as first, callers(tmp_path, file, 4) as others:
        at_once(first)
        processes.wait_until(loading, "it loads")
        at_once(others)
        for process in others:
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        first[0].kill()
        first[0].wait()
        (tmp_path / "go").touch()
        (pid,) = set(said(others))
    assert (tmp_path / "imports").read_text().split() == [pid]
    shmbatch.stop("served")


def test_where_starter_and_executor_are_killed_while_it_loads_another_takes_over(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, SERVED)
    with callers(tmp_path, file, 1) as first, callers(tmp_path, file, 4) as others:
        at_once(first)
        executor = processes.wait_until(loading, "it loads").pid
        processes.wait_until((tmp_path / "imports").exists, "it has noted that")
        at_once(others)
        for process in others:
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        first[0].kill()
        first[0].wait()
        with Watched(executor) as killed:
            killed.kill()
            assert killed.gone()
        (tmp_path / "go").touch()
        (pid,) = set(said(others))
    assert (tmp_path / "imports").read_text().split() == [str(executor), pid]
    shmbatch.stop("served")


def test_an_executor_that_is_killed_while_it_loads_is_gone_for_all_who_waited(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, SERVED)
    with callers(tmp_path, file, 4) as found:
        at_once(found)
        executor = processes.wait_until(loading, "it loads").pid
        for process in found:
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        os.kill(executor, signal.SIGKILL)
        (reason,) = set(said(found))
    assert reason.startswith("ExecutorGone: the executor of 'served' died while it started; see")


def test_one_that_somebody_else_starts_is_waited_for(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, SERVED)
    with (
        started("start", file, "--name", "served") as process,
        callers(tmp_path, file, 2) as found,
    ):
        processes.wait_until(loading, "it loads")
        at_once(found)
        for caller in found:
            processes.wait_until(lambda: joined(caller.pid), "it waits")  # noqa: B023
        (tmp_path / "go").touch()
        assert set(said(found)) == {str(process.pid)}
        assert (tmp_path / "imports").read_text().split() == [str(process.pid)]
        shmbatch.stop("served")


@over_both
def test_one_that_drains_is_succeeded(tmp_path: Path, transport: str) -> None:
    file = written(tmp_path, "served.py", SERVED, GATED)
    first = shmbatch.ensure("served.pid", file).remote(0)
    running = shmbatch.connect("served.gated").spawn(7)
    processes.wait_until((tmp_path / "entered").exists, "the function runs")
    os.kill(first, signal.SIGTERM)
    processes.wait_until(lambda: owners.owner("served").state == "draining", "it drains")
    with callers(tmp_path, file, 2) as found:
        at_once(found)
        for process in found:
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        (tmp_path / "gate").touch()
        assert running.get(timeout=60) == 7
        (second,) = set(said(found))
    assert int(second) != first
    shmbatch.stop("served")


def test_threads_of_one_process_are_told_apart_as_processes_are(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", NOTED, SERVED)
    barrier = threading.Barrier(8)
    pids = []

    def call() -> None:
        barrier.wait()
        pids.append(shmbatch.ensure("served.pid", file).remote(0))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8
    assert (tmp_path / "imports").read_text().split() == [str(pids[0])]
    shmbatch.stop("served")


def test_the_addresses_app_is_the_name_whatever_the_file_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "served.py", SERVED)
    monkeypatch.chdir(tmp_path)
    pid = shmbatch.ensure("other.pid", "served.py").remote(0)
    assert [(owner.app, owner.pid) for owner in owners.owners()] == [("other", pid)]
    shmbatch.stop("other")


def test_of_several_apps_in_the_file_the_one_of_that_name_is_served(tmp_path: Path) -> None:
    text = """
    import shmbatch

    one, two = shmbatch.App("one"), shmbatch.App("two")

    @one.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def up(xs: list[int]) -> list[int]:
        return [x + 1 for x in xs]

    @two.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def down(xs: list[int]) -> list[int]:
        return [x - 1 for x in xs]
    """
    file = written(tmp_path, "both.py", text)
    assert shmbatch.ensure("two.down", file).remote(1) == 0
    with pytest.raises(UnknownFunction):
        shmbatch.ensure("two.up", file)
    shmbatch.stop("two")
    with pytest.raises(LoadError, match="has several apps, 'one', 'two'"):
        shmbatch.ensure("three.up", file)


def test_what_went_wrong_can_be_mended_and_tried_again(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", "1 / 0")
    with pytest.raises(LoadError, match="ZeroDivisionError"):
        shmbatch.ensure("served.pid", file)
    file.write_text("import os\nos._exit(3)")
    with pytest.raises(ExecutorGone, match=r"died while it started; see its log '.*served\.log'"):
        shmbatch.ensure("served.pid", file)
    written(tmp_path, "served.py", SERVED)
    assert shmbatch.ensure("served.double", file).remote(4) == 8
    shmbatch.stop("served")


def test_one_that_is_not_ready_in_time_goes_on_and_is_found_later(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", NOTED, SLOW, SERVED)
    with pytest.raises(ExecutorNotFound, match="wait longer with timeout="):
        shmbatch.ensure("served.pid", file, timeout=0)
    processes.wait_until(loading, "it loads")
    with pytest.raises(
        ExecutorNotFound, match=r"executor of 'served' \(process \d+\) is still lo"
    ):
        shmbatch.ensure("served.pid", file, timeout=0.01)
    (tmp_path / "go").touch()
    pid = shmbatch.ensure("served.pid", file).remote(0)
    assert (tmp_path / "imports").read_text().split() == [str(pid)]
    shmbatch.stop("served")


def test_it_is_nobodys_child_and_becomes_no_zombie(tmp_path: Path) -> None:
    before = processes.children()
    pid = shmbatch.ensure("served.pid", written(tmp_path, "served.py", SERVED)).remote(0)
    assert processes.children() == before
    with Watched(pid) as executor:
        executor.kill()
        assert executor.gone()
    with pytest.raises(ShmbatchError):
        shmbatch.connect("served.pid", timeout=0)
    ownership.sweep()


def test_a_caller_that_blocks_signals_starts_one_that_hears_them(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    try:
        pid = shmbatch.ensure("served.pid", file).remote(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    with Watched(pid) as executor:
        os.kill(pid, signal.SIGTERM)
        assert executor.gone()


def test_within_a_run_the_name_means_the_runs_executor(tmp_path: Path) -> None:
    main = """
    @app.local_entrypoint()
    def main():
        print(shmbatch.ensure("served.pid", "none.py").remote(0) == pid.remote(0))
    """
    result = ran("run", written(tmp_path, "served.py", SERVED, main))
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_a_file_that_ensures_itself_while_it_is_loaded_is_told(tmp_path: Path) -> None:
    itself = "shmbatch.ensure('served.pid', __file__)"
    with pytest.raises(LoadError, match=r"would wait for itself; call ensure under `if __name__"):
        shmbatch.ensure("served.pid", written(tmp_path, "served.py", SERVED, itself))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"transport": "pigeon"}, ConfigError, "transport is 'pigeon'; it must be one of linux"),
        ({"device": "tpu"}, ConfigError, "device is 'tpu'; use auto, cpu, cuda or cuda:N, as"),
        ({"wait": "sleep"}, ConfigError, "wait is 'sleep'; it must be one of auto, spin, park"),
        ({"arrays": "lists"}, ConfigError, "arrays is 'lists'; it must be one of "),
        ({"timeout": "soon"}, ConfigError, "timeout is 'soon'; give seconds as a number"),
        ({"log": "/none/its.log"}, ConfigError, "cannot log to '/none/its.log': No such file or"),
        ({"file": "none.py"}, LoadError, r"there is no file '/.*/none\.py'"),
        ({"address": "served"}, ConfigError, "address 'served' names no function; write "),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    tmp_path: Path, sockets: Path, options: dict[str, object], error: type, message: str
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    arguments = {"address": "served.pid", "file": file, **options}
    with pytest.raises(error, match=message):
        shmbatch.ensure(**arguments)  # type: ignore[arg-type]
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


@pytest.mark.slow
def test_one_that_serves_and_does_not_answer_has_as_long_as_there_is_time(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with started("start", file) as process:
        shmbatch.connect("served.double", timeout=60)
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(ExecutorNotFound, match=r"not answer within [12](\.\d)? seconds; "):
                shmbatch.ensure("served.pid", file, timeout=2)
        finally:
            process.send_signal(signal.SIGCONT)
        shmbatch.stop("served")


def test_one_that_does_not_come_to_start_is_stopped_when_the_time_is_over(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    hook = "import sys, time\nif 'start' in sys.argv: time.sleep(600)"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}:{os.environ['PYTHONPATH']}")
    monkeypatch.setattr(detaching, "_FORK_S", 3600.0)
    monkeypatch.setattr(detaching, "_HASTE_S", 0.0)
    with pytest.raises(ExecutorNotFound, match="had no process of its own in time and was stop"):
        shmbatch.ensure("served.pid", file, timeout=0.1)
    assert processes_of(file) == []
    assert list(sockets.iterdir()) == []


def test_all_hear_why_the_file_does_not_load_however_long_that_is(tmp_path: Path) -> None:
    fails = "raise ValueError('\\N{GRINNING FACE}' * 100_000)"  # twelve bytes each in JSON
    file = written(tmp_path, "served.py", SLOW, fails)
    with callers(tmp_path, file, 3) as found:
        at_once(found)
        processes.wait_until(loading, "it loads")
        for process in found:
            processes.wait_until(lambda: joined(process.pid), "it waits")  # noqa: B023
        (tmp_path / "go").touch()
        (reason,) = set(said(found))
    assert reason.startswith("LoadError: ")
    assert "does not import: ValueError: \N{GRINNING FACE}" in reason
    assert re.search(r"\.\.\. \(100\d\d\d characters\)$", reason)
