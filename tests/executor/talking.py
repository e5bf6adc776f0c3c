"""An executor's control thread, loop and listener in this process, and who talks with it."""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

import shmbatch
from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.executor.control import Control
from shmbatch.executor.loop import Loop
from shmbatch.executor.poller import Poller
from shmbatch.executor.served import ServedFunction
from shmbatch.executor.staging.devices import Cpu
from shmbatch.protocol import control, layout, snapshot
from shmbatch.protocol.directory import socket_path
from shmbatch.protocol.transport import executor_transport
from tests import processes, rings
from tests.processes import PATIENCE_S

NAME = "control"
SLOTS = 16


def attach(**fields: Any) -> dict[str, Any]:
    """What a producer of function `add` says first."""
    return {
        "kind": "attach",
        "version": layout.VERSION,
        "function": "add",
        "signature": None,
    } | fields


class Executor:
    """An executor that serves `add`, on threads of this process."""

    def __init__(self, transport: str, supervisor_fd: int | None) -> None:
        self.path = socket_path(NAME)
        self.stops: queue.Queue[bool] = queue.Queue()
        self.transport = executor_transport(transport)
        self.poller = Poller(self.transport, "park")
        self.function = ServedFunction(
            Definition(
                "add",
                lambda xs, ys: [x + y for x, y in zip(xs, ys, strict=True)],
                rings.ADD,
                BatchParameters(4, 0),
                SLOTS,
            ),
            f"{NAME}.add",
            Cpu(),
            None,
            self.transport.max_capacity,
        )
        self.loop = Loop(
            [self.function], self.poller, None, lambda each: self.control.disconnect(each)
        )
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen(512)
        self.control = Control(
            self.listener,
            NAME,
            {"add": self.function},
            self.transport,
            self.loop,
            self.poller,
            self.stops.put,
            supervisor_fd,
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.control.start()
        self.thread.start()

    def call(self, what: Callable[[], None]) -> None:
        """Have something done by the loop's thread, and wait for that."""
        self._call(self.loop.post, what)

    def await_watched(self, descriptors: int) -> None:
        """Wait until so many descriptors are watched, and all is done that goes with that.

        Of a producer two are, its socket and its pidfd. Whoever is not watched any more is only
        then logged, detached and closed.
        """
        watched = self.control._watched
        processes.wait_until(lambda: len(watched) == descriptors, f"{descriptors} are watched")
        self._call(self.control._request, lambda: None)
        self.call(lambda: None)

    @staticmethod
    def _call(post: Callable[[Callable[[], None]], None], what: Callable[[], None]) -> None:
        done = threading.Event()

        def command() -> None:
            what()
            done.set()

        post(command)
        assert done.wait(PATIENCE_S)

    def serves(self) -> None:
        """A producer that behaves gets its results, and whoever asks gets an answer."""
        add = shmbatch.connect(f"{NAME}.add", timeout=0)
        assert [add.remote(x, 1) for x in range(5)] == [1, 2, 3, 4, 5]
        assert shmbatch.statistics(NAME)["functions"]["add"]["producers"] >= 1

    def close(self) -> None:
        processes.hang_up()
        if not self.control._closing:  # it has hung up on everybody
            self.await_watched(0)
        self.loop.post(self.loop.drain)
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        while self.loop._commands:  # of those who left after its end
            self.loop._commands.popleft()()
        self.control.close()
        self.function.close()
        self.poller.close()
        self.transport.close()
        self.path.unlink()


@contextmanager
def serving(supervisor_fd: int | None = None) -> Iterator[Executor]:
    executor = Executor(os.environ["SHMBATCH_TRANSPORT"], supervisor_fd)
    try:
        yield executor
    finally:
        executor.close()


class Raw:
    """A producer that says what the test has it say."""

    def __init__(self, name: str = NAME) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        try:
            self.sock.connect(str(socket_path(name)))
        except BaseException:
            self.sock.close()
            raise

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.send_bytes(msgspec.msgpack.encode(message), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = struct.pack(f"{len(fds)}i", *fds)
        self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])

    def hear(self, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        return control.receive(self.sock, max_fds)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        return self.hear()[0]

    def producers(self) -> int:
        """Ask how many producers are attached."""
        self.send({"kind": "statistics"})
        reply, fds = self.hear(1)
        assert reply == {"kind": "statistics"}
        try:
            return snapshot.load(fds[0])["functions"]["add"]["producers"]
        finally:
            shut(fds)

    def attach(self) -> tuple[dict[str, Any], list[int]]:
        """Attach as far as the welcome, and return that with its descriptors."""
        self.send(attach())
        welcome, fds = self.hear(4)
        assert welcome["kind"] == "welcome"
        return welcome, fds

    def asks_until_hung_up_on(self) -> Iterator[None]:
        """Ask for statistics and read no answer, again and again."""
        try:
            while True:
                self.send({"kind": "statistics"})
                yield
        except ConnectionError:
            pass

    def is_hung_up_on(self) -> None:
        """Wait until the executor has closed the connection, everything it said being read."""
        with pytest.raises(EOFError):
            self.hear()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()


def shut(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
