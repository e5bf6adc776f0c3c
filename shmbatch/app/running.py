"""`app.run()`: an executor as a child of this process, under a private name."""

from __future__ import annotations

import os
import secrets
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from ..client import pool
from ..errors import ConfigError, ExecutorGone
from ..protocol import descriptors, names, ownership
from .launching import command, kept
from .reports import Reports, error_in


class Running:
    """Context manager; see `App.run`. Each entry starts an executor of its own."""

    def __init__(
        self,
        app: str,
        file: Path,
        *,
        wait: str | None,
        transport: str | None,
        device: str | None,
    ) -> None:
        self._app = app
        self._file = file
        self._wait = wait
        self._transport = transport
        self._device = device
        self._child: subprocess.Popen[bytes] | None = None
        self._private = ""
        self._outer_wait: str | None = None
        self._outer_name: str | None = None

    @property
    def pid(self) -> int | None:
        """The executor's process, while it runs."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> Running:
        if self._child is not None:
            raise ConfigError(f"app {self._app!r} runs already in this context")
        self._private = f"run-{secrets.token_hex(6)}"
        starting = descriptors.needed(f"start an executor of '{self._file}'")
        with starting, ExitStack() as undone:
            ready_out, ready_in = os.pipe()
            undone.callback(os.close, ready_out)
            with ExitStack() as passed:
                ready_in = kept(ready_in)
                passed.callback(os.close, ready_in)
                # Not a pipe: a fork of ours would keep its other end open after our death.
                lifeline = kept(os.pidfd_open(os.getpid()))
                passed.callback(os.close, lifeline)
                self._child = self._started(ready_in, lifeline)
            undone.pop_all()
        try:
            with Reports(ready_out) as reports:
                self._wait_until_ready(reports)
        except BaseException:
            self._end()
            raise
        self._outer_name = names.resolve(self._app)
        names.advertise(self._app, self._private)
        pool.rebind(self._outer_name)
        if self._wait is not None:
            self._outer_wait = os.environ.get("SHMBATCH_WAIT")
            os.environ["SHMBATCH_WAIT"] = self._wait
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer_name in (None, self._app):
            names.withdraw(self._app)
        else:  # it runs in an outer context too
            names.advertise(self._app, self._outer_name)
        if self._wait is not None:
            if self._outer_wait is None:
                os.environ.pop("SHMBATCH_WAIT", None)
            else:
                os.environ["SHMBATCH_WAIT"] = self._outer_wait
        self._end()

    def _started(self, ready_fd: int, lifeline: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(
                self._file,
                "--supervisor-fd",
                str(lifeline),
                name=self._private,
                app=self._app,
                transport=self._transport,
                device=self._device,
                wait=self._wait,
                ready_fd=ready_fd,
            ),
            pass_fds=(ready_fd, lifeline),
            stdin=subprocess.DEVNULL,
            # A Ctrl-C is for us; the executor drains when we leave.
            start_new_session=True,
        )

    def _wait_until_ready(self, reports: Reports) -> None:
        """Raise what keeps the executor from getting ready."""
        assert self._child is not None
        pidfd = os.pidfd_open(self._child.pid)  # not reaped yet, so certainly its own
        try:
            report = reports.next(pidfd, None)
        finally:
            os.close(pidfd)
        if report is None:
            raise ExecutorGone(
                f"the executor of app {self._app!r} died while it started; see its output above"
            )
        error = error_in(report)
        if error is not None:
            raise error

    def _end(self) -> None:
        """Have the executor drain, and wait until it is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
        if child.wait() != 0:
            ownership.sweep()  # it was killed, and could not remove its own
        pool.forget(self._private)
