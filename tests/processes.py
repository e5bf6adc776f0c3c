"""Real executors and producers for tests: started here, killed by pid, never by name."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import shmbatch
from shmbatch.app.classes import Class
from shmbatch.client import pool
from shmbatch.protocol import ownership

PATIENCE_S = 20
APPS = Path(__file__).parent / "apps"
ROOT = APPS.parents[1]
NOTING = ROOT / "tests" / "noting"

# What a leaked descriptor of ours would be.
_OURS = ("socket:", "pipe:", "anon_inode:[pidfd]", "anon_inode:[eventpoll]", "/memfd:", "/dev/shm")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, in which a child finds the package and the apps."""
    paths = [str(ROOT), str(APPS), str(NOTING), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | extra


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """Return what *true* returns once that is true; for what cannot be waited on otherwise."""
    # The wait is on a pipe that nobody writes to: nothing here depends on how long a turn takes.
    out, into = os.pipe()
    try:
        for _ in range(PATIENCE_S * 100):
            if answer := true():
                return answer
            select.select([out], [], [], 0.01)
    finally:
        os.close(out)
        os.close(into)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def readable(fd: int, what: str) -> None:
    """Wait until *fd* can be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000), f"not within {PATIENCE_S} s: {what}"


@contextmanager
def recording() -> Iterator[None]:
    """Have every Python process that comes from this one note that it does."""
    with tempfile.NamedTemporaryFile(prefix="shmb-pids-") as pids:
        os.environ["SHMBATCH_TEST_PIDS"] = pids.name
        try:
            yield
        finally:
            del os.environ["SHMBATCH_TEST_PIDS"]


def recorded() -> set[int]:
    """Every process that this one has started, and that those have, since `recording`."""
    return set(map(int, Path(os.environ["SHMBATCH_TEST_PIDS"]).read_text().split()))


class Served:
    """An executor that serves a file of ``tests/apps`` in a process of its own."""

    def __init__(self, file: str, name: str, *options: str, **extra: str) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _close
        ready_out, ready_in = os.pipe()
        lifeline_out, self._lifeline = os.pipe()  # so that it ends if this process is killed
        try:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "shmbatch", "start", str(APPS / file)),
                    *("--name", name, "--ready-fd", str(ready_in)),
                    *("--supervisor-fd", str(lifeline_out), *options),
                ],
                pass_fds=(ready_in, lifeline_out),
                stdin=subprocess.DEVNULL,
                stderr=self.log,
                env=environment(**extra),
                start_new_session=True,
            )
        finally:
            os.close(ready_in)
            os.close(lifeline_out)
        with os.fdopen(ready_out, "rb") as pipe:
            readable(pipe.fileno(), f"{file} is served")
            report = pipe.readline()
        if not report or not json.loads(report).get("ready"):
            self.kill()
            raise AssertionError(f"{file} is not served: {report!r}")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def logged(self) -> str:
        """What it has written to standard error."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode()

    def connect(self, function: str, **options: Any) -> shmbatch.Function:
        return shmbatch.connect(f"{self.name}.{function}", **options)

    def statistics(self, function: str) -> dict[str, Any]:
        counted: dict[str, Any] = shmbatch.statistics(self.name)["functions"][function]
        return counted

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def is_stopped(self) -> bool:
        """Whether it has got a SIGSTOP, and no SIGCONT since."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """End it as no process can prevent, and wait for that. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self._close()

    def stop(self) -> None:
        """Have it drain; it must end well. Idempotent."""
        if self._lifeline < 0:
            return
        try:
            self.signal(signal.SIGTERM)
            status = self.wait()
            logged = self.logged
        finally:
            self.kill()
        assert status == 0, logged
        assert "Traceback" not in logged, logged

    def _close(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self.log.close()


@contextmanager
def served(file: str, name: str, *options: str, **extra: str) -> Iterator[Served]:
    """Serve a file of ``tests/apps``; at the end it is stopped, unless it was killed before."""
    executor = Served(file, name, *options, **extra)
    try:
        yield executor
    except BaseException:
        executor.kill()
        raise
    executor.stop()


class Supervised(Served):
    """An executor that another one follows when it dies; `process` is its supervisor."""

    def __init__(self, file: str, name: str, *options: str, **extra: str) -> None:
        super().__init__(file, name, "--restart", *options, **extra)

    @property
    def executor_pid(self) -> int:
        pid: int = shmbatch.statistics(self.name)["pid"]
        return pid

    def kill_executor(self) -> None:
        """Kill the one that serves, and return when it is dead."""
        pidfd = os.pidfd_open(self.executor_pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            readable(pidfd, "the executor is dead")
        finally:
            os.close(pidfd)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Have the supervisor do nothing meanwhile."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End both as no process can prevent, the supervisor first."""
        pidfd = -1
        try:
            pidfd = os.pidfd_open(self.executor_pid)
        except (shmbatch.errors.ExecutorNotFound, ProcessLookupError):
            pass  # between two executors: the next one ends for want of a supervisor
        super().kill()
        if pidfd >= 0:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            readable(pidfd, "the executor is dead")
            os.close(pidfd)
        ownership.sweep()


class Gate:
    """Holds functions of an executor until they may go on.

    The function calls `pass_through` in the executor; the test waits for it with `arrived` and
    lets it go with `open`. Two pipes with names, so no clock and no sleep is needed.
    """

    known: set[Gate] = set()

    def __init__(self, folder: Path) -> None:
        self.arrivals, self.departures = folder / "arrivals", folder / "departures"
        for path in (self.arrivals, self.departures):
            os.mkfifo(path, 0o600)
        # Both ends of each are held here, so no open() blocks and no end of file is seen.
        self._fds = [os.open(path, os.O_RDWR) for path in (self.arrivals, self.departures)]
        self.known.add(self)

    def arrived(self) -> list[Any]:
        """Wait for a function to be at the gate; return the inputs that it came with."""
        readable(self._fds[0], "a batch is at the gate")
        inputs: list[Any] = json.loads(_line(self._fds[0]))
        return inputs

    def open(self, times: int = 1) -> None:
        """Let as many functions through."""
        os.write(self._fds[1], b"." * times)

    def reset(self) -> None:
        """Let everybody through who is at the gate, and forget who was."""
        poll = select.poll()
        poll.register(self._fds[0], select.POLLIN)
        while poll.poll(0):
            self.arrived()
            self.open()
        os.set_blocking(self._fds[1], False)
        try:
            while os.read(self._fds[1], 4096):
                pass
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(self._fds[1], True)

    def close(self) -> None:
        self.known.discard(self)
        for fd in self._fds:
            os.close(fd)


def pass_through(inputs: list[Any]) -> None:
    """In an executor: say that a batch with *inputs* runs, then wait for the gate to open."""
    folder = Path(os.environ["SHMBATCH_TEST_GATE"])
    with (folder / "arrivals").open("wb", buffering=0) as pipe:
        pipe.write(json.dumps(inputs).encode() + b"\n")
    with (folder / "departures").open("rb", buffering=0) as pipe:
        pipe.read(1)


def _line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, 1)
    return line


class Program:
    """A Python program in a process of its own, spoken with line by line; kill -9 is its end."""

    def __init__(self, code: str, *arguments: object, **extra: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(**extra),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Wait for the next line it prints."""
        assert self.process.stdout is not None
        readable(self.process.stdout.fileno(), "the program prints a line")
        line = _line_or_end(self.process.stdout.fileno())
        assert line, f"the program ended with {self.process.poll()}"
        return line.decode().rstrip("\n")

    def tell(self, text: str = "") -> None:
        """Give it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _line_or_end(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line


def hang_up() -> None:
    """Close every connection that this process has, and have imported handles let go of them."""
    for app in {key[0] for key in pool._connections}:
        pool.forget(app)
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None) or "").startswith(str(APPS)):
            for value in vars(module).values():
                if isinstance(value, shmbatch.Function):
                    value._connection = None
                elif isinstance(value, Class):
                    value._instances.clear()


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """What a process has open, of the kinds that this package opens."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that lists the folder
        if target.startswith(_OURS):
            found[int(entry.name)] = target
    return found


def children() -> set[int]:
    """The children of this process, zombies among them."""
    # Not /proc/.../children: that may leave some out while others end.
    found = set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - twice a test, and paths are slow
        if name.isdecimal():
            try:
                fd = os.open(f"/proc/{name}/stat", os.O_RDONLY)
            except FileNotFoundError:
                continue  # it has just ended
            try:
                status = os.read(fd, 4096)
            except ProcessLookupError:
                continue
            finally:
                os.close(fd)
            if int(status.rpartition(b")")[2].split()[1]) == os.getpid():
                found.add(int(name))
    return found


def shared_memory() -> set[str]:
    """Entries of /dev/shm that this process has made, or that a dead one which came from it left.

    A live one may be in the middle of a handshake.
    """
    entries: dict[int, set[str]] = {}
    for entry in Path("/dev/shm").iterdir():
        maker = re.fullmatch(r"(?:sem\.)?shmbatch-(\d+)-\w+", entry.name)
        if maker is not None:
            entries.setdefault(int(maker[1]), set()).add(entry.name)
    if not entries:
        return set()
    ours = entries.keys() & (recorded() | {os.getpid()})
    makers = {pid for pid in ours if pid == os.getpid() or not Path(f"/proc/{pid}").exists()}
    return {name for pid in makers for name in entries[pid]}


def half_made_semaphores() -> set[str]:
    """What processes killed inside of `sem_open` have left in /dev/shm, and nobody uses.

    The C library names them so that they might be another program's: what stands there before
    the tests is not ours.
    """
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # another user's, or gone
            used |= set(re.findall(r"/dev/shm/(sem\.\w{6})$", maps.read_text(), re.MULTILINE))
    found = set()
    for each in Path("/dev/shm").glob("sem.??????"):
        with suppress(FileNotFoundError):
            if time.time() - each.stat().st_mtime > 1:  # or somebody is about to finish it
                found.add(each.name)
    return found - used
