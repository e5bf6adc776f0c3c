"""Control messages: what one is, how it crosses the socket, and how to tell that the peer is gone.

A message is one packet of a UNIX ``SOCK_SEQPACKET`` socket: a MessagePack map with text keys,
among them ``"kind"``, and at most 128 KiB; descriptors may travel with it. It arrives whole or
not at all. Nothing here is on the hot path.

The peer is trusted with nothing: whatever it sends ends in a message, an `EOFError`, or a
`ProtocolError`, and in no case in a descriptor left open here.

Waiting is chosen per call. The kernel queues what fits the sender's buffer, and fewer than 300
messages however short they are; so "would block" means that the peer does not read.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import HandshakeError, ProtocolError

MESSAGE_LIMIT = 128 * 1024  # bytes; well inside the default socket buffer of 208 KiB
SO_PEERPIDFD = 77  # Linux 6.5; the socket module does not name it
_FD_NBYTES = struct.calcsize("i")

# The message of kind "goodbye", for when the interpreter is about to end: it needs no import.
GOODBYE = b"\x81\xa4kind\xa7goodbye"

# The message of kind "lost", an executor's last one, is never longer: the producer that reads it
# gives it so much room.
LOST_NBYTES = 4096
_CAUSE_NBYTES = 2048


class Credentials(NamedTuple):
    """Who was at the other end when the connection was made, says the kernel."""

    pid: int  # 0 if it lives in a process namespace that we cannot see
    uid: int
    gid: int


def send(
    sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = (), *, wait: bool = True
) -> None:
    """Send *message*, and duplicates of *fds*, as one packet.

    Waits for room as long as the socket's timeout allows; not at all if *wait* is false,
    whatever that timeout is. The caller keeps its *fds*. Copies the message twice.

    Raises:
        ProtocolError: the message is too long.
        BlockingIOError: there is no room, and *wait* is false. Nothing was sent.
        ConnectionError: the peer has closed its end or is dead.
        OSError: the kernel has another reason, such as too many descriptors under way.
    """
    import msgspec

    data = msgspec.msgpack.encode(message)
    if len(data) > MESSAGE_LIMIT:
        raise ProtocolError(
            f"message {message.get('kind')!r} has {len(data)} bytes and the limit is "
            f"{MESSAGE_LIMIT}; send less in one message"
        )
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    with _endpoint(sock, wait) as (end, flags):
        end.sendmsg([data], rights if fds else [], flags | socket.MSG_NOSIGNAL)


def receive(
    sock: socket.socket, max_fds: int = 0, *, wait: bool = True
) -> tuple[dict[str, Any], list[int]]:
    """Return the next message and its descriptors, at most *max_fds*, which are the caller's.

    Waits as `send` does. The message has text keys and a text ``"kind"``; its other values are
    whatever the peer sent, of any type MessagePack has. The descriptors are close-on-exec.

    Raises:
        EOFError: the peer has closed its end or is dead, and all it sent has been received.
        ProtocolError: the packet is malformed or too long, or has more than *max_fds*
            descriptors. It is consumed and its descriptors are closed.
        BlockingIOError: no packet is there, and *wait* is false.
    """
    # CMSG_LEN and not CMSG_SPACE, whose padding would let one descriptor more through.
    room = socket.CMSG_LEN(max_fds * _FD_NBYTES) if max_fds else 0
    with _endpoint(sock, wait) as (end, flags):
        flags |= socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, flags, _ = end.recvmsg(MESSAGE_LIMIT, room, flags)
        except ConnectionResetError:
            # The peer closed without reading all that we sent. The kernel says so once, ahead
            # of what the peer had sent before, such as the reason for closing.
            data, ancillary, flags, _ = end.recvmsg(MESSAGE_LIMIT, room, flags)
    fds = _descriptors(ancillary)
    try:
        return _decode(data, flags, max_fds), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def last_message(sock: socket.socket) -> dict[str, Any] | None:
    """Return what a peer that has hung up said before; None if that was nothing."""
    try:
        return receive(sock, wait=False)[0]
    except (OSError, EOFError, ProtocolError):
        return None


def brings_descriptors(sock: socket.socket) -> bool:
    """Say whether the next message comes with descriptors; takes nothing, and does not wait.

    To receive some and close them may take as long as the peer likes; see `executor.closing`.

    Raises:
        BlockingIOError: no message is there.
    """
    with _endpoint(sock, wait=False) as (end, flags):
        flags |= socket.MSG_PEEK
        try:
            _, _, flags, _ = end.recvmsg(1, 0, flags)
        except ConnectionResetError:  # as in `receive`
            _, _, flags, _ = end.recvmsg(1, 0, flags)
    return bool(flags & socket.MSG_CTRUNC)


def lost(cause: str) -> dict[str, Any]:
    """Return the message that tells producers why their executor dies."""
    return {"kind": "lost", "cause": one_line(cause)}


def lost_packet(cause: str) -> bytes:
    """Return that message as it crosses the socket, for who can run no Python when it is sent."""
    import msgspec

    return msgspec.msgpack.encode(lost(cause))


def cause_in(packet: bytes) -> str | None:
    """Return the cause that a message of kind "lost" tells; None of any other packet.

    It is one line, printable and short, whatever was sent.
    """
    try:
        import msgspec

        message = msgspec.msgpack.decode(packet, type=dict[str, str])
    except (ValueError, RecursionError, ImportError):  # the last one when the interpreter ends
        return None
    if message.get("kind") != "lost":
        return None
    return one_line(message.get("cause", "")) or None


def one_line(text: str) -> str:
    """Return *text* as one printable line of at most 2048 bytes, whatever it holds."""
    words = " ".join(text[:_CAUSE_NBYTES].split())
    printable = "".join(each if each.isprintable() else "?" for each in words)
    return printable.encode()[:_CAUSE_NBYTES].decode(errors="ignore")


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return process, user and group of the peer, as of when it connected or listened."""
    ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return Credentials(*struct.unpack("iII", ucred))


