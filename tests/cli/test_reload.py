"""`reload`: another executor takes over, and whoever calls does not notice."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shmbatch
from shmbatch.client import pool, stopping
from shmbatch.client.reloading import reload
from shmbatch.protocol import owners
from shmbatch.protocol.directory import socket_path
from tests import processes
from tests.programs import (
    GATED,
    SERVED,
    Watched,
    ended,
    executor_of,
    ran,
    started,
    supervised,
    written,
)

VERSION = """
    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def version(xs: list[int]) -> list[int]:
        return [VERSION for _ in xs]
"""


def program(folder: Path, version: int) -> Path:
    return written(folder, "served.py", f"VERSION = {version}", SERVED, GATED, VERSION)


@contextlib.contextmanager
def in_background(file: Path) -> Iterator[None]:
    """Where it may log as much as it likes."""
    assert ran("start", file, "--restart", "--detach").returncode == 0
    with Watched(owners.owner("served").keeper) as supervisor:  # type: ignore[union-attr, arg-type]
        yield
        shmbatch.stop("served")
        assert supervisor.gone(0)


def test_the_file_is_loaded_anew_and_what_was_published_before_runs_in_the_old_one(
    tmp_path: Path,
) -> None:
    with supervised(program(tmp_path, 1)) as supervisor:
        version = shmbatch.connect("served.version")
        assert version.remote(0) == 1
        with Watched(executor_of(supervisor)) as old:
            running = shmbatch.connect("served.gated").spawn(7)
            waiting = shmbatch.connect("served.never").spawn(3)
            processes.wait_until((tmp_path / "entered").exists, "it runs")
            program(tmp_path, 2)

            result = ran("reload", "served")

            owner = owners.owner("served")
            assert owner is not None
            assert (result.stderr, result.returncode) == ("", 0)
            assert re.fullmatch(
                rf"served is served by process {owner.pid}: loading took \d+\.\d\d s, "
                rf"and nobody accepted calls for 0\.0 ms\n",
                result.stdout,
            )
            assert (owner.state, owner.keeper) == ("serving", supervisor.pid)
            assert version.remote(0) == 2
            assert not old.gone(0)
            (tmp_path / "gate").touch()
            assert (running.get(timeout=60), waiting.get(timeout=60)) == (7, 3)
            assert old.gone()
        assert shmbatch.connect("served.version").remote(0) == 2
        shmbatch.stop("served")
        status, said = ended(supervisor)
        assert status == 0
        assert "served is replaced and drains: 1 calls waiting, 1 in flight" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "does not import: ZeroDivisionError: division by zero (line 1)"),
        pytest.param(
            "import os\nos._exit(3)",
            "ended with status 3 while it started",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SERVED.replace("App()", "App('other')"),
            "has app 'other' now and had 'served'; stop that one and start this",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["raises", "dies", "other"],
)
def test_a_file_that_does_not_load_any_more_leaves_the_old_executor_serving(
    tmp_path: Path, sockets: Path, text: str, message: str
) -> None:
    with supervised(program(tmp_path, 1)) as supervisor:
        version = shmbatch.connect("served.version")
        before = executor_of(supervisor)
        written(tmp_path, "served.py", text)
        result = ran("reload", "served")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert (result.stdout, result.returncode) == ("", 1)
        assert version.remote(0) == 1
        assert executor_of(supervisor) == before
        assert sorted(path.name for path in sockets.iterdir()) == ["served.lock", "served.sock"]
        program(tmp_path, 2)
        os.kill(supervisor.pid, signal.SIGHUP)
        processes.wait_until(lambda: version.remote(0) == 2, "it is reloaded")
        shmbatch.stop("served")
        assert ended(supervisor)[0] == 0


def test_an_executor_without_a_supervisor_cannot_be_reloaded(tmp_path: Path) -> None:
    with started("start", program(tmp_path, 1)) as process:
        version = shmbatch.connect("served.version", timeout=60)
        refused = ran("reload", "served")
        assert refused.stderr == (
            f"error: the executor of 'served' (process {process.pid}) has no supervisor that "
            f"could reload it; start it with `shmbatch start FILE --restart`\n"
        )
        assert (refused.stdout, refused.returncode) == ("", 1)
        assert version.remote(0) == 1
        shmbatch.stop("served")
    nobody = ran("reload", "served")
    assert nobody.stderr.startswith("error: no executor serves 'served'; see `shmbatch ps`, ")
    assert nobody.returncode == 1


@pytest.mark.slow
def test_whoever_connects_during_reloads_always_finds_somebody(tmp_path: Path, logs: Path) -> None:
    with in_background(program(tmp_path, 1)):
        over = threading.Event()
        failures: list[BaseException] = []
        connected = 0

        def connect_again_and_again() -> None:
            nonlocal connected
            while not over.is_set() and not failures:
                try:
                    assert shmbatch.connect("served.double", timeout=0).remote(21) == 42
                except BaseException as error:
                    failures.append(error)
                pool.forget("served")
                connected += 1

        thread = threading.Thread(target=connect_again_and_again)
        thread.start()
        pids = [shmbatch.statistics("served")["pid"]]
        try:
            for _ in range(5):
                before = connected
                pids.append(reload("served").pid)
                processes.wait_until(lambda: connected > before + 3, "somebody connects")  # noqa: B023
        finally:
            over.set()
            thread.join()
        assert failures == []
        assert len(set(pids)) == 6


@pytest.mark.slow
def test_many_reloads_under_load_lose_no_call(tmp_path: Path, logs: Path) -> None:
    with in_background(program(tmp_path, 1)):
        double = shmbatch.connect("served.double")
        over = threading.Event()
        wrong: list[object] = []

        def call() -> None:
            n = 0
            while not over.is_set():
                n += 1
                try:
                    got: object = double.remote(n)
                except BaseException as error:
                    got = error
                if got != 2 * n:
                    wrong.append(got)
                    return

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                reload("served")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["old", "next"])
def test_a_death_during_a_reload_leaves_one_that_serves(tmp_path: Path, whom: str) -> None:
    file = program(tmp_path, 1)
    with supervised(file) as supervisor:
        old = executor_of(supervisor)
        slow = "import os, pathlib, time\nhere = pathlib.Path(__file__)\n"
        slow += "here.with_name('next').write_text(str(os.getpid()))\n"
        slow += "while not here.with_name('go').exists():\n    time.sleep(0.001)\n"
        file.write_text(slow + file.read_text().replace("VERSION = 1", "VERSION = 2"))
        with started("reload", "served") as command:
            text = processes.wait_until(
                lambda: (tmp_path / "next").exists() and (tmp_path / "next").read_text(),
                "it loads",
            )
            os.kill(old if whom == "old" else int(text), signal.SIGKILL)
            if whom == "old":
                processes.wait_until(lambda: owners.owner("served").pid != old, "it is dead")  # type: ignore[union-attr]
            (tmp_path / "go").touch()
            output, error = command.communicate(timeout=60)
        version = shmbatch.connect("served.version", timeout=60)
        if whom == "old":
            assert version.remote(0) == 2
            assert re.search(r"nobody accepted calls for \d+\.\d ms", output)
        else:
            assert "was killed by SIGKILL while it started" in error
            assert version.remote(0) == 1
            assert executor_of(supervisor) == old
        assert not socket_path("served").with_suffix(".next").exists()
        shmbatch.stop("served")
        assert ended(supervisor)[0] == 0


@pytest.mark.slow
def test_one_that_cannot_take_the_name_over_gives_it_back(tmp_path: Path) -> None:
    file = program(tmp_path, 1)
    with supervised(file, "--name", "served") as supervisor:
        before = executor_of(supervisor)
        clumsy = "import os, pathlib\n"
        clumsy += "pathlib.Path(os.environ['SHMBATCH_DIR'], 'served.next').unlink()\n"
        file.write_text(clumsy + file.read_text())
        result = ran("reload", "served")
        assert "No such file or directory" in result.stderr
        assert result.returncode == 1
        assert executor_of(supervisor) == before
        assert shmbatch.connect("served.version", timeout=0).remote(0) == 1
        program(tmp_path, 2)
        assert ran("reload", "served").returncode == 0
        assert shmbatch.connect("served.version", timeout=0).remote(0) == 2
        shmbatch.stop("served")
        assert ended(supervisor)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_supervisor_that_ends_during_a_reload_leaves_nobody(tmp_path: Path, number: int) -> None:
    file = program(tmp_path, 1)
    with supervised(file) as supervisor, Watched(executor_of(supervisor)) as old:
        file.write_text(
            "import os, pathlib, time\n"
            "pathlib.Path(__file__).with_name('next').write_text(str(os.getpid()))\n"
            "time.sleep(600)\n"
        )
        with started("reload", "served") as command:
            processes.wait_until(
                lambda: (tmp_path / "next").exists() and (tmp_path / "next").read_text(),
                "it loads",
            )
            with Watched(int((tmp_path / "next").read_text())) as loading:
                supervisor.send_signal(number)
                _, error = command.communicate(timeout=60)
                assert "error: " in error
                assert command.returncode == 1
                assert old.gone()
                if number == signal.SIGTERM:
                    assert loading.gone()
        supervisor.wait(60)


CONNECTS = "import shmbatch; print(shmbatch.connect('served.version', timeout=0).remote(0))"

# Dies when it has the name, and before it can say that it has; once.
DIES_WITH_THE_NAME = """
import os, pathlib, signal
from shmbatch.executor.tenure import Tenure

