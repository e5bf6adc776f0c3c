"""Messages arrive whole, hostile ones are refused, and a gone peer is noticed.

Every test here also checks that it leaves no descriptor behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmbatch
from shmbatch.errors import HandshakeError, ProtocolError
from shmbatch.protocol import control

Pair = tuple[socket.socket, socket.socket]
HELLO = {"kind": "hello"}


def open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(open_fds())
    yield
    assert len(open_fds()) == before


@pytest.fixture
def pair(no_descriptor_is_left: None) -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe(no_descriptor_is_left: None) -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="shmbatch-test-") as path:
        yield Path(path)


def send_raw(sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    rights = struct.pack(f"{len(fds)}i", *fds)
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])


def start_peer(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Run *script* in another process, which can import the package."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(shmbatch.__path__[0]).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def fill(sock: socket.socket, message: dict[str, Any]) -> int:
    """Send *message* until there is no room; return how many were sent."""
    for count in range(100_000):
        try:
            control.send(sock, message, wait=False)
        except BlockingIOError:
            return count
    raise AssertionError("the socket never filled")


# What crosses.


@pytest.mark.parametrize("wait", [True, False])
def test_a_message_arrives_as_it_was_sent(pair: Pair, wait: bool) -> None:
    message = {
        "kind": "welcome",
        "nothing": None,
        "flag": True,
        "numbers": [1, -(2**63), 2**64 - 1, 0.5],
        "bytes": b"\x00\xff",
        "nested": {"text": "naïve", "empty": {}},
    }
    control.send(pair[0], message, wait=wait)

    assert control.receive(pair[1], wait=wait) == (message, [])


def test_messages_keep_their_order_and_their_borders(pair: Pair) -> None:
    for number in range(5):
        control.send(pair[0], {"kind": "n", "number": number})

    received = [control.receive(pair[1])[0]["number"] for _ in range(5)]

    assert received == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_descriptors_arrive_as_duplicates_that_a_child_would_not_inherit(
    pair: Pair, pipe: tuple[int, int], count: int
) -> None:
    control.send(pair[0], HELLO, [pipe[1]] * count)

    message, fds = control.receive(pair[1], max_fds=count)

    assert message == HELLO
    assert len(set(fds)) == count
    for number, fd in enumerate(fds):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert os.fstat(fd).st_ino == os.fstat(pipe[1]).st_ino
        os.write(fd, b"%d" % number)
        os.close(fd)
    assert os.read(pipe[0], 100) == b"0123456"[:count]


def test_the_sender_keeps_its_descriptors(pair: Pair, pipe: tuple[int, int]) -> None:
    control.send(pair[0], HELLO, pipe)

    assert os.fstat(pipe[0]).st_ino
    assert os.fstat(pipe[1]).st_ino


def test_fewer_descriptors_than_allowed_are_fine(pair: Pair, pipe: tuple[int, int]) -> None:
    control.send(pair[0], HELLO, pipe[:1])

    _, fds = control.receive(pair[1], max_fds=8)

    assert len(fds) == 1
    os.close(fds[0])


def message_of(nbytes: int) -> dict[str, Any]:
    message = {"kind": "big", "data": bytes(100_000)}
    message["data"] = bytes(100_000 + nbytes - len(msgspec.msgpack.encode(message)))
    assert len(msgspec.msgpack.encode(message)) == nbytes
    return message


def test_the_longest_message_crosses(pair: Pair) -> None:
    message = message_of(128 * 1024)
    control.send(pair[0], message, wait=False)

    assert control.receive(pair[1]) == (message, [])


def test_a_longer_message_is_not_sent(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match=r"^message 'big' has 131073 bytes and the limit is "):
        control.send(pair[0], message_of(128 * 1024 + 1))

    control.send(pair[0], HELLO)
    assert control.receive(pair[1])[0] == HELLO


# Waiting.


@pytest.mark.parametrize("timeout", [None, 0.0, 1.0])
def test_a_full_socket_refuses_at_once_and_loses_nothing(
    pair: Pair, timeout: float | None
) -> None:
    """With a timeout, Python itself would wait and then raise TimeoutError instead."""
    pair[0].settimeout(timeout)
    count = fill(pair[0], {"kind": "n", "data": bytes(1000)})

    with pytest.raises(BlockingIOError):
        control.send(pair[0], HELLO, wait=False)

    assert count > 0
    for _ in range(count):
        assert control.receive(pair[1], wait=False)[0]["kind"] == "n"
    with pytest.raises(BlockingIOError):
        control.receive(pair[1], wait=False)
    control.send(pair[0], HELLO, wait=False)
    assert control.receive(pair[1])[0] == HELLO


@pytest.mark.parametrize("timeout", [None, 0.0, 1.0])
def test_an_empty_socket_has_nothing_to_receive(pair: Pair, timeout: float | None) -> None:
    pair[1].settimeout(timeout)

    with pytest.raises(BlockingIOError):
        control.receive(pair[1], wait=False)


def test_a_default_timeout_of_the_program_makes_nothing_wait() -> None:
    socket.setdefaulttimeout(1.0)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            assert ours.gettimeout() == 1.0
            assert fill(ours, HELLO) > 0
    finally:
        socket.setdefaulttimeout(None)


def test_waiting_ends_with_the_timeout_of_the_socket(pair: Pair) -> None:
    pair[1].settimeout(0.001)

    with pytest.raises(TimeoutError):
        control.receive(pair[1])


def test_descriptors_that_found_no_room_are_not_lost_under_way(
    pair: Pair, pipe: tuple[int, int]
) -> None:
    fill(pair[0], HELLO)
    with pytest.raises(BlockingIOError):
        control.send(pair[0], HELLO, pipe, wait=False)

    assert os.fstat(pipe[0]).st_ino


# The end.


def test_a_closed_end_is_an_end_of_file_after_all_messages(pair: Pair) -> None:
    control.send(pair[0], HELLO)
    pair[0].close()

    assert control.receive(pair[1])[0] == HELLO
    for _ in range(2):
        with pytest.raises(EOFError, match=r"^the other end of the control socket is closed$"):
            control.receive(pair[1])


def test_the_reason_of_a_refusal_survives_unread_messages(pair: Pair) -> None:
    """The kernel reports what the peer left unread before what the peer wrote."""
    control.send(pair[1], HELLO)
    control.send(pair[0], {"kind": "refused"})
    pair[0].close()

    assert control.receive(pair[1])[0] == {"kind": "refused"}
    with pytest.raises(EOFError):
        control.receive(pair[1])


def test_an_empty_packet_is_an_end_of_file(pair: Pair, pipe: tuple[int, int]) -> None:
    send_raw(pair[0], b"")
    send_raw(pair[0], b"", pipe)

    for _ in range(2):
        with pytest.raises(EOFError):
            control.receive(pair[1], max_fds=2)


def test_sending_to_a_closed_end_is_an_error_and_no_signal() -> None:
    """Python ignores SIGPIPE, but a program around us may not."""
    script = """
