"""Which socket web workers accept from: opened once, by the supervisor, which keeps it open."""

from __future__ import annotations

import errno
import socket

from ..errors import ConfigError

_BACKLOG = 2048  # as many connections wait while nobody accepts; the kernel may allow fewer


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        port: 0 for one that is free.

    Raises:
        ConfigError: there is no such host here, or the port is in use or not for us.
    """
    where = f"port {port} of {host!r}"
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on {host!r}: {reason}; choose another --host") from None
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; choose another --port") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"{where} is not for this user; choose one above 1023") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"cannot listen on {host!r}: it is no address of this machine; "
                f"choose another --host"
            ) from None
        raise


def url_of(listener: socket.socket) -> str:
    """Return where a client on this machine finds *listener*."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
