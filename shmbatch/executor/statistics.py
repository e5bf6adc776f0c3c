"""What an executor counts. The loop adds, the control thread reads; nobody waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .batcher import SealReason


class Statistics:
    """Counters of one function since the executor started."""

    __slots__ = ("batch_sizes", "calls_done", "calls_failed", "sealed")

    def __init__(self) -> None:
        self.calls_done = 0  # outcomes published, errors among them
        self.calls_failed = 0
        self.batch_sizes: Counter[int] = Counter()
        self.sealed: Counter[SealReason] = Counter()

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as data that MessagePack has."""
        return {
            "calls_done": self.calls_done,
            "calls_failed": self.calls_failed,
            # Copied first: another thread may add a size meanwhile.
            "batch_sizes": {str(size): n for size, n in sorted(dict(self.batch_sizes).items())},
            "sealed": {reason.value: n for reason, n in dict(self.sealed).items()},
        }
