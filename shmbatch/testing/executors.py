"""Real executors for tests: started under a private name, stopped, and killed where asked."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
from pathlib import Path
from typing import Any, Protocol

from ..app.app import App
from ..app.child import lifeline_to, serving_child
from ..app.starting import wait_for_instances
from ..client import asking, pool
from ..client.connecting import connect
from ..client.function import Function
from ..contract.device import device_name
from ..errors import ConfigError, LoadError
from ..protocol import descriptors, ownership
from ..protocol.spinning import wait_mode
from ..protocol.transport import transport_name

PATIENCE_S = 30.0  # an executor that was told to stop has so long to finish


class ExecutorProcess:
    """An executor of a file, as a child of this process; it ends when this process does.

    Args:
        file: what it serves.
        app: which of the file's apps; None where there is one.
        transport, device, wait: as of `App.run`.

    Raises:
        LoadError: there is no such file, or the executor could not load it.
        ExecutorGone: it died while it started.
        ConfigError: an option is wrong.
    """

    def __init__(
        self,
        file: Path,
        *,
        app: str | None = None,
        transport: str | None = None,
        device: str | None = None,
        wait: str | None = None,
    ) -> None:
        transport_name(transport)
        device_name(device)
        if wait is not None:
            wait_mode(wait)
        self.name = f"test-{secrets.token_hex(6)}"
        self.file = file
        self.status: int | None = None  # of its end; negative is a signal's number
        self.is_expected_to_die = False
        with descriptors.needed(f"start an executor of '{file}'"):
            lifeline = lifeline_to(os.getpid())
        self._child: subprocess.Popen[bytes] = serving_child(
            file,
            lifeline=lifeline,
            name=self.name,
            app=app,
            transport=transport,
            device=device,
            wait=wait,
        )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    def connect(self, function: str, timeout: float | None = 10, **options: Any) -> Function:
        """Return a handle of one of its functions, as `shmbatch.connect` does."""
        return connect(f"{self.name}.{function}", timeout, **options)

    def statistics(self) -> dict[str, Any]:
        """Return what it has counted, as `shmbatch.statistics` does."""
        return asking.statistics(self.name)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait until it has ended, which it was expected to do; return its exit status.

        Raises:
            AssertionError: it has not, within *timeout* seconds.
        """
        self.is_expected_to_die = True
        return self._ended(timeout)

    def stop(self) -> None:
        """Have it finish its calls and end. Idempotent.

        Raises:
            AssertionError: it ended with a status other than 0, or had to be killed because it
                did not end within 30 seconds; unless it was expected to die.
        """
        if self.status is None:
            self._child.terminate()
        status = self._ended(PATIENCE_S)
        pool.forget(self.name)  # only now: until then its handles see what became of it
        if status and not self.is_expected_to_die:
            raise AssertionError(
                f"the executor of '{self.file}' ended with status {status}; see its output"
            )

    def __repr__(self) -> str:
        state = "running" if self.status is None else f"ended with status {self.status}"
        return f"<executor of '{self.file}', pid {self.pid}, {state}>"

    def _ended(self, timeout: float) -> int:
        if self.status is None:
            late = False
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                late = True
                self._child.kill()
                self._child.wait()
            self.status = self._child.returncode
            if self.status:
                ownership.sweep()  # it could not remove its own
            wait_for_instances(self.name)
            if late:
                raise AssertionError(
                    f"the executor of '{self.file}' had not ended after {timeout:g} s; it was "
                    "killed, perhaps because a function never returns"
                )
        return self.status


class HasPid(Protocol):
    """An executor: that of a fixture, or what `App.run` gives."""

    @property
    def pid(self) -> int | None: ...


def kill(executor: HasPid | int) -> None:
    """Kill an executor as no process can prevent, and wait until it is dead.

    Args:
        executor: or its pid.

    Raises:
        ConfigError: it does not run.
        AssertionError: it is not dead within 30 seconds.
    """
    pid = executor if isinstance(executor, int) else executor.pid
    is_over = isinstance(executor, ExecutorProcess) and executor.status is not None
    if pid is None or is_over:  # its pid may be another's by now
        raise ConfigError("the executor does not run; there is nothing to kill")
    if isinstance(executor, ExecutorProcess):
        executor.is_expected_to_die = True
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ConfigError(f"there is no process {pid}; has the executor ended?") from None
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(PATIENCE_S * 1000):
            raise AssertionError(f"process {pid} is not dead {PATIENCE_S:g} s after SIGKILL")
    finally:
        os.close(pidfd)
    if isinstance(executor, ExecutorProcess):
        executor.wait()


def file_of(target: App | Path | str, folder: Path) -> tuple[Path, str | None]:
    """Return the file that an executor is to serve, and the app that is meant in it.

    Args:
        target: an app, or a file; one with a relative path is looked for in *folder*, and then
            where this process stands.

    Raises:
        ConfigError: it is neither, or the app was made interactively.
        LoadError: there is no such file.
    """
    if not isinstance(target, App | str | Path):
        raise ConfigError(f"{target!r:.100} is no executor's target; give a file, or an App")
    if isinstance(target, App):
        if target.file is None:
            raise ConfigError(f"app {target.name!r} was made interactively; put it in a file")
        return target.file, target.name
    for found in (folder / target, Path(target)):
        if found.is_file():
            return found.resolve(), None
    raise LoadError(f"there is no file '{target}', neither in '{folder}' nor in '{Path.cwd()}'")
