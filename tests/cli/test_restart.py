"""`start --restart`: what an executor's death means for its name and for its supervisor."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

import shmbatch
from shmbatch.client.reloading import reload
from shmbatch.protocol import owners, ownership
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

# Ends the executor's process from within.
ENDING = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def end(statuses: list[int]) -> list[int]:
        os._exit(statuses[0])
"""


def test_a_killed_executor_is_started_again_under_its_name(tmp_path: Path) -> None:
    with supervised(written(tmp_path, "served.py", SERVED)) as supervisor:
        first = executor_of(supervisor)
        pid = shmbatch.connect("served.pid")
        assert pid.remote(0) == first != supervisor.pid
        os.kill(first, signal.SIGKILL)
        second = pid.remote(0)
        assert second == executor_of(supervisor, but=first)
        shmbatch.stop("served")
        status, said = ended(supervisor)  # which `stop` has waited for
        assert status == 0
        assert "served was killed by SIGKILL; it is started again" in said


def test_an_executor_that_ends_with_a_status_is_started_again_and_one_that_ends_with_0_is_not(
    tmp_path: Path,
) -> None:
    with supervised(written(tmp_path, "served.py", SERVED, ENDING)) as supervisor:
        end = shmbatch.connect("served.end")
        with pytest.raises(shmbatch.errors.ExecutorGone, match=r"may or may not have run"):
            end.remote(3)
        with pytest.raises(shmbatch.errors.ExecutorGone):
            end.remote(0)
        status, said = ended(supervisor)
        assert status == 0
        assert "served ended with status 3; it is started again" in said


@pytest.mark.no_transport
@pytest.mark.parametrize(
    "text",
    [
        "1 / 0",
        pytest.param("import shmbatch", marks=pytest.mark.slow),
        pytest.param("import os; os._exit(7)", marks=pytest.mark.slow),
    ],
)
def test_the_first_start_fails_as_it_does_without_a_supervisor(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, "served.py", text)
    alone, with_one = ran("start", file), ran("start", file, "--restart")
    assert (with_one.returncode, with_one.stderr) == (alone.returncode, alone.stderr)


@pytest.mark.no_transport
@pytest.mark.slow  # four pauses and six starts
def test_starts_that_fail_in_a_row_are_given_up_with_the_cause(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with supervised(file) as supervisor:
        double = shmbatch.connect("served.double")
        file.write_text("1 / 0")
        os.kill(executor_of(supervisor), signal.SIGKILL)
        with pytest.raises(
            shmbatch.errors.ExecutorGone, match="ZeroDivisionError: division by ze"
        ):
            processes.wait_until(lambda: double.remote(1) is None, "the supervisor gives up")
        status, said = ended(supervisor)
        assert status == 1
        assert said.count("it is started again ") == 5  # once after it was killed
        assert "served is given up: it did not start 5 times in a row: LoadError" in said


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "both"),
        (signal.SIGINT, "supervisor"),
        pytest.param(signal.SIGTERM, "executor", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "supervisor", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "both", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_either_or_both_lets_calls_finish_and_ends_both(
    tmp_path: Path, number: int, whom: str
) -> None:
    with supervised(written(tmp_path, "served.py", SERVED, GATED)) as supervisor:
        executor = executor_of(supervisor)
        running = shmbatch.connect("served.gated").spawn(7)
        waiting = shmbatch.connect("served.never").spawn(3)
        processes.wait_until((tmp_path / "entered").exists, "it runs")
        if whom == "both":  # as Ctrl-C in a terminal, or systemd
            os.killpg(supervisor.pid, number)
        else:
            os.kill(supervisor.pid if whom == "supervisor" else executor, number)
        (tmp_path / "gate").touch()
        assert (running.get(timeout=60), waiting.get(timeout=60)) == (7, 3)
        assert ended(supervisor)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "then", "status"),
    [
        (signal.SIGTERM, "signal", 128 + signal.SIGTERM),
        (signal.SIGINT, "signal", 128 + signal.SIGINT),
        (signal.SIGTERM, "stop --now", 0),  # which is no failure of the service
    ],
)
def test_a_second_signal_or_a_stop_now_ends_both_at_once(
    tmp_path: Path, number: int, then: str, status: int
) -> None:
    with supervised(written(tmp_path, "served.py", SERVED, GATED)) as supervisor:
        with Watched(executor_of(supervisor)) as executor:
            running = shmbatch.connect("served.gated").spawn(7)
            processes.wait_until((tmp_path / "entered").exists, "it runs")
            supervisor.send_signal(number)
            processes.wait_until(
                lambda: [each.state for each in owners.owners()] == [ownership.DRAINING],
                "it drains",
            )
            assert not executor.gone(0)  # the function never ends by itself
            if then == "signal":
                supervisor.send_signal(number)
            else:
                shmbatch.stop("served", now=True)
            assert executor.gone()
        assert ended(supervisor)[0] == status
        with pytest.raises(shmbatch.errors.ExecutorGone):
            running.get(timeout=60)


