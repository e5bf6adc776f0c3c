"""What somebody has sent along is closed aside, wherever it is in whose queue."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbatch.executor import closing, poller
from shmbatch.executor.poller import Poller
from shmbatch.protocol import control
from shmbatch.protocol.clock import now_ns
from shmbatch.protocol.transport import executor_transport
from tests import processes
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.no_transport


class Held:
    """Keeps the threads that close from closing anything, as a file that lingers does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_close = threading.Event()
        self.closed: list[int] = []
        real = os.close

        def close(fd: int) -> None:
            if threading.current_thread().name == "shmbatch-closing":
                assert self.may_close.wait(PATIENCE_S)
                self.closed.append(fd)
            real(fd)

        monkeypatch.setattr(closing.os, "close", close)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.may_close.set()
    processes.wait_until(lambda: closing._threads == 0, "all is closed")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose end can be read once nobody has the other one."""
    out, into = os.pipe()
    yield out, into
    os.close(out)


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    rights = struct.pack(f"{len(fds)}i", *fds)
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])


@pytest.mark.parametrize("before", [[], [b"more"], [b"", b"", b"x", b""]])
@pytest.mark.parametrize("data", [b"", b"data"])
def test_descriptors_in_the_queue_of_a_socket_are_closed_by_a_thread(
    held: Held, pipe: tuple[int, int], before: list[bytes], data: bytes
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for packet in before:
        send(theirs, packet)
    send(theirs, data, pipe[1])
    os.close(pipe[1])
    closing.close(ours)
    closing.close(ours)
    assert ours.fileno() == -1
    assert control.is_gone(theirs, None)  # at once
    assert held.closed == []
    held.may_close.set()
    processes.readable(pipe[0], "it is closed")
    theirs.close()


@pytest.mark.parametrize("packets", [[], [b""], [b"x"], [b"", b"y", b""]])
@pytest.mark.parametrize("gone", [False, True])
def test_without_descriptors_a_socket_is_closed_at_once(packets: list[bytes], gone: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for packet in packets:
        send(theirs, packet)
    if gone:
        theirs.close()
    number = ours.fileno()
    closing.close(ours)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    theirs.close()


def test_as_many_as_may_linger_at_once_hold_up_the_next_and_no_more(held: Held) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(9)]
    for ours, theirs in pairs:
        send(theirs, b"", theirs.fileno())
        closing.close(ours)
        theirs.close()
    assert closing._threads == closing._THREADS_MAX
    held.may_close.set()
    processes.wait_until(lambda: len(held.closed) == 9, "all are closed")


def test_who_was_not_accepted_is_closed_with_the_listener(
    held: Held, pipe: tuple[int, int], tmp_path: Path
) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    listener.setblocking(False)
    waiting = []
    for fds in ([], [pipe[1]], []):
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting[-1].connect(str(tmp_path / "s"))
        send(waiting[-1], b"hello", *fds)
    os.close(pipe[1])
    closing.close_listener(listener)
    closing.close_listener(listener)
    assert all(control.is_gone(each, None) for each in waiting)
    assert held.closed == []
    held.may_close.set()
    processes.readable(pipe[0], "it is closed")
    for each in waiting:
        each.close()


def waits(waiter: Poller, loop: asyncio.AbstractEventLoop) -> None:
    waiter.wait_in_loop(loop, waiter.bell.look(), now_ns() + 60_000_000_000, 1)


@pytest.mark.parametrize("kernel", ["this one", "before Linux 6.16"])
def test_descriptors_for_the_event_loop_are_not_received(
    held: Held,
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kernel: str,
) -> None:
    if kernel != "this one":
        monkeypatch.setattr(poller, "_SO_PASSRIGHTS", 9999)
    half = executor_transport("linux")
    loop = asyncio.new_event_loop()
    waiter = Poller(half, "park")
    refuses = False
    try:
        send(waiter.producers_end, b"!", pipe[1])
    except PermissionError:
        refuses = True
    os.close(pipe[1])
    waits(waiter, loop)
    waits(waiter, loop)  # ends with its slice
    assert ("to the loop, which will wake late" in caplog.text) == (not refuses)
    if kernel != "this one":
        assert not refuses
    waiter.close()
    assert held.closed == []
    held.may_close.set()
    processes.readable(pipe[0], "it is closed")
    loop.close()
    half.close()