if not pathlib.Path(__file__).with_name("died").exists():
    pathlib.Path(__file__).with_name("died").touch()
    take = Tenure.take

    def take_and_die(self):
        take(self)
        os.kill(os.getpid(), signal.SIGKILL)

    Tenure.take = take_and_die
"""


@pytest.mark.slow
def test_one_that_dies_as_soon_as_it_has_the_name_is_followed_by_another(tmp_path: Path) -> None:
    file = program(tmp_path, 1)
    with supervised(file) as supervisor, Watched(executor_of(supervisor)) as old:
        version = shmbatch.connect("served.version")
        assert version.remote(0) == 1
        running = shmbatch.connect("served.gated").spawn(7)
        processes.wait_until((tmp_path / "entered").exists, "it runs")
        program(tmp_path, 2)
        file.write_text(DIES_WITH_THE_NAME + file.read_text())
        result = ran("reload", "served")
        assert "was killed by SIGKILL" in result.stderr
        assert result.returncode == 1
        assert version.remote(0) == 2  # whoever was connected, and whoever comes
        assert ran("-c", CONNECTS, python=True).stdout == "2\n"
        assert not old.gone(0)
        (tmp_path / "gate").touch()
        assert running.get(timeout=60) == 7
        assert old.gone()
        assert ran("reload", "served").returncode == 0
        shmbatch.stop("served")
        status, said = ended(supervisor)
        assert status == 0
        assert "served was killed by SIGKILL; it is started again in 0.1 s" in said


@pytest.mark.slow
@pytest.mark.parametrize("now", [True, False])
def test_a_stop_waits_for_the_one_that_was_replaced_and_hurries_it_only_if_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool
) -> None:
    with supervised(program(tmp_path, 1)) as supervisor, Watched(executor_of(supervisor)) as old:
        running = shmbatch.connect("served.gated").spawn(7)
        processes.wait_until((tmp_path / "entered").exists, "it runs")
        with Watched(reload("served").pid) as current:
            if now:
                shmbatch.stop("served", now=True)
                assert old.gone(0)
                with pytest.raises(shmbatch.errors.ExecutorGone):
                    running.get(timeout=60)
            else:
                # After which one that loads is killed; nobody here does.
                monkeypatch.setattr(stopping, "_KILL_S", 0.1)
                with ThreadPoolExecutor() as threads:
                    stopped = threads.submit(shmbatch.stop, "served")
                    assert current.gone()
                    again = threads.submit(shmbatch.stop, "served")  # which is no hurry
                    assert not old.gone(0.5)
                    assert not stopped.done()
                    assert not again.done()
                    (tmp_path / "gate").touch()
                    assert running.get(timeout=60) == 7
                    stopped.result(timeout=60)
                    again.result(timeout=60)
                assert old.gone(0)
            assert current.gone(0)
        assert ended(supervisor)[0] == 0
