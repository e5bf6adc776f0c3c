"""The process that starts and ends executor and web workers: in which order, and what it survives.

It keeps the listening socket open from its start to its end. A reload goes like this::

    load the new code in new workers       if it does not load, nothing changes
    old workers: accept no more, finish    from here on, connections wait in the backlog
    old executor: drain
    new executor: start
    new workers: accept                    until here

uvicorn has a supervisor of its own, which keeps workers alive and replaces them one by one. It
could neither have all old workers finish before the old executor ends, which new workers must not
call, nor end with the executor, nor have its workers end when it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..app.launching import command, kept
from ..errors import ExecutorGone, ShmbatchError
from ..protocol import ownership
from ..protocol.terminal import has_terminal
from .child import Child
from .listening import url_of
from .workers import Worker

log = logging.getLogger("shmbatch.web")

_PAUSE_S = 1.0  # before a worker that did not come up is tried again


@dataclass(frozen=True)
class Settings:
    """What to serve, and how; see `shmbatch serve`."""

    file: Path
    app: str | None
    name: str | None
    workers: int
    limit: int
    grace_s: float
    transport: str | None
    device: str | None
    wait: str | None


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serve until told to stop; return the exit status. Call it in the main thread.

    SIGTERM and SIGINT finish requests that were accepted, for *grace_s* seconds at most, then
    calls; a second one does not.
    SIGHUP reloads; if it says that the terminal is gone, it stops.

    Raises:
        LoadError: the file does not load, or has no endpoints.
        NameTaken: a live executor has the name.
        ExecutorGone: the executor died and could not be started again.
        ConfigError: an option is wrong, or an extra is not installed.
    """
    with asyncio.Runner() as runner:
        return runner.run(_Supervisor(settings, listener).run())