def peer_pidfd(sock: socket.socket) -> int:
    """Return a pidfd of the peer, close-on-exec: readable once that process is dead.

    From Linux 6.5 on it is certainly the peer's. Before, the peer is looked up by number; should
    it die just then and its number be given away, only the closed socket tells.

    Raises:
        EOFError: the peer is dead. (Some kernels return a readable pidfd instead.)
        HandshakeError: the peer cannot be watched from here.
    """
    pid = peer_credentials(sock).pid
    dead = EOFError(f"process {pid} at the other end of the control socket is dead")
    try:
        try:
            return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
        fd = os.pidfd_open(pid)
    except OSError as error:
        if pid > 0 and error.errno in (errno.ESRCH, errno.EINVAL):
            raise dead from None
        raise HandshakeError(
            f"process {pid} at the other end cannot be watched: {error.strerror}; "
            f"use Linux 6.5 or newer, or run both processes in one process namespace"
        ) from error
    if is_gone(sock, fd):
        os.close(fd)
        raise dead
    return fd


def is_gone(sock: socket.socket, pidfd: int | None, timeout: float | None = 0.0) -> bool:
    """Say whether the peer has closed its end or is dead; once true, always true.

    Reads nothing, so messages may still be waiting; one system call. Either sign is enough: a
    child that the peer forked keeps the socket open, and a live peer may have hung up.
    *timeout*: seconds to wait for it; 0 or less not at all, ``None`` for ever.
    """
    if sock.fileno() < 0:
        return True  # we have hung up ourselves
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)  # errors and a full hang-up are always reported
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


def is_dead(pidfd: int) -> bool:
    """Say whether the process of *pidfd* is dead; one system call."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def wait_for_message(sock: socket.socket, pidfd: int) -> None:
    """Wait until a message has come, as long as the socket's timeout allows.

    A child that the peer forked may hold the socket, even a listening one, so that nothing but
    the pidfd says that nobody will ever answer.

    Raises:
        EOFError: the peer is dead, and no message has come.
        TimeoutError: the socket's timeout passed.
    """
    poll = select.poll()
    for fd in (sock.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    timeout = sock.gettimeout()
    found = [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]
    if not found:
        raise TimeoutError("the peer does not answer")
    if sock.fileno() not in found:
        raise EOFError("the peer is dead")


@contextmanager
def _endpoint(sock: socket.socket, wait: bool) -> Iterator[tuple[socket.socket, int]]:
    """Give the socket object and the flags to use.

    A socket object with a timeout waits in Python in spite of MSG_DONTWAIT, and one may have
    got its timeout from `socket.setdefaulttimeout`; so such a one is replaced by a twin.
    """
    if wait:
        yield sock, 0
    elif not sock.gettimeout():
        yield sock, socket.MSG_DONTWAIT
    else:
        with sock.dup() as twin:
            twin.settimeout(0.0)
            yield twin, socket.MSG_DONTWAIT


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(data) // _FD_NBYTES
            fds += struct.unpack_from(f"{count}i", data)
    return fds


def _decode(data: bytes, flags: int, max_fds: int) -> dict[str, Any]:
    import msgspec

    if flags & socket.MSG_TRUNC:
        raise ProtocolError(f"message has more than the {MESSAGE_LIMIT} bytes allowed")
    if flags & socket.MSG_CTRUNC:
        raise ProtocolError(
            f"message came with more than the {max_fds} descriptors expected, "
            f"or this process may open no more; see `ulimit -n`"
        )
    if not data:
        raise EOFError("the other end of the control socket is closed")
    try:
        message = msgspec.msgpack.decode(data, type=dict[str, Any])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise ProtocolError(f"message of {len(data)} bytes is malformed: {error}") from None
    if not isinstance(message.get("kind"), str):
        raise ProtocolError(f"message of {len(data)} bytes has no text 'kind'")
    return message
