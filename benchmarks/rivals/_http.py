"""How producers call a rival over HTTP: keep-alive connections, one for each call in flight.

The leanest client there is, so that what is measured is the rival and not its client library: a
call is one send, and one receive if its response comes in one piece. The clients that the rivals'
own pages use (httpx, aiohttp, requests) cost a producer some 100 to 500 µs a call instead.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from select import POLLIN, poll
from time import monotonic
from typing import TypeAlias

import numpy as np

from benchmarks._crew import Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

Address: TypeAlias = str | tuple[str, int]  # a UNIX socket's path, or host and port
Piece: TypeAlias = bytes | memoryview | Array

RECEIVED_NBYTES = 1 << 16
KEPT_S = 4.0  # uvicorn closes connections that were idle for 5 s
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connections:
    """Connections of one producer to one path; responses are received in the order of calls.

    One is opened when all others have a call in flight, and closed after an idle time shorter
    than that after which servers close it, as pools of client libraries do.
    """

    def __init__(self, address: Address, path: str, media_type: str) -> None:
        self._address = address
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        ).encode()
        self._idle: list[tuple[socket.socket, float]] = []  # and since when; the latest last
        self._busy: deque[socket.socket] = deque()

    def send(self, pieces: Sequence[Piece], headers: bytes = b"") -> None:
        """Send a request whose body consists of these pieces."""
        views = [memoryview(piece).cast("B") for piece in pieces]  # type: ignore[arg-type]
        nbytes = sum(map(len, views))
        head = b"%s%bContent-Length: %d\r\n\r\n" % (self._head, headers, nbytes)
        parts = [memoryview(head), *views]
        connection = self._connection()
        self._busy.append(connection)
        sent = connection.sendmsg(parts)
        if sent < len(head) + nbytes:
            for part in parts:
                connection.sendall(part[sent:])
                sent = max(0, sent - len(part))

    def _connection(self) -> socket.socket:
        if self._idle:
            connection, since = self._idle.pop()
            if monotonic() - since < KEPT_S:
                return connection
            connection.close()
        return connect(self._address)

    def receive(self, timeout_s: float | None) -> tuple[bytes, bytes] | None:
        """Return head and body of the oldest response; None if none begins within so long."""
        connection = self._busy[0]
        if timeout_s is not None:
            poller = poll()
            poller.register(connection, POLLIN)
            if not poller.poll(timeout_s * 1e3):
                return None
        response = _receive(connection)
        self._idle.append((self._busy.popleft(), monotonic()))
        return response

    def close(self) -> None:
        for connection in (*self._busy, *(connection for connection, _ in self._idle)):
            connection.close()


def _receive(connection: socket.socket) -> tuple[bytes, bytes]:
    received = connection.recv(RECEIVED_NBYTES)
    while (end := received.find(b"\r\n\r\n") + 4) < 4:
        received += _more(connection, received)
    length = LENGTH.search(received, 0, end)
    if not received.startswith(b"HTTP/1.1 200") or length is None:
        raise ConnectionError(f"the server answered {received[:400]!r}")
    whole = end + int(length[1])
    while len(received) < whole:
        received += _more(connection, received)
    return received[:end], received[end:]


def _more(connection: socket.socket, received: bytes) -> bytes:
    more = connection.recv(RECEIVED_NBYTES)
    if not more:
        raise ConnectionError(f"the server hung up after {received[:400]!r}")
    return more


def connect(address: Address) -> socket.socket:
    """Connect to a server."""
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX)
    else:
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def free_port() -> tuple[str, int]:
    """Return a loopback address where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
        return str(host), int(port)


def raw_producer(
    cue: Cue, work: Work, load: Load, number: int, address: Address, path: str
) -> bytes:
    """Load a server whose requests and responses are an array's bytes and nothing else."""
    connections = Connections(address, path, "application/octet-stream")

    def submit(x: Array) -> None:
        connections.send((x,))

    def decode(head: bytes, body: bytes) -> Array:
        return np.frombuffer(body, work.result_dtype).reshape(work.result_shape)

    try:
        return drive_http(cue, work, load, number, connections, submit, decode)
    finally:
        connections.close()


def drive_http(
    cue: Cue,
    work: Work,
    load: Load,
    number: int,
    connections: Connections,
    submit: Callable[[Array], object],
    decode: Callable[[bytes, bytes], Array],
) -> bytes:
    """Drive a producer over these connections, after one call that shows that it is served."""

    def collect(timeout_s: float | None) -> tuple[Array, ...]:
        response = connections.receive(timeout_s)
        return () if response is None else (decode(*response),)

    submit(work.inputs(number)[0])
    collect(None)
    return drive(cue, work, load, number, submit, collect)