class _Supervisor:
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        # Not a pipe, whose other end a fork could keep open after our death.
        self._lifeline = kept(os.pidfd_open(os.getpid()))
        self._workers: list[Worker] = []
        self._next: list[Worker] = []  # who load, or wait until the others have finished
        self._executor: Child | None = None
        self._reload = asyncio.Event()
        # Who was told to ignore that its terminal goes, as by nohup, has none to lose.
        self._terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()
        self._is_stopping = False

    async def run(self) -> int:
        serving = asyncio.create_task(self._serve())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number, serving)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up, serving)
        try:
            return await serving
        except asyncio.CancelledError:
            return 0  # as it was told to
        finally:
            self._is_stopping = True
            await _end([*self._next, *self._workers], self._settings.grace_s)
            await self._end_executor()
            os.close(self._lifeline)

    async def _serve(self) -> int:
        await self._begin(await self._load())
        while True:
            keepers = [asyncio.create_task(self._keep(at)) for at in range(len(self._workers))]
            reloading = asyncio.create_task(self._reload.wait())
            tasks: list[asyncio.Task[Any]] = [*keepers, reloading]
            if self._executor is not None:
                tasks.append(asyncio.create_task(self._executor.ended()))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            for keeper in keepers:
                if keeper.done() and not keeper.cancelled():
                    keeper.result()  # an error of our own
            if self._executor is not None and self._executor.status is not None:
                if self._executor.status:
                    raise ExecutorGone(f"{self._executor.what} {self._executor.fate()}")
                log.info("%s was stopped", self._executor.what)
                return 0
            self._reload.clear()
            try:
                description = await self._load()
            except (ShmbatchError, OSError) as error:
                log.error("nothing is reloaded: %s", error)
                continue
            await _end(self._workers, self._settings.grace_s)
            await self._end_executor()
            await self._begin(description)

    async def _load(self) -> dict[str, Any]:
        """Have the next workers load the file and wait; return what they say is in it."""
        try:
            for _ in range(self._settings.workers):
                self._next.append(self._new_worker())
            said = await asyncio.gather(*(worker.loaded() for worker in self._next))
        except (ShmbatchError, OSError):
            await _end(self._next, self._settings.grace_s)
            self._next = []
            raise
        return said[0]

    async def _begin(self, description: dict[str, Any]) -> None:
        """Start the executor, then have the next workers accept."""
        self._workers, self._next = self._next, []
        if description["calls"]:
            self._executor = self._new_executor(description)
            await self._executor.report()
        failed = await asyncio.gather(
            *(worker.serving() for worker in self._workers), return_exceptions=True
        )
        for error in failed:
            if isinstance(error, BaseException):
                if None not in failed or not isinstance(error, ShmbatchError):
                    raise error
                log.error("%s", error)  # it is replaced, like one that ends later
        self._say(description)

    async def _keep(self, at: int) -> None:
        """Replace a worker whenever it has ended; cancelled, and begun again, it goes on."""
        while True:
            worker = self._workers[at]
            try:
                await worker.loaded()
                await worker.serving()
                await worker.ended()
            except ShmbatchError as error:
                log.error("%s", error)
                await asyncio.sleep(_PAUSE_S)
            else:
                log.warning("%s %s and is replaced", worker.what, worker.fate())
            self._workers[at] = self._new_worker()

    async def _end_executor(self) -> None:
        if self._executor is not None:
            await _end([self._executor])
            if self._executor.status:
                ownership.sweep()  # it was killed, and could not remove its own
            self._executor = None

    def _new_worker(self) -> Worker:
        orders = {
            "file": os.fspath(self._settings.file),
            "app": self._settings.app,
            "name": self._settings.name,
            "limit": self._settings.limit,
            "listener": self._listener.fileno(),
            "supervisor": self._lifeline,
        }
        options = {
            "SHMBATCH_TRANSPORT": self._settings.transport,
            "SHMBATCH_DEVICE": self._settings.device,
            "SHMBATCH_WAIT": self._settings.wait,
        }
        given = {name: value for name, value in options.items() if value is not None}
        fds = (self._listener.fileno(), self._lifeline)
        return Worker(orders, fds, os.environ | given)

    def _new_executor(self, description: dict[str, Any]) -> Child:
        def line(fd: int) -> list[str]:
            return command(
                self._settings.file,
                "--restart",
                "--supervisor-fd",
                str(self._lifeline),
                name=description["name"],
                app=description["app"],
                transport=self._settings.transport,
                device=self._settings.device,
                wait=self._settings.wait,
                ready_fd=fd,
            )

        what = f"the supervisor of {description['name']!r}"  # which outlives executors
        return Child(what, line, fds=(self._lifeline,), environment=os.environ, gone=ExecutorGone)

    def _say(self, description: dict[str, Any]) -> None:
        url = url_of(self._listener)
        workers = f"{len(self._workers)} worker{'' if len(self._workers) == 1 else 's'}"
        log.info("%s serves %s with %s", description["name"], url, workers)
        endpoints = description["endpoints"]
        for name, method, _ in endpoints:
            log.info("%s %s/%s", method or "ASGI app at", url, name)
        if any(docs for *_, docs in endpoints):
            log.info("documentation at %s/docs", url)

    def _stop(self, number: int, serving: asyncio.Task[int]) -> None:
        if self._is_stopping:
            log.warning("stops now")
            workers = (*self._next, *self._workers)
            executors = list(filter(None, [self._executor]))
            for child in executors:
                child.hurry()  # it has an executor of its own to end
            for child in workers:
                child.kill()
            for child in (*workers, *executors):
                child.reap()
            ownership.sweep()
            os._exit(128 + number)
        log.info("stops: requests that were accepted finish")
        self._is_stopping = True
        serving.cancel()

    def _hang_up(self, serving: asyncio.Task[int]) -> None:
        if self._terminal and not has_terminal():
            if not self._is_stopping:
                self._stop(signal.SIGHUP, serving)
        else:
            log.info("reloads")
            self._reload.set()


async def _end(children: Sequence[Child], grace_s: float | None = None) -> None:
    """Have them end in order; kill those that have not within *grace_s* seconds, if it is given.

    A client may take for ever to send its request, or to read its response; the others wait.
    """
    for child in children:
        child.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await asyncio.gather(*(child.ended() for child in children))
    except TimeoutError:
        for child in children:
            if child.status is None:
                log.warning("%s has not finished within %g s and is killed", child.what, grace_s)
                child.kill()
        await asyncio.gather(*(child.ended() for child in children))