import signal, socket
from shmbatch.protocol import control
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
theirs.close()
try:
    control.send(ours, {"kind": "hello"})
except ConnectionError:
    print("refused")
"""
    with start_peer(script) as peer:
        assert peer.communicate()[0] == "refused\n"
    assert peer.returncode == 0


# Hostile peers.

MALFORMED = {
    "no MessagePack": b"\xc1",
    "a cut map": b"\x82\xa4kind\xa5hello",
    "something behind the map": b"\x81\xa4kind\xa1x\x00",
    "a list": b"\x91\xa4kind",
    "no kind": b"\x80",
    "a kind of None": b"\x81\xa4kind\xc0",
    "a kind of bytes": b"\x81\xa4kind\xc4\x01x",
    "a key that is a number": b"\x82\xa4kind\xa1x\x01\x02",
    "a key that is a list": b"\x82\xa4kind\xa1x\x91\x01\x02",
    "text that is not UTF-8": b"\x81\xa4kind\xa1\xff",
    "a huge list": b"\x82\xa4kind\xa1x\xa1y\xdd\xff\xff\xff\xff",
    "a huge map": b"\xdf\xff\xff\xff\xff",
    "deep lists": b"\x82\xa4kind\xa1x\xa1y" + b"\x91" * 100_000,
    "deep maps": b"\x81\xa1y" * 40_000,
    "an impossible time": b"\x82\xa4kind\xa1x\xa1y\xc7\x0c\xff" + b"\xff" * 12,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_refused_and_its_descriptors_are_closed(
    pair: Pair, pipe: tuple[int, int], data: bytes
) -> None:
    before = open_fds()
    send_raw(pair[0], data, pipe)
    send_raw(pair[0], b"\x81\xa4kind\xa1x")

    with pytest.raises(ProtocolError, match=rf"^message of {len(data)} bytes .*$"):
        control.receive(pair[1], max_fds=2)

    assert open_fds() == before
    assert control.receive(pair[1]) == ({"kind": "x"}, [])


@given(st.binary(min_size=1, max_size=60))
def test_any_packet_is_a_message_or_a_protocol_error(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_raw(ours, data)
        try:
            message, fds = control.receive(theirs, max_fds=1)
        except ProtocolError:
            return
        assert isinstance(message["kind"], str)
        assert all(isinstance(key, str) for key in message)
        assert fds == []


def test_a_packet_over_the_limit_is_refused(pair: Pair, pipe: tuple[int, int]) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    whole = msgspec.msgpack.encode(message_of(128 * 1024))
    before = open_fds()
    send_raw(pair[0], whole + b"\x00", pipe)
    send_raw(pair[0], whole)

    with pytest.raises(ProtocolError, match=r"^message has more than the 131072 bytes allowed$"):
        control.receive(pair[1], max_fds=2)

    assert open_fds() == before
    assert control.receive(pair[1])[0]["kind"] == "big"


@pytest.mark.parametrize(("allowed", "sent"), [(0, 1), (0, 253), (1, 2), (2, 3), (3, 4), (2, 253)])
def test_too_many_descriptors_are_refused_and_all_are_closed(
    pair: Pair, pipe: tuple[int, int], allowed: int, sent: int
) -> None:
    """1 and 3 matter: the padding of their space has room for one more."""
    before = open_fds()
    control.send(pair[0], HELLO, [pipe[0]] * sent)
    control.send(pair[0], {"kind": "next"})

    with pytest.raises(ProtocolError, match=rf"^message came with more than the {allowed} desc"):
        control.receive(pair[1], max_fds=allowed)

    assert open_fds() == before
    assert control.receive(pair[1])[0] == {"kind": "next"}


def test_descriptors_that_this_process_may_not_open_are_refused_and_all_are_closed(
    pair: Pair, pipe: tuple[int, int]
) -> None:
    control.send(pair[0], HELLO, [pipe[0]] * 3)
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(pipe[0])
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, hard))
    try:
        with pytest.raises(ProtocolError, match="or this process may open no more; see `ulimit"):
            control.receive(pair[1], max_fds=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert open_fds() == before


# Who is there, and whether it still is.

PEER = """
import os, socket, sys
from shmbatch.protocol import control
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
child = os.fork() if "fork" in sys.argv else -1
if child:
    control.send(sock, {"kind": "hello", "child": child})
