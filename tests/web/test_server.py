from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import Any

import pytest

from shmbatch.web import server as server_module
from shmbatch.web.admitting import Admission
from shmbatch.web.listening import listen, url_of
from shmbatch.web.server import Server, Shared


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
        return
    headers = [(b"content-length", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"1"})


@asynccontextmanager
async def served(listener: socket.socket) -> AsyncIterator[tuple[Server, Admission]]:
    admission, ready = Admission(app, 8), asyncio.Event()
    server = Server(admission, ready.set)
    shared = Shared(fileno=os.dup(listener.fileno()))
    serving = asyncio.create_task(server.serve([shared]))
    await ready.wait()
    yield server, admission
    server.should_exit = True
    await serving


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Send a request, and return the head of the answer."""
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(1) == b"1"
    return head.decode().lower()


def test_a_stop_answers_once_more_over_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LINGER_NS", 600_000_000_000)  # or the test is too late

    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as listener:
            async with served(listener) as (server, admission):
                address = listener.getsockname()
                used = await asyncio.open_connection(*address)
                assert "connection: close" not in await request(*used)
                unused = await asyncio.open_connection(*address)
                while len(server.server_state.connections) < 2:
                    await asyncio.sleep(0)
                server.should_exit = True
                while not admission.draining:
                    await asyncio.sleep(0)
                for reader, writer in (used, unused):
                    assert "connection: close" in await request(reader, writer)
                    assert await reader.read() == b"", "it is not closed"
                    writer.close()
                    await writer.wait_closed()

    asyncio.run(main())


def test_as_many_connections_may_wait_as_the_supervisor_has_said() -> None:
    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as listener:
            before = most_waiting(listener)
            assert before > 100
            async with served(listener):
                assert most_waiting(listener) == before

    asyncio.run(main())


def test_uvloop_which_would_say_it_anew_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=pytest.fail))
    new_loop = Server(Admission(app, 8), print).config.get_loop_factory()
    assert new_loop is not None
    with closing(new_loop()) as loop:
        assert isinstance(loop, asyncio.SelectorEventLoop)


def most_waiting(listener: socket.socket) -> int:
    """How many connections the kernel lets wait; of a listening socket it says so there."""
    described = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int(struct.unpack_from("I", described, 28)[0])


def test_a_url_is_one_that_can_be_asked() -> None:
    with closing(listen("localhost", 0)) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    of_six: Any = SimpleNamespace(getsockname=lambda: ("::1", 80, 0, 0))
    assert url_of(of_six) == "http://[::1]:80"
