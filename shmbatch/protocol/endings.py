"""How the end of a process is put into words."""

from __future__ import annotations

import signal


def ending(status: int) -> str:
    """Say how a child has ended, from its exit status, which is negative for a signal."""
    return f"ended with status {status}" if status >= 0 else f"was killed by {_name(-status)}"


def _name(number: int) -> str:
    """Return ``SIGKILL``, ``SIGRTMIN+6`` or the like; most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