def test_an_executor_drains_when_its_supervisor_was_killed(tmp_path: Path) -> None:
    with supervised(written(tmp_path, "served.py", SERVED)) as supervisor:
        waiting = shmbatch.connect("served.never").spawn(3)
        with Watched(executor_of(supervisor)) as executor:
            supervisor.kill()
            assert waiting.get(timeout=60) == 3
            assert executor.gone()


@pytest.mark.slow
def test_while_the_next_one_loads_the_name_is_kept_and_can_be_stopped(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with supervised(file, "--name", "served") as supervisor:  # claimed before the file is loaded
        double = shmbatch.connect("served.double")
        first = executor_of(supervisor)
        file.write_text(
            "import pathlib, time\npathlib.Path(__file__).with_name('importing').touch()"
        )
        with file.open("a") as text:
            text.write("\ntime.sleep(600)")
        os.kill(first, signal.SIGKILL)
        processes.wait_until((tmp_path / "importing").exists, "the next one loads")
        refused = ran("start", file, "--name", "served")
        assert "name 'served' is already served by process" in refused.stderr
        shmbatch.stop("served")
        assert ended(supervisor)[0] == 0
        with pytest.raises(shmbatch.errors.ExecutorGone):
            double.remote(1)


@pytest.mark.no_transport
def test_a_supervisor_has_one_thread_and_neither_it_nor_the_next_executor_keeps_descriptors(
    tmp_path: Path,
) -> None:
    with supervised(written(tmp_path, "served.py", SERVED)) as supervisor:

        def open_in(executor: int) -> list[list[str]]:
            kinds = [processes.descriptors(pid).values() for pid in (supervisor.pid, executor)]
            return [sorted(each.partition(":")[0] for each in found) for found in kinds]

        first = executor_of(supervisor)
        before = open_in(first)
        os.kill(first, signal.SIGKILL)
        second = executor_of(supervisor, but=first)
        processes.wait_until(lambda: open_in(second) == before, f"descriptors are {before}")
        third = reload("served").pid  # forked while the second one serves
        processes.wait_until(lambda: open_in(third) == before, f"descriptors are {before}")
        assert len(list(Path(f"/proc/{supervisor.pid}/task").iterdir())) == 1
        mapped = Path(f"/proc/{supervisor.pid}/maps").read_text()
        assert "numpy" not in mapped
        shmbatch.stop("served")


@pytest.mark.no_transport
@pytest.mark.slow
def test_in_the_background_it_is_kept_served_too(tmp_path: Path, logs: Path) -> None:
    file = written(tmp_path, "other.py", SERVED.replace("App()", "App('served')"))
    result = ran("start", file, "--restart", "--detach")
    owner = owners.owner("served")
    assert owner is not None
    assert owner.pid is not None
    log = logs / "served.log"
    assert result.stdout == f"served is kept served by process {owner.keeper}, log {log}\n"
    os.kill(owner.pid, signal.SIGKILL)
    assert shmbatch.connect("served.double", timeout=60).remote(21) == 42
    shmbatch.stop("served")
    assert "served was killed by SIGKILL; it is started again" in log.read_text()
    assert log.read_text().count("served serves double") == 2


@pytest.mark.no_transport
@pytest.mark.slow
def test_a_service_manager_hears_of_one_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        name = f"shmbatch-test-{os.getpid()}-restart"
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")

        def told() -> tuple[str, bool]:
            data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(12))
            by = int.from_bytes(ancillary[0][2][:4], "little")
            return data.decode(), by == supervisor.pid

        with started("start", file, "--restart") as supervisor:
            assert told() == (f"STATUS=loading {file}", True)
            assert told() == ("READY=1\nSTATUS=serving double, never, pid", True)
            os.kill(executor_of(supervisor), signal.SIGKILL)
            text, by_supervisor = told()
            assert text.startswith("STATUS=was killed by SIGKILL; is started again ")
            assert by_supervisor
            assert told() == (f"STATUS=loading {file}", True)
            assert told() == ("STATUS=serving double, never, pid", True)
            supervisor.send_signal(signal.SIGTERM)
            assert told() == ("STOPPING=1\nSTATUS=draining", True)
            assert ended(supervisor)[0] == 0


@pytest.mark.slow
def test_whoever_started_the_supervisor_is_followed(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    file = written(tmp_path, "served.py", SERVED)
    options = ("--restart", "--supervisor-fd", ours)
    with started("start", file, *options, pass_fds=(ours,)) as supervisor:
        os.close(ours)
        waiting = shmbatch.connect("served.never", timeout=60).spawn(3)
        os.close(theirs)
        assert waiting.get(timeout=60) == 3
        assert ended(supervisor)[0] == 0