sys.stdin.read()
"""


class Peer:
    """Another process, connected to this one."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(folder / "peer.sock"))
            listener.listen()
            self.process = start_peer(PEER, os.fspath(folder / "peer.sock"), *options)
            self.sock, _ = listener.accept()
        self.hello, _ = control.receive(self.sock)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.sock.close()


@pytest.fixture
def peer(no_descriptor_is_left: None, folder: Path) -> Iterator[Peer]:
    peer = Peer(folder)
    yield peer
    peer.close()


@pytest.fixture(params=["SO_PEERPIDFD", "pidfd_open"])
def pidfd_source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use what new kernels have, or pretend to be on an old one."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(control, "SO_PEERPIDFD", 9999)
        refusal = re.escape(os.strerror(errno.ENOPROTOOPT))
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match=refusal):
            sock.getsockopt(socket.SOL_SOCKET, 9999)
    return str(request.param)


def test_the_kernel_says_who_connected(peer: Peer) -> None:
    assert control.peer_credentials(peer.sock) == (peer.process.pid, os.getuid(), os.getgid())


def test_a_live_peer_is_not_gone(peer: Peer, pidfd_source: str) -> None:
    pidfd = control.peer_pidfd(peer.sock)

    assert not control.is_gone(peer.sock, pidfd)
    assert not control.is_gone(peer.sock, None)
    assert not control.is_gone(peer.sock, pidfd, timeout=-1.0)
    assert fcntl.fcntl(pidfd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(pidfd)


def test_a_killed_peer_is_gone(peer: Peer, pidfd_source: str) -> None:
    pidfd = control.peer_pidfd(peer.sock)

    peer.kill()

    assert control.is_gone(peer.sock, pidfd)
    assert control.is_gone(peer.sock, None)
    os.close(pidfd)


def test_a_killed_peer_is_gone_although_its_child_keeps_the_socket(
    folder: Path, pidfd_source: str
) -> None:
    peer = Peer(folder, "fork")
    pidfd = control.peer_pidfd(peer.sock)
    child = os.pidfd_open(peer.hello["child"])
    try:
        peer.kill()

        assert control.is_gone(peer.sock, pidfd)
        assert not control.is_gone(peer.sock, None)
    finally:
        signal.pidfd_send_signal(child, signal.SIGKILL)
        assert control.is_gone(peer.sock, None, timeout=None)
        os.close(child)
        os.close(pidfd)
        peer.close()


def test_a_peer_that_is_dead_already_cannot_be_taken_for_alive(
    peer: Peer, pidfd_source: str
) -> None:
    """Newer kernels hand out a pidfd even of a process that nobody remembers."""
    peer.kill()

    try:
        pidfd = control.peer_pidfd(peer.sock)
    except EOFError:
        return
    assert pidfd_source == "SO_PEERPIDFD"
    assert control.is_gone(peer.sock, pidfd)
    os.close(pidfd)


def test_a_number_given_to_another_process_is_not_taken_for_the_peer(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only before Linux 6.5; here the number of the dead peer is ours."""
    monkeypatch.setattr(control, "SO_PEERPIDFD", 9999)
    peer.kill()
    ours = control.Credentials(os.getpid(), 0, 0)
    monkeypatch.setattr(control, "peer_credentials", lambda sock: ours)

    with pytest.raises(EOFError, match=rf"^process {os.getpid()} at the other end .* is dead$"):
        control.peer_pidfd(peer.sock)


def test_a_peer_whose_number_cannot_be_seen_cannot_be_watched(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only before Linux 6.5, and in another process namespace."""
    monkeypatch.setattr(control, "SO_PEERPIDFD", 9999)
    monkeypatch.setattr(control, "peer_credentials", lambda sock: control.Credentials(0, 0, 0))

    with pytest.raises(HandshakeError, match=r"^process 0 at the other end cannot be watched: "):
        control.peer_pidfd(pair[0])


def test_too_few_descriptors_are_not_taken_for_a_dead_peer(peer: Peer, pidfd_source: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(HandshakeError, match="cannot be watched: Too many open files;"):
            control.peer_pidfd(peer.sock)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_peer_that_hung_up_is_gone_and_its_messages_are_still_there(
    pair: Pair, how: int
) -> None:
    control.send(pair[0], HELLO)
    assert not control.is_gone(pair[1], None)

    pair[0].shutdown(how)

    assert control.is_gone(pair[1], None)
    assert control.receive(pair[1])[0] == HELLO
    assert control.is_gone(pair[1], None)


def test_a_peer_that_left_messages_unread_stays_gone(pair: Pair) -> None:
    control.send(pair[1], HELLO)
    pair[0].close()

    assert control.is_gone(pair[1], None)
    with pytest.raises(EOFError):
        control.receive(pair[1])
    assert control.is_gone(pair[1], None)


@pytest.mark.parametrize("timeout", [None, 100.0])
def test_waiting_for_the_end_lasts_until_the_end(peer: Peer, timeout: float | None) -> None:
    pidfd = control.peer_pidfd(peer.sock)
    assert not control.is_gone(peer.sock, pidfd, timeout=0.001)

    assert peer.process.stdin is not None
    peer.process.stdin.close()  # then it ends by itself

    assert control.is_gone(peer.sock, pidfd, timeout=timeout)
    os.close(pidfd)


# The last words of an executor.


def packed(message: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(message)


def test_a_cause_crosses_as_it_was_given() -> None:
    cause = "CUDA error: an illegal memory access was encountered (AcceleratorError) in a.f"
    assert control.cause_in(packed(control.lost(cause))) == cause


@given(st.text())
def test_any_cause_is_one_printable_line(cause: str) -> None:
    heard = control.cause_in(packed(control.lost(cause)))
    assert heard is None or (heard.isprintable() and heard.strip())
    assert control.cause_in(packed({"kind": "lost", "cause": heard or ""})) == heard
    if not cause.split():
        assert heard is None


@pytest.mark.parametrize("letter", ["a", "\N{GREEK SMALL LETTER LAMDA}", "\N{GRINNING FACE}"])
def test_a_long_cause_is_cut_and_fits_into_what_is_read(letter: str) -> None:
    packet = packed(control.lost(letter * 1_000_000))
    heard = control.cause_in(packet)
    assert heard is not None
    assert set(heard) == {letter}
    assert 2040 < len(heard.encode()) <= 2048
    assert len(packet) <= control.LOST_NBYTES


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b"!", b"\xc1", b"\x90", control.GOODBYE, b"\x81\xa4kind\xa4lost"),
        packed({"kind": "lost", "cause": 5}),
        packed({"kind": "lost", "cause": ["text"]}),
        packed({"kind": "lost", "cause": "text", "more": 1}),
        packed({"kind": "refused", "cause": "text"}),
        packed({"cause": "text"}),
        packed({"kind": "lost", "cause": " \n"}),
        packed({"kind": "lost", "cause": "x" * 10_000})[: control.LOST_NBYTES],
        packed({"kind": "lost", "cause": "text"}) + b"\0",
        b"\x82\xa4kind\xa4lost\xa5cause\xa1\xff",
        *MALFORMED.values(),
    ],
    ids=lambda packet: repr(packet[:40]),
)
def test_of_any_other_packet_there_is_no_cause(packet: bytes) -> None:
    assert control.cause_in(packet) is None


@given(st.binary(max_size=60))
def test_no_packet_breaks_whoever_looks_for_a_cause(packet: bytes) -> None:
    for each in (packet, b"\x82\xa4kind\xa4lost\xa5cause" + packet):
        heard = control.cause_in(each)
        assert heard is None or heard.isprintable()
