"""A directory of sockets of a test's own, and other processes that own names in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmbatch


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose path is short, with no setting that leads elsewhere."""
    for variable in ("SHMBATCH_DIR", "SHMBATCH_NAMES"):
        monkeypatch.setenv(variable, "")  # so that it is put back, whatever a test makes of it
        monkeypatch.delenv(variable)
    with tempfile.TemporaryDirectory(prefix="shmbatch-test-") as path:
        yield Path(path)


@pytest.fixture
def home(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of sockets, here and in all children; not created yet."""
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(outside / "home"))
    return outside / "home"


def entries(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


def serve(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.fspath(path))
    listener.listen()
    return listener


class Other:
    """Another process that runs *script* and speaks in lines."""

    def __init__(self, script: str, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(shmbatch.__path__[0]).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).rstrip("\n")

    def finish(self) -> str:
        """Let it go on, and return the rest of what it says."""
        said, _ = self.process.communicate("")
        assert self.process.returncode == 0
        return str(said).rstrip("\n")

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()


# Claims a name, says so, and holds it until its input ends.
OWNER = """
import socket, sys
from shmbatch.errors import NameTaken
from shmbatch.protocol.ownership import NameLock
try:
    lock = NameLock.claim(sys.argv[1])
except NameTaken as error:
    sys.exit(print(error))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(str(lock.socket_path))
sock.listen()
print("claimed", flush=True)
sys.stdin.read()
lock.close()
"""


def taken_by(pid: int, app: str = "sums") -> str:
    return (
        f"name '{app}' is already served by process {pid}; "
        f"stop it with `shmbatch stop {app}` or choose another --name"
    )
