"""What a hostile producer does to an executor, one way after another; a program of its own.

``python -m tests.hostile.assaults NAME HOW...`` waits for a line, does the first, prints what came
of it, and so on; then it waits for its end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shmbatch.protocol import control, layout
from shmbatch.protocol._core import Bell
from tests.hostile import scribbling
from tests.hostile.raw import Raw, Segment

LINGER_S = 3600
HOLD: list[object] = []  # what must not be closed before this process ends


def lingering() -> int:
    """Return a socket whose last close waits for an hour, for a reader that does not read."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sender = socket.create_connection(listener.getsockname())
    sender.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 16))
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    HOLD.append(listener)
    return sender.detach()


def given_away(sock: socket.socket, data: bytes, fd: int) -> None:
    """Send a descriptor, and do not keep it."""
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
        sock.sendmsg([data], rights, socket.MSG_DONTWAIT)
    except OSError:  # hung up on, or from Linux 6.16 on the other end takes none
        with socket.socket(fileno=os.dup(fd)) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    os.close(fd)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process from running, so that what is sent to it is in its queues."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # It may have been stopped before, and goes on for a moment now.
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            os.sched_yield()
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def kept(raw: Raw) -> Raw:
    HOLD.append(raw)
    return raw


def attached(name: str, function: str) -> tuple[Raw, Segment]:
    raw = kept(Raw(name))
    return raw, raw.attach(function)


# ---- the ways ---------------------------------------------------------------------------------


