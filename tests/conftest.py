"""What every test gets: a directory of sockets, and a check of what it leaves behind."""

from __future__ import annotations

import gc
import pkgutil
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "apps"))  # user files are imported by their stem

import shmbatch.client
import shmbatch.contract
from shmbatch.protocol.transport import TRANSPORTS
from tests import processes
from tests.reaching import touches_a_transport

# What producers import when they first need it: tests do so in several threads, and of two that
# have modules' assertions rewritten, one may fail in CPython 3.11 (python/cpython#106905).
for package in (shmbatch.client, shmbatch.contract):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)

# A shell that starts the tests in the background has them ignore Ctrl-C, and nohup has them ignore
# a terminal that hangs up, as their children then do; some tests are about these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def sockets_directory() -> Iterator[Path]:
    """Serve names in a fresh directory with a short path, never in the user's own."""
    path = Path(tempfile.mkdtemp(prefix="shmb-", dir="/tmp"))
    # By an earlier run that was killed, and whose pids this one may get again.
    older = {entry.name for entry in Path("/dev/shm").iterdir()}
    with processes.recording(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMBATCH_DIR", str(path))
        patch.setenv("PYTHONPATH", processes.environment()["PYTHONPATH"])
        for name in ("NAMES", "WAIT", "TRANSPORT", "DEVICE", "TRUST"):
            patch.delenv(f"SHMBATCH_{name}", raising=False)
        patch.delenv("NOTIFY_SOCKET", raising=False)
        yield path
        left = sorted(entry.name for entry in path.iterdir())
        left += sorted(processes.shared_memory() - older)  # of executors that modules share, too
        for name in processes.half_made_semaphores() - older:
            Path("/dev/shm", name).unlink(missing_ok=True)
    shutil.rmtree(path)
    assert left == [], "names are left"


@pytest.fixture(autouse=True)
def nothing_left(sockets_directory: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor, a name or shared memory behind."""
    before = _everything(sockets_directory)
    yield
    request.node.__dict__.get("funcargs", {}).clear()  # handles among them
    for gate in processes.Gate.known:
        gate.reset()  # so that a test which failed halfway fails no other
    processes.hang_up()
    if _left(before, sockets_directory):
        gc.collect()  # only now: with torch loaded it takes 100 ms
    assert _left(before, sockets_directory) == {}


def _left(before: dict[str, set[str]], sockets_directory: Path) -> dict[str, set[str]]:
    after = _everything(sockets_directory)
    return {what: left for what, found in after.items() if (left := found - before[what])}


def _everything(sockets_directory: Path) -> dict[str, set[str]]:
    return {
        "processes": {f"{pid} {_command(pid)}" for pid in processes.children()},
        "descriptors": {f"{fd} {what}" for fd, what in processes.descriptors().items()},
        "names": {entry.name for entry in sockets_directory.iterdir()},
        "shared memory": processes.shared_memory(),
    }


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[processes.Gate]:
    """A gate for one test; executors that it starts from now on know of it."""
    monkeypatch.setenv("SHMBATCH_TEST_GATE", str(tmp_path))
    gate = processes.Gate(tmp_path)
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def module_gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Gate]:
    """A gate shared by the tests of a module, for executors that they share."""
    folder = tmp_path_factory.mktemp("gate")
    gate = processes.Gate(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMBATCH_TEST_GATE", str(folder))
        yield gate
    gate.close()


@pytest.fixture(scope="module", autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Each transport in turn; executors started from now on use it.

    None for a test that touches no transport, see `reaching`.
    """
    name: str | None = getattr(request, "param", None)
    with pytest.MonkeyPatch.context() as patch:
        if name is not None:
            patch.setenv("SHMBATCH_TRANSPORT", name)
        yield name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker("no_transport") is not None
    if not marked and touches_a_transport(metafunc):
        metafunc.parametrize("transport", _transports(metafunc), indirect=True, scope="module")


def _transports(metafunc: pytest.Metafunc) -> list[Any]:
    """Return the transports that a test runs over; over others than the first it is slow."""
    folder = Path(metafunc.module.__file__ or "").parent.name
    first, *others = TRANSPORTS
    # What a user sees is worth it every day, and a soak is asked for by name.
    marks = [] if folder in ("conformance", "soak") else [pytest.mark.slow]
    return [first, *(pytest.param(each, marks=marks) for each in others)]
