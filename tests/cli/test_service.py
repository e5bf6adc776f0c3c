"""As a service manager sees it: `Type=notify` in the foreground; and signals of terminals."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmbatch
from shmbatch.executor.notifying import notifier
from tests import processes
from tests.programs import SERVED, environment, ran, started, written

pytestmark = pytest.mark.no_transport


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """What listens where NOTIFY_SOCKET says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            address = os.path.relpath(tmp_path / "notify")  # short enough to be bound
            sock.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        else:
            name = f"shmbatch-test-{os.getpid()}-{tmp_path.name}"
            sock.bind(f"\0{name}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        sock.settimeout(60)
        yield sock


def test_it_is_told_when_the_executor_serves_and_when_it_drains(
    tmp_path: Path, manager: socket.socket
) -> None:
    known = """
    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    def known(xs: list[int]) -> list[bool]:
        return ["NOTIFY_SOCKET" in os.environ]
    """
    file = written(
        tmp_path,
        "served.py",
        "import os",
        "assert 'NOTIFY_SOCKET' not in os.environ",
        SERVED,
        known,
    )
    with started("start", file) as process:
        assert manager.recv(4096).decode() == f"STATUS=loading {file}"
        assert manager.recv(4096).decode() == "READY=1\nSTATUS=serving double, never, pid, known"
        assert shmbatch.connect("served.known", timeout=0).remote(0) is False
        process.send_signal(signal.SIGTERM)
        assert manager.recv(4096).decode() == "STOPPING=1\nSTATUS=draining"
        assert process.wait(60) == 0


def test_an_executor_that_is_somebodys_child_tells_it_nothing(
    tmp_path: Path, manager: socket.socket, logs: Path
) -> None:
    main = "@app.local_entrypoint()\ndef main():\n    print(double.remote(1))"
    file = written(tmp_path, "served.py", SERVED, main)
    assert ran("run", file).stdout == "2\n"
    assert ran("start", file, "--detach").returncode == 0
    shmbatch.stop("served")
    assert select.select([manager], [], [], 0)[0] == []


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/none/notify", "@nobody-listens", "name"])
def test_where_nobody_listens_nothing_happens(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify = notifier()
    assert "NOTIFY_SOCKET" not in os.environ
    notify(READY=1, STATUS="two\nlines")


def test_a_status_is_one_line(manager: socket.socket) -> None:
    notifier()(READY=1, STATUS="two\nREADY=0")
    assert manager.recv(4096) == b"READY=1\nSTATUS=two READY=0"


def test_without_a_terminal_a_hangup_is_ignored(tmp_path: Path) -> None:
    with started("start", written(tmp_path, "served.py", SERVED)) as process:
        double = shmbatch.connect("served.double", timeout=60)
        process.send_signal(signal.SIGHUP)
        assert double.remote(4) == 8
        shmbatch.stop("served")
        assert process.wait(60) == 0


@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_an_executor_drains_when_its_terminal_hangs_up(tmp_path: Path, options: list[str]) -> None:
    file = written(tmp_path, "served.py", SERVED)
    command = [sys.executable, "-m", "shmbatch", "start", str(file), *options]
    script = "import os, pty, sys\npid, fd = pty.fork()\n"
    script += "if not pid: os.execv(sys.argv[1], sys.argv[1:])\n"
    script += "print(pid, flush=True)\nsys.stdin.read()\nos.close(fd)\n"
    script += "print(os.waitpid(pid, 0)[1], flush=True)\n"
    with processes.Program(script, *command, **environment()) as terminal:
        assert terminal.process.stdin is not None
        pid = int(terminal.line())
        never = shmbatch.connect("served.never", timeout=60).spawn(3)
        assert (shmbatch.connect("served.pid").remote(0) == pid) is not bool(options)
        terminal.process.stdin.close()
        assert never.get(timeout=60) == 3
        assert terminal.line() == "0"
        terminal.wait()
