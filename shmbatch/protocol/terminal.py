"""Whether this process has a terminal that can hang up."""

from __future__ import annotations

import os


def has_terminal() -> bool:
    """Say so; opens it for a moment, and never makes one ours."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
