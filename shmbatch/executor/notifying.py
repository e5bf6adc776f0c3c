"""What a service manager such as systemd is told: when the executor serves, and when it drains."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

_PATIENCE_S = 1.0  # a manager that does not read must not keep us from serving


def notifier() -> Callable[..., None]:
    """Return what sends its keyword arguments to the service manager, if there is one.

    Takes NOTIFY_SOCKET out of the environment: our children are not the service.

    Source: sd_notify(3). ``READY=1``, ``STOPPING=1`` and ``STATUS=...`` are used.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address.startswith("@"):
        address = "\0" + address[1:]  # abstract, without a file
    elif not address.startswith("/"):
        return lambda **state: None

    def notify(**state: object) -> None:
        lines = (f"{key}={value}".replace("\n", " ") for key, value in state.items())
        message = "\n".join(lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE_S)
                sock.sendto(os.fsencode(message), address)
        except OSError:
            pass  # its loss: what we serve does not depend on it

    return notify
