"""What somebody has sent along is closed apart, wherever it is in whose queue."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
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

THREADS = Path("/proc/self/task")


@pytest.fixture
def lingering() -> Iterator[Callable[[], int]]:
    """Makes sockets whose last close waits for an hour, for a reader that does not read."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def one() -> int:
            sender = socket.create_connection(listener.getsockname())
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.send(bytes(65536))
            return sender.detach()

        yield one


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose end can be read once nobody has the other one."""
    out, into = os.pipe()
    yield out, into
    os.close(out)


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    """Send descriptors, and do not keep them."""
    rights = struct.pack(f"{len(fds)}i", *fds)
    try:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("before", [[], [b"more"], [b"", b"", b"x", b""]])
@pytest.mark.parametrize("data", [b"", b"data"])
def test_descriptors_in_the_queue_of_a_socket_are_closed_and_not_waited_for(
    lingering: Callable[[], int], pipe: tuple[int, int], before: list[bytes], data: bytes
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for packet in before:
        send(theirs, packet)
    send(theirs, data, lingering(), pipe[1])
    number = ours.fileno()
    closing.close(ours)
    closing.close(ours)
    assert ours.fileno() == -1
    assert control.is_gone(theirs, None)  # at once
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
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


def test_however_many_linger_no_descriptor_and_no_thread_is_kept(
    lingering: Callable[[], int],
) -> None:
    before = processes.descriptors()
    threads = len(list(THREADS.iterdir()))
    for _ in range(20):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        send(theirs, b"", lingering())
        closing.close(ours)
        theirs.close()
    assert processes.descriptors() == before
    processes.wait_until(lambda: len(list(THREADS.iterdir())) <= threads, "they have ended")


WITHOUT = """
import ctypes, os, socket, struct, sys
from shmbatch.executor import closing
from shmbatch.protocol import control

sys.stdin.read()  # until nobody else has the descriptor
filters = (
    struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number of the system call
    + struct.pack("HBBI", 0x15, 0, 1, 436)  # close_range
    + struct.pack("HBBI", 0x06, 0, 0, 0x0005_0000 | 38)  # fails with ENOSYS
    + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF_0000)  # any other one is made
)
code = ctypes.create_string_buffer(filters)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
socket.send_fds(theirs, [b"x"], [int(sys.argv[1])])
os.close(int(sys.argv[1]))
closing.close(ours)
print(len(os.listdir("/proc/self/task")), control.is_gone(theirs, None), flush=True)
"""


def test_before_linux_5_9_one_thread_waits_and_the_process_ends(
    lingering: Callable[[], int],
) -> None:
    fd = lingering()
    os.set_inheritable(fd, True)
    program = subprocess.Popen(
        [sys.executable, "-c", WITHOUT, str(fd)],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=processes.environment(),
    )
    os.close(fd)
    output, _ = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, output) == (0, b"2 True\n")


def test_who_was_not_accepted_is_closed_with_the_listener(
    lingering: Callable[[], int], pipe: tuple[int, int], tmp_path: Path
) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    listener.setblocking(False)
    waiting = []
    for fds in ([], [lingering(), pipe[1]], []):
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting[-1].connect(str(tmp_path / "s"))
        send(waiting[-1], b"hello", *fds)
    closing.close_listener(listener)
    closing.close_listener(listener)
    assert all(control.is_gone(each, None) for each in waiting)
    processes.readable(pipe[0], "it is closed")
    for each in waiting:
        each.close()


def waits(waiter: Poller, loop: asyncio.AbstractEventLoop) -> None:
    waiter.wait_in_loop(loop, waiter.bell.look(), now_ns() + 60_000_000_000, 1)


@pytest.mark.parametrize("kernel", ["this one", "before Linux 6.16"])
def test_descriptors_for_the_event_loop_are_not_received(
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
    waits(waiter, loop)
    waits(waiter, loop)  # ends with its slice
    assert ("to the loop, which will wake late" in caplog.text) == (not refuses)
    if kernel != "this one":
        assert not refuses
    waiter.close()
    processes.readable(pipe[0], "it is closed")
    loop.close()
    half.close()
