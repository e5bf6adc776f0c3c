"""What a signal is called in messages."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """Return ``SIGKILL``, ``SIGRTMIN+6`` or the like; most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
