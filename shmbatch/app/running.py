"""`app.run()`: an executor as a child of this process, under a private name."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from .. import errors
from ..client import pool
from ..errors import ExecutorGone, ShmbatchError
from ..protocol import names


class Running:
    """Context manager; see `App.run`. Each entry starts an executor of its own."""

    def __init__(self, app: str, file: Path, *, wait: str | None, transport: str | None) -> None:
        self._app = app
        self._file = file
        self._wait = wait
        self._transport = transport
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
            raise errors.ConfigError(f"app {self._app!r} runs already in this context")
        self._private = f"run-{secrets.token_hex(6)}"
        ready_out, ready_in = os.pipe()
        # Not a pipe: a fork of ours would keep its other end open after our death.
        lifeline = os.pidfd_open(os.getpid())
        try:
            self._child = subprocess.Popen(
                self._command(ready_in, lifeline),
                pass_fds=(ready_in, lifeline),
                stdin=subprocess.DEVNULL,
                # A Ctrl-C is for us; the executor drains when we leave.
                start_new_session=True,
            )
        finally:
            os.close(ready_in)
            os.close(lifeline)
            if self._child is None:
                os.close(ready_out)
        try:
            with os.fdopen(ready_out, "rb") as pipe:
                # One line, not all: a child that the file started may hold the other end.
                self._check(pipe.readline())
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

    def _command(self, ready_fd: int, lifeline_fd: int) -> list[str]:
        command = [sys.executable, "-P", "-m", "shmbatch", "start", str(self._file)]
        command += ["--name", self._private, "--app", self._app]
        command += ["--ready-fd", str(ready_fd), "--supervisor-fd", str(lifeline_fd)]
        if self._wait is not None:
            command += ["--wait", self._wait]
        if self._transport is not None:
            command += ["--transport", self._transport]
        return command

    def _check(self, report: bytes) -> None:
        """Raise what kept the executor from getting ready."""
        if not report:
            raise ExecutorGone(
                f"the executor of app {self._app!r} died while it started; see its output above"
            )
        answer = json.loads(report)
        if answer.get("ready"):
            return
        kind = getattr(errors, str(answer.get("error")), ShmbatchError)
        raise kind(str(answer.get("message")))

    def _end(self) -> None:
        """Have the executor drain, and wait until it is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
        if child.wait() != 0:
            names.sweep()  # it was killed, and could not remove its own
        pool.forget(self._private)
