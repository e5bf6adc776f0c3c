"""How long to wait before an executor that has ended is started again, and when to give up.

It has no clock and does nothing by itself: `ended` is told how the last one fared.

::

    it ended                               next one
    ------------------------------------   ------------------------------------
    having served for `STEADY_NS`          at once
    having served for less                 after a pause, each twice the last one
    before it served                       likewise; none at all after `STARTS_MAX` in a row
"""

from __future__ import annotations

STEADY_NS = 1_000_000_000
STARTS_MAX = 5

_FIRST_NS = 100_000_000
_LONGEST_NS = 5_000_000_000


class Backoff:
    """Counts how often in a row executors fared badly."""

    def __init__(self) -> None:
        self._pause_ns = _FIRST_NS
        self.failed_starts = 0  # in a row

    def ended(self, served_ns: int | None) -> int | None:
        """Return the nanoseconds to wait before the next start; None to give up.

        Args:
            served_ns: how long the one that has ended did serve; None if it never did.
        """
        self.failed_starts = self.failed_starts + 1 if served_ns is None else 0
        if self.failed_starts >= STARTS_MAX:
            return None
        if served_ns is not None and served_ns >= STEADY_NS:
            self._pause_ns = _FIRST_NS
            return 0
        pause_ns, self._pause_ns = self._pause_ns, min(2 * self._pause_ns, _LONGEST_NS)
        return pause_ns
