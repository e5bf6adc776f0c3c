"""What an executor says while it starts, to whoever has started it: lines of JSON on a pipe.

In this order, each at most once::

    {"pid": ...}                        in the background only, where it comes to have one
    {"name": ..., "start": ...}         it logs to NAME.log from now on, what it has said included,
                                        which begins there at byte *start*
    {"ready": true, "name": ...}        it serves; there is nothing more to say
    {"error": ..., "message": ...}      instead: the class and the message of what is wrong
"""

from __future__ import annotations

import json
import os
import select
from typing import Any

from ..errors import ShmbatchError, rebuilt
from ..protocol.clock import now_ns

_MESSAGE_LIMIT = 8000  # characters; what a file raises may have any length


class Reporter:
    """The executor's end; says nothing where nobody asked, which is where *fd* is None."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def make(self, report: dict[str, Any], *, last: bool = False) -> None:
        if self._fd is not None:
            try:
                os.write(self._fd, json.dumps(report).encode() + b"\n")
            except BrokenPipeError:
                pass  # it has died, or does not care any more; we serve all the same
            if last:
                self.close()

    def close(self) -> None:
        """Have nothing more to say. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def report_of(error: ShmbatchError) -> dict[str, Any]:
    """Return the report that is about *error*."""
    message = str(error)
    if len(message) > _MESSAGE_LIMIT:
        end = f"... ({len(message)} characters)"
        message = message[: _MESSAGE_LIMIT - len(end)] + end
    return {"error": type(error).__name__, "message": message}


def error_in(report: dict[str, Any]) -> ShmbatchError | None:
    """Return the error that a report is about; None if it is not about one."""
    if "error" not in report:
        return None
    return rebuilt(report["error"], report.get("message"), ShmbatchError)


class Reports:
    """What an executor reports while it starts: lines of JSON on a pipe, whose end this owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = b""

    def next(self, pidfd: int | None, deadline_ns: int | None) -> dict[str, Any] | None:
        """Return the next report; None if there is nobody left to make one.

        Args:
            pidfd: of the executor, where it is known. A child that the user's file has forked
                keeps the pipe open, so its end alone would not tell of a death.

        Raises:
            TimeoutError: *deadline_ns* passed.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        while b"\n" not in self._text:
            patience_ms = None
            if deadline_ns is not None:
                patience_ms = max(0.0, (deadline_ns - now_ns()) / 1e6)
            found = [fd for fd, _ in poll.poll(patience_ms)]
            if not found:
                raise TimeoutError
            if self._fd not in found:
                return None
            data = os.read(self._fd, 65_536)
            if not data:
                return None
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        return report

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
