"""How long a call may take: until when its caller waits, and when it must have been launched."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..errors import CallTimeout, ConfigError, DeadlineExceeded
from ..protocol.clock import FOREVER_S, now_ns
from ..protocol.clock import deadline_ns as deadline_after

_FOREVER_MS = FOREVER_S * 1e3  # later than this does not fit the core's 64 bits


class Limits(NamedTuple):
    """The two times of one call, in nanoseconds of the monotonic clock, and what was asked for."""

    until_ns: int | None  # then its caller gives it up
    deadline_ns: int  # not launched by then, it never runs; 0: there is no such time
    timeout: float | None = None  # the options that they come from, for messages
    deadline_ms: float | None = None

    @property
    def next_ns(self) -> int | None:
        """The earlier of the two; None if there is none."""
        return earlier(self.until_ns, self.deadline_ns or None)


UNLIMITED = Limits(None, 0)


def earlier(one_ns: int | None, other_ns: int | None) -> int | None:
    """Return the earlier of two times, either of which may be None for never."""
    if one_ns is None or other_ns is None:
        return other_ns if one_ns is None else one_ns
    return min(one_ns, other_ns)


def limits_from_now(timeout: float | None, deadline_ms: float | None) -> Limits:
    """Return the times of a call made now."""
    deadline_ns = 0
    if deadline_ms is not None:
        deadline_ns = now_ns() + round(min(deadline_ms, _FOREVER_MS) * 1e6)
    return Limits(deadline_after(timeout), deadline_ns, timeout, deadline_ms)


def unserved(address: object, limits: Limits) -> Exception:
    """Return what ends a call whose limits pass before an executor follows the one that died."""
    if limits.next_ns == limits.deadline_ns:
        return exceeded(address, limits)
    return CallTimeout(
        f"'{address}' had no executor within {limits.timeout:g} seconds and the call is given up; "
        f"give it more time with timeout="
    )


def exceeded(address: object, limits: Limits) -> DeadlineExceeded:
    """Return what ends a call that was not launched by its deadline."""
    return DeadlineExceeded(
        f"'{address}' did not launch this call within {limits.deadline_ms:g} ms, so it never "
        f"runs; give it more time with deadline_ms="
    )


def check(timeout: float | None, deadline_ms: float | None) -> None:
    """Look at options before any call is made with them.

    Raises:
        ConfigError: *timeout* is neither None nor a number, *deadline_ms* neither None nor a
            finite number above 0.
    """
    deadline_after(timeout)
    if deadline_ms is None:
        return
    if (
        not isinstance(deadline_ms, (int, float))
        or isinstance(deadline_ms, bool)
        or not 0 < deadline_ms < math.inf
    ):
        raise ConfigError(
            f"deadline_ms is {deadline_ms!r}; give milliseconds as a finite number above 0, "
            f"or None for no deadline"
        )
