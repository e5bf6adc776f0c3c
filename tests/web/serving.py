"""`shmbatch serve` as tests see it: what it says, who it is, and what it answers."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmbatch.protocol import ownership
from tests.processes import wait_until
from tests.programs import PATIENCE_S, Watched, started

# The third program of Modal's guide to dynamic batching, its import changed and its image dropped.
THIRD_PROGRAM = """
    import shmbatch as modal

    app = modal.App()

    @app.function()
    @modal.batched(max_batch_size=2, wait_ms=1000)
    async def batch_add(xs: list[int], ys: list[int]) -> list[int]:
        return [x + y for x, y in zip(xs, ys)]


    @app.function()
    @modal.web_endpoint(method="POST", docs=True)
    async def add(body: dict[str, int]) -> dict[str, int]:
        result = await batch_add.remote.aio(body["x"], body["y"])
        return {"result": result}
"""

# Its client, with a URL for its URL.
CLIENT = """
    import asyncio
    import aiohttp

    async def send_post_request(session, url, data):
        async with session.post(url, json=data) as response:
            return await response.json()

    async def main():
        # Enter the URL of your web endpoint here
        url = "{url}"

        async with aiohttp.ClientSession() as session:
            # Submit three requests asynchronously
            tasks = [
                send_post_request(session, url, {{"x": 1, "y": 300}}),
                send_post_request(session, url, {{"x": 2, "y": 200}}),
                send_post_request(session, url, {{"x": 3, "y": 100}}),
            ]
            results = await asyncio.gather(*tasks)
            for result in results:
                print(f"Sum: {{result['result']}}")

    asyncio.run(main())
"""


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any  # what the JSON means, else the text
    headers: dict[str, str]


class Site:
    """A running ``shmbatch serve``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self._family: dict[int, Watched] = {}
        self._text = b""
        self.url = ""
        self.until_it_serves()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for it to say, from now on, what *pattern* matches somewhere in a line."""
        while True:
            line = self._line()
            self.said.append(line)
            if found := re.search(pattern, line):
                return found

    def until_it_serves(self) -> None:
        self.url = self.until(r"serves (http://\S+) with")[1]
        self.watch()

    def rest(self) -> str:
        """Return what else it says to its end."""
        assert self.process.stderr is not None
        self.process.wait(PATIENCE_S)
        os.set_blocking(self.process.stderr.fileno(), False)
        try:
            while data := os.read(self.process.stderr.fileno(), 65_536):
                self._text += data
        except BlockingIOError:
            pass  # whom it has left keeps the pipe open
        return self._text.decode()

    def _line(self) -> str:
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        while b"\n" not in self._text:
            assert select.select([fd], [], [], PATIENCE_S)[0], f"it says no more: {self.said}"
            data = os.read(fd, 65_536)
            assert data, f"it ended with {self.process.wait(PATIENCE_S)}: {self.said}"
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    # ---- its processes -------------------------------------------------------------------

    def workers(self) -> list[int]:
        return self._children("shmbatch.web.worker")

    def supervisor(self) -> int:
        """Of the executor."""
        (pid,) = self._children("start")
        return pid

    def executor(self) -> int:
        (pid,) = self._children("start", self.supervisor())
        return pid

    def _children(self, word: str, of: int | None = None) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if parent == (of or self.process.pid) and word.encode() in words:
                    found.append(int(entry.name))
        return sorted(found)

    def watch(self) -> None:
        """Look who its children are, so that it is known what becomes of them."""
        supervisors = self._children("start")
        executors = [pid for each in supervisors for pid in self._children("start", each)]
        for pid in (*self.workers(), *supervisors, *executors):
            if pid not in self._family:
                self._family[pid] = Watched(pid)

    def family_gone(self) -> bool:
        """Wait until all children that were seen have ended."""
        return all(watched.gone() for watched in self._family.values())

    def close(self) -> None:
        with ExitStack() as stack:
            for watched in self._family.values():
                stack.enter_context(watched)  # kills what is left
        self._family.clear()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Have it end; return its status when it and all its children have."""
        self.signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        assert self.family_gone()
        return status

    # ---- what it answers -----------------------------------------------------------------

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, **body: object) -> Answer:
        return self.ask("POST", path, json.dumps(body))

    def ask(self, method: str, path: str, body: str | None = None) -> Answer:
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            said = {name.lower(): value for name, value in answer.getheaders()}
            is_json = said.get("content-type") == "application/json"
            return Answer(answer.status, json.loads(text) if is_json else text, said)

    def ready(self) -> None:
        wait_until(lambda: self.get("/readyz").status == 200, "it is ready")


@contextmanager
def serving(file: Path, *options: object) -> Iterator[Site]:
    """Serve *file* on a free port; at the end it is stopped, unless it has ended before."""
    with started("serve", file, "--port", 0, *options) as process:
        site = Site(process)
        with ExitStack() as after:
            after.callback(ownership.sweep)  # after those that a failed test has killed
            after.enter_context(closing(site))
            yield site
            if process.poll() is None:
                assert site.stop() == 0, site.rest()
            assert site.family_gone(), "it has left a process"


@contextmanager
def asking(site: Site, path: str) -> Iterator[socket.socket]:
    """Send a request, and leave what becomes of it to the caller."""
    with closing(socket.create_connection(("127.0.0.1", site.port), PATIENCE_S)) as connection:
        ask(connection, path)
        yield connection


@contextmanager
def idle(site: Site) -> Iterator[socket.socket]:
    """Keep a connection that has had an answer."""
    with asking(site, "/livez") as connection:
        answer(connection)
        yield connection


def hung_up(connection: socket.socket) -> bool:
    """Wait until the other side has hung up; False if it has sent something."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def ask(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def answer(connection: socket.socket) -> tuple[str, str]:
    """Return head and body of a short answer, which has a length."""
    text = ""
    while "\r\n\r\n" not in text:
        text += received(connection)
    head, _, body = text.lower().partition("\r\n\r\n")
    length = int(head.partition("content-length: ")[2].split()[0])
    while len(body) < length:
        body += received(connection)
    return head, body


def received(connection: socket.socket) -> str:
    data = connection.recv(65_536)
    assert data, "it has hung up"
    return data.decode()