def scribbles_words(name: str) -> str:
    """Over the whole segment, and over its head as often, all words random, while it calls."""
    chance = random.Random(5)
    raw, segment = attached(name, "double")
    while not control.is_gone(raw.sock, None):
        for end in (len(segment.memory), segment.where.columns[0]) * 25:
            segment.write(4 * chance.randrange(end // 4), chance.getrandbits(32))
        segment.publish(chance.randrange(segment.where.capacity))
        segment.ring()
    return "hung up"


def saturates_counters(name: str) -> str:
    raw, segment = attached(name, "double")
    for word in (0xFFFFFFFF, 0x7FFFFFFF, 0xFFFF, 0):
        segment.write(layout.COMPLETIONS, word)
        segment.write(layout.WITHDRAWN, word)
        segment.publish(1)
        segment.ring()
        while segment.read(segment.state_at(1)) & 7 in (1, 2):
            if control.is_gone(raw.sock, None):
                break
    return "done"


def bends_shared_descriptors(name: str) -> str:
    """What belongs to an open file belongs to all who have a descriptor of it."""
    raw, _ = attached(name, "triple")
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(fileno=os.dup(raw.loop_fd)) as loop,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        for fd in raw.fds:
            for _ in range(20):
                for flags in (0, os.O_NONBLOCK, os.O_ASYNC, os.O_APPEND):
                    with suppress(OSError):
                        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        for number, value in ((socket.SO_SNDBUF, 1), (socket.SO_RCVBUF, 1)):
            loop.setsockopt(socket.SOL_SOCKET, number, value)
        other.bind(str(Path(folder) / "other"))
        for step in (
            lambda: loop.connect(str(Path(folder) / "other")),  # away from the executor
            lambda: loop.shutdown(socket.SHUT_RD),
            lambda: loop.shutdown(socket.SHUT_WR),
        ):
            with suppress(OSError):
                step()
        os.set_blocking(raw.loop_fd, True)
    return "done"


def is_told() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def storms(name: str) -> str:
    """Rings, wakes, and fills the socket of the event loop, as fast as it can."""
    raw, segment = attached(name, "triple")
    bell = Bell(segment.bell_memory)
    with socket.socket(fileno=os.dup(raw.loop_fd)) as loop:
        while not is_told():
            for _ in range(200):
                bell.ring()
                segment.transport.wake_executor()
                with suppress(OSError):
                    loop.send(b"!" * 16, socket.MSG_DONTWAIT)
    os.read(0, 1)
    return "done"


def scribbles_over_the_bell(name: str) -> str:
    """Which all producers share."""
    _, segment = attached(name, "double")
    memory, chance = segment.bell_memory, random.Random(1)
    while not is_told():
        for at in (0, 64):
            memory[at : at + 4] = chance.choice([bytes(4), b"\xff" * 4, chance.randbytes(4)])
    os.read(0, 1)
    return "done"


def sends_descriptors_that_linger(name: str) -> str:
    """To who would have to close them: the control thread, the loop, whoever ends the executor."""
    stranger, (plain, _) = kept(Raw(name)), attached(name, "double")
    (first, _), (second, _), (scribbler, segment), (waker, _) = (
        attached(name, "triple") for _ in range(4)
    )
    with (
        socket.socket(fileno=os.dup(waker.loop_fd)) as loop,
        stopped(control.peer_credentials(stranger.sock).pid),
    ):
        given_away(stranger.sock, b"nonsense", lingering())
        given_away(plain.sock, b"", lingering())
        for raw in (first, second):
            # The first message ends the connection, and the next is in the queue when it closes.
            raw.send({"kind": "nonsense"})
            given_away(raw.sock, b"more", lingering())
        segment.write(layout.TAIL, 1 << 30)
        given_away(scribbler.sock, b"\x81\xa4kind\xa8attached", lingering())
        segment.ring()
        given_away(loop, b"!", lingering())
    return "sent"


def sends_descriptors_of_its_own(name: str) -> str:
    out, into = os.pipe()
    memory = os.memfd_create("mine")
    pair = socket.socketpair()
    fds = [out, into, memory, *(each.fileno() for each in pair)]
    refusals = 0
    for count in (1, 5, 253):
        for is_attached in (False, True):
            with Raw(name) as raw:
                if is_attached:
                    raw.attach("double")
                raw.send_bytes(b"\x81\xa4kind\xa8attached", (fds * 60)[:count])
                refusals += raw.said()[-1]["kind"] == "refused"
    return f"refused {refusals}"


def sends_any_packets(name: str) -> str:
    """Too large, empty, in pieces, and many of them."""
    for packets in (
        [bytes(200_000)],
        [b""],
        [bytes([byte]) for byte in b"\x81\xa4kind\xa8attached"],
        [b"\x81\xa4kind\xaastatistics"] * 500,
        [os.urandom(100) for _ in range(100)],
    ):
        with Raw(name) as raw:
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            with suppress(ConnectionError):
                for packet in packets:
                    raw.send_bytes(packet)
            raw.sock.shutdown(socket.SHUT_WR)
            raw.said()
            raw.close()
    return "done"


def connects(name: str, times: int) -> str:
    """Again and again, and says nothing."""
    made = 0
    while made < times:
        try:
            kept(Raw(name))
            made += 1
        except BlockingIOError:
            pass  # the queue of those who connect is full
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            for each in HOLD:
                assert isinstance(each, Raw)
                each.close()
            HOLD.clear()
    return "done"


def holds_handshakes(name: str) -> str:
    """Attaches, and never says so, and asks for nothing."""
    for _ in range(20):
        kept(Raw(name)).segment("double")
    return "done"


WAYS: dict[str, Callable[[str], str]] = {
    **scribbling.WAYS,
    "words": scribbles_words,
    "bell": scribbles_over_the_bell,
    "counters": saturates_counters,
    "flags": bends_shared_descriptors,
    "storm": storms,
    "lingering": sends_descriptors_that_linger,
    "descriptors": sends_descriptors_of_its_own,
    "packets": sends_any_packets,
    "connects": lambda name: connects(name, 1_000),
    "connects often": lambda name: connects(name, 10_000),
    "handshakes": holds_handshakes,
}

if __name__ == "__main__":
    name, *ways = sys.argv[1:]
    print("ready", flush=True)
    for how in ways:
        os.read(0, 1)
        print(WAYS[how](name), flush=True)
    sys.stdin.read()
