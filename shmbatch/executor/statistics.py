"""What an executor counts. The loop adds, the control thread reads; nobody waits."""

from __future__ import annotations

from typing import Any

from .batcher import SealReason


class Statistics:
    """Counters of one function since the executor started."""

    __slots__ = ("_batch_sizes", "_calls_done", "_calls_failed", "_sealed")

    def __init__(self, max_batch_size: int) -> None:
        self._calls_done = 0
        self._calls_failed = 0
        self._batch_sizes = [0] * (max_batch_size + 1)
        self._sealed = dict.fromkeys(SealReason, 0)

    def count(self, calls: int, failed: int, reason: SealReason) -> None:
        """Count a completed batch: its calls, the errors among them, and why it was sealed."""
        self._calls_done += calls
        self._calls_failed += failed
        self._batch_sizes[calls] += 1
        self._sealed[reason] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as data that MessagePack has."""
        return {
            "calls_done": self._calls_done,
            "calls_failed": self._calls_failed,
            "batch_sizes": {str(size): n for size, n in enumerate(self._batch_sizes) if n},
            "sealed": {reason.value: n for reason, n in self._sealed.items()},
        }
