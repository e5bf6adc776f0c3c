"""What time it is: nanoseconds of the monotonic clock. No other module reads a clock.

The clock is ``CLOCK_MONOTONIC``, which all processes of a machine share and no clock change
moves, so a stamp made by a producer means the same in the executor.
"""

from __future__ import annotations

import os
import time

from ..errors import ConfigError

# About 146 years, in seconds. A longer timeout is "for ever": its deadline would not fit the
# 64-bit nanoseconds that the core counts in.
FOREVER_S = 2**62 / 1e9

now_ns = time.monotonic_ns


def age_s(file: os.stat_result) -> float:
    """Return how many seconds ago a file was written, by the clock that its stamp is of."""
    return time.time() - file.st_mtime


def deadline_ns(timeout: float | None) -> int | None:
    """Return when *timeout* seconds from now have passed; ``None`` means never.

    ``None`` and infinity wait for ever; zero, and whatever is left of a deadline that has
    passed, is a deadline of now.

    Raises:
        ConfigError: *timeout* is neither ``None`` nor a number, or it is NaN.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout != timeout:
        raise ConfigError(
            f"timeout is {timeout!r}; give seconds as a number, or None to wait for ever"
        )
    if timeout >= FOREVER_S:
        return None
    return now_ns() + round(max(0.0, timeout) * 1e9)
