"""User programs as tests write and run them: files, the command line, processes to watch."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import shmbatch
from shmbatch.protocol import owners, ownership
from tests.processes import wait_until

PATIENCE_S = 60
ROOT = Path(shmbatch.__file__).parents[1]

# The first program of Modal's guide to dynamic batching, its import changed.
FIRST_PROGRAM = """
    import shmbatch as modal

    app = modal.App()

    @app.function()
    @modal.batched(max_batch_size=2, wait_ms=1000)
    async def batch_add(xs: list[int], ys: list[int]) -> list[int]:
        return [x + y for x, y in zip(xs, ys)]

    @app.local_entrypoint()
    async def main():
        inputs = [(1, 300), (2, 200), (3, 100)]
        async for result in batch_add.starmap.aio(inputs):
            print(f"Sum: {result}")
            # Sum: 301
            # Sum: 202
            # Sum: 103
"""

# Serves `double`, `never` (not due for ten minutes) and `pid`, the executor's.
SERVED = """
    import os
    import shmbatch

    app = shmbatch.App()

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def double(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=600_000)
    def never(xs: list[int]) -> list[int]:
        return xs

    @app.function()
    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def pid(xs: list[int]) -> list[int]:
        return [os.getpid() for _ in xs]
"""


# Is not loaded before there is a file `go` beside it, so that a test decides when.
SLOW = """
    import pathlib, time
    while not pathlib.Path(__file__).with_name("go").exists():
        time.sleep(0.001)
"""

# Goes behind SERVED: says that it runs with a file `entered`, ends when there is one `gate`.
GATED = """
    import asyncio, pathlib

    @app.function()
    @shmbatch.batched(max_batch_size=1, wait_ms=0)
    async def gated(xs: list[int]) -> list[int]:
        here = pathlib.Path(__file__)
        here.with_name("entered").touch()
        while not here.with_name("gate").exists():
            await asyncio.sleep(0.001)
        return xs
"""

# Says that it is being imported with a file `importing`, and never comes to an end.
HANGING = """
    import pathlib, time
    pathlib.Path(__file__).with_name("importing").touch()
    time.sleep(600)
"""
# The same, and goes on when it is interrupted.
DEAF = """
    import pathlib, time
    pathlib.Path(__file__).with_name("importing").touch()
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass
"""


def written(folder: Path, name: str, *texts: str) -> Path:
    """Write a program made of indented *texts*."""
    path = folder / name
    path.write_text("\n\n".join(textwrap.dedent(text) for text in texts))
    return path


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, in which a child finds the package that this one has.

    Else Python is as most people have it: it buffers what it prints, and keeps bytecode.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    usual = {"PYTHONUNBUFFERED": "", "PYTHONDONTWRITEBYTECODE": ""}
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | usual | extra


def ran(
    *arguments: object, python: bool = False, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run ``shmbatch`` with *arguments* (or Python itself) to its end."""
    return subprocess.run(
        _command(arguments, python),
        capture_output=True,
        text=True,
        env=environment(**extra),
        cwd=cwd,
        timeout=PATIENCE_S,
    )


@contextmanager
def started(
    *arguments: object,
    python: bool = False,
    cwd: Path | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Start ``shmbatch`` with *arguments*, in a process group of its own; kill what is left."""
    process = subprocess.Popen(
        _command(arguments, python),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@contextmanager
def serving(file: Path | str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """Run `shmbatch start`; return it when it says that it serves."""
    with started("start", file, *options) as process:
        assert process.stderr is not None
        text = process.stderr.readline()
        assert "serves" in text, text + process.stderr.read()
        yield process


def supervised(file: Path, *options: object) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run a supervisor; return it when its executor serves."""
    return serving(file, "--restart", *options)


def executor_of(supervisor: subprocess.Popen[str], but: int | None = None) -> int:
    """Return the executor that serves `served`, another one than *but*."""

    def found() -> int | None:
        owner = owners.owner("served")
        if owner is None or owner.state != ownership.SERVING or owner.pid == but:
            return None
        assert owner.keeper == supervisor.pid
        return owner.pid

    return int(wait_until(found, "an executor serves"))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the status, and what it has said since."""
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


def line(process: subprocess.Popen[str]) -> str:
    """Read the next line that the process writes to standard output."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "the program writes nothing"
    text = process.stdout.readline()
    if not text:
        _, errors = process.communicate(timeout=PATIENCE_S)
        raise AssertionError(f"the program ended with {process.returncode}:\n{errors}")
    return text.rstrip("\n")


class Watched:
    """A process that may be nobody's child, watched by pidfd; works whatever becomes its pid."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def gone(self, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until the process has ended; False after *timeout_s*."""
        return bool(select.select([self._fd], [], [], timeout_s)[0])

    def kill(self) -> None:
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self.gone(0):
            self.kill()
        os.close(self._fd)


def _command(arguments: tuple[object, ...], python: bool) -> list[str]:
    command = [sys.executable, *([] if python else ["-m", "shmbatch"])]
    return [*command, *map(str, arguments)]


def processes_of(file: Path) -> list[int]:
    """Return the processes whose command line has *file* in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(file) in words:
                found.append(int(entry.name))
    return found


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where executors in the background log by default, in a test that starts some."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "shmbatch"


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have names served in a directory of this test's own; at the end none may be left."""
    with tempfile.TemporaryDirectory(prefix="shmbatch-", dir="/tmp") as folder:
        path = Path(folder)
        for name, value in environment(SHMBATCH_DIR=folder).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SHMBATCH_NAMES", raising=False)
        yield path
        for owner in owners.owners():  # in the background, of a test that failed
            if owner.pid is not None and owner.pid != os.getpid():
                os.kill(owner.pid, signal.SIGKILL)
        assert sorted(path.iterdir()) == [], "a name is left"
