"""How a producer's socket is closed without waiting for what the producer has sent along.

Descriptors that nobody has received are closed together with the socket in whose queue they are,
by whoever closes that; and to close some kinds of file takes as long as their owner likes: a TCP
socket that lingers waits for a reader. So messages are looked at before they are taken, and
sockets with descriptors in their queues are closed apart: in a thread that ends, which waits for
no file.
"""

from __future__ import annotations

import logging
import socket

from ..protocol import _core

log = logging.getLogger("shmbatch.executor")

_CREDENTIALS_ROOM = socket.CMSG_LEN(12)  # of one struct ucred, and nothing beside it


def close(sock: socket.socket) -> None:
    """Close *sock*, whatever is in its queue; the other end is hung up on at once. Idempotent.

    Waits for nothing.
    """
    if sock.fileno() < 0:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)  # from here on nothing more gets into its queue
    except OSError:
        pass  # it was never connected
    if _empties(sock):
        sock.close()
    else:
        log.warning("somebody has sent descriptors, which are closed apart")
        fd = sock.detach()
        try:
            _core.close_apart(fd)
        except OSError as error:
            log.error("descriptor %d stays open: %s", fd, error.strerror)


def close_listener(listener: socket.socket) -> None:
    """Close a listening socket, and all in its queue who were not accepted. Idempotent."""
    if listener.fileno() < 0:
        return
    listener.shutdown(socket.SHUT_RD)  # nobody can connect any more
    try:
        while True:
            close(listener.accept()[0])
    except OSError:
        pass  # nobody is left; or no descriptor, and who is left is closed with it
    listener.close()


def _empties(sock: socket.socket) -> bool:
    """Take what is in the queue of *sock*; False, and leave it, once there are descriptors."""
    # With each packet comes who sent it, which tells an empty one from the end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    while True:
        try:
            for peek in (socket.MSG_PEEK, 0):
                flags = peek | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                _, told, found, _ = sock.recvmsg(1, _CREDENTIALS_ROOM, flags)
                if not told:
                    return True
                if found & socket.MSG_CTRUNC:
                    return False
        except ConnectionResetError:
            pass  # said once, ahead of what is there
        except OSError:
            return True
