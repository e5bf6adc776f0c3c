"""A process of ours that takes commands and answers them, as lines of JSON over two pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from ..app.launching import kept
from ..app.reports import Reports, error_in
from ..errors import LoadError
from ..protocol import descriptors, ownership
from ..protocol.endings import ending

_STDERR = 2
_GRACE_S = 5.0  # for which it may go on with what it does


class Child:
    """Context manager: a module of this package as a process; it ends with the context.

    Args:
        module: which one, as in ``"producer"``.
        asked: what it is told as its only argument, beside the descriptors.
    """

    def __init__(self, module: str, **asked: Any) -> None:
        self._module = module
        self._asked = asked

    def __enter__(self) -> Self:
        starting = descriptors.needed(f"start {self._module}s")
        with starting, ExitStack() as undone:
            reports_out, reports_in = os.pipe()
            undone.callback(os.close, reports_out)
            commands_out, commands_in = os.pipe()
            undone.callback(os.close, commands_in)
            with ExitStack() as passed:
                fds = {}
                for what, fd in (
                    ("reports", reports_in),
                    ("commands", commands_out),
                    ("lifeline", os.pidfd_open(os.getpid())),
                ):
                    fds[what] = kept(fd)
                    passed.callback(os.close, fds[what])
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-m", f"shmbatch.tuning.{self._module}"),
                        json.dumps({**self._asked, **fds}),
                    ],
                    pass_fds=tuple(fds.values()),
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,  # what a user's file prints is no result
                    start_new_session=True,  # a Ctrl-C is for us
                )
            self._pidfd = os.pidfd_open(self._process.pid)
            undone.pop_all()
        self._reports = Reports(reports_out)
        self._commands = commands_in
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._commands)  # which is how it is told to end
        try:
            if kind is None or issubclass(kind, Exception):  # and not Ctrl-C
                self._process.wait(_GRACE_S)
            else:
                self._process.terminate()
                self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        if self._process.wait() != 0:
            ownership.sweep()  # a name that it could not remove
        os.close(self._pidfd)
        self._reports.close()

    def tell(self, **command: Any) -> None:
        """Send a command."""
        try:
            os.write(self._commands, json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            pass  # the next answer says why

    def answer(self, doing: str) -> dict[str, Any]:
        """Return the answer to a command, however long it takes.

        Args:
            doing: what the process does meanwhile, for the message if it dies of it.

        Raises:
            ShmbatchError: what keeps it from answering.
        """
        report = self._reports.next(self._pidfd, None)
        if report is None:
            raise LoadError(f"the {self._module} {doing} and {_end(self._process.wait())}")
        error = error_in(report)
        if error is not None:
            raise error
        return report

    def asked(self, doing: str, **command: Any) -> dict[str, Any]:
        """Send a command and return its answer; errors as of `answer`."""
        self.tell(**command)
        return self.answer(doing)

    def interrupt(self) -> None:
        """Send SIGTERM, which ends what it serves."""
        self._process.send_signal(signal.SIGTERM)


def _end(status: int) -> str:
    advice = "; perhaps it ran out of memory, try --max" if status == -signal.SIGKILL else ""
    return ending(status) + advice
