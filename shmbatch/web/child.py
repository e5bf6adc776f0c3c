"""A child process of the supervisor: how it is started, what it reports, and when it has ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ..app.launching import kept
from ..app.reports import error_in
from ..errors import ShmbatchError
from ..protocol.endings import ending

_REAP_S = 5.0  # longer than the supervisor of an executor needs, told to end at once


class Child:
    """A process of this one, in a session of its own, that reports as `reports` says.

    Make it in a running event loop.

    Args:
        what: it is, for messages.
        command: returns its command line, given the descriptor to report to.
        fds: descriptors that it gets besides.
        gone: what `report` raises where it has ended without a word.
    """

    def __init__(
        self,
        what: str,
        command: Callable[[int], Sequence[str]],
        *,
        fds: Sequence[int],
        environment: Mapping[str, str],
        gone: type[ShmbatchError],
    ) -> None:
        with ExitStack() as undone:
            out, into = os.pipe()
            undone.callback(os.close, out)
            os.set_blocking(out, False)
            into = kept(into)
            try:
                self._popen = subprocess.Popen(
                    command(into),
                    pass_fds=(*fds, into),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C is for the supervisor
                )
            finally:
                os.close(into)
            undone.pop_all()
        self.what = f"{what} (process {self._popen.pid})"
        self._gone = gone
        self._is_told = False
        self._text = b""
        self._out = out
        self._said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._pidfd = os.pidfd_open(self._popen.pid)  # not reaped yet, so certainly its own
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(out, self._hear)
        self._loop.add_reader(self._pidfd, self._bury)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it lives."""
        return self._ended.result() if self._ended.done() else None

    async def report(self) -> dict[str, Any]:
        """Return its next report.

        Raises:
            ShmbatchError: it reports an error, or has ended, which is *gone*.
        """
        said = await self._said.get()
        if said is None:
            self._said.put_nowait(None)  # for whoever asks again
            raise self._gone(f"{self.what} {self.fate()} while it started; see its output above")
        error = error_in(said)
        if error is not None:
            raise error
        return said

    async def ended(self) -> int:
        """Wait until it has ended; return its exit status."""
        return await asyncio.shield(self._ended)

    def fate(self) -> str:
        """Say how it has ended."""
        return ending(self._ended.result())

    def terminate(self) -> None:
        """Have it end in order, if it lives; only once, as a second time would have it hurry."""
        if not self._is_told:
            self._is_told = True
            self._popen.terminate()

    def hurry(self) -> None:
        """Have it end at once, by the second signal that says so."""
        self.terminate()
        self._popen.send_signal(signal.SIGINT)  # two of a kind might arrive as one

    def kill(self) -> None:
        """Kill it, if it lives."""
        self._popen.kill()

    def reap(self) -> None:
        """Wait until it is dead, whatever else there is to do; kill it if that takes too long."""
        try:
            self._popen.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _hear(self) -> None:
        try:
            data = os.read(self._out, 65_536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._out)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._said.put_nowait(json.loads(line))

    def _bury(self) -> None:
        self._hear()  # its last words; a process that it has left may keep the pipe open
        for fd in (self._out, self._pidfd):
            self._loop.remove_reader(fd)
            os.close(fd)
        self._said.put_nowait(None)
        self._ended.set_result(self._popen.wait())
