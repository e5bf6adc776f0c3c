"""What an executor counts. The loop adds, the control thread reads; nobody waits."""

from __future__ import annotations

from ..protocol._core import DELIVERING, RUNNING, STAGING, WAITING, Phases
from ..protocol.snapshot import Latencies
from .batcher import SealReason

_PHASES = {
    "waiting": WAITING,
    "staging": STAGING,
    "running": RUNNING,
    "delivering": DELIVERING,
}


class Statistics:
    """Counters of one function since the executor started."""

    __slots__ = ("_sizes", "phases", "rejected")

    def __init__(self) -> None:
        self._sizes: dict[SealReason, dict[int, int]] = {reason: {} for reason in SealReason}
        # Calls taken out of their batch before it ran, as their bytes were no value; or before it
        # ran again in parts, as they had been given up.
        self.rejected = 0
        self.phases = Phases()  # how long calls took; the core adds to it

    def count(self, calls: int, rejected: int, reason: SealReason) -> None:
        """Count a completed batch: its calls that ran, those that did not, why it was sealed."""
        if rejected:
            self.rejected += rejected
            if not calls:
                return  # nothing ran
        sizes = self._sizes[reason]
        sizes[calls] = sizes.get(calls, 0) + 1

    def batch_sizes(self) -> dict[str, dict[int, int]]:
        """Return how many batches there were of each size, by the reason they were sealed for."""
        # Copied in one step, since the loop may be adding a size that it had not seen before.
        return {reason.value: sizes.copy() for reason, sizes in self._sizes.items()}

    def latencies(self) -> dict[str, Latencies]:
        """Return the histograms of all phases."""
        latencies: dict[str, Latencies] = {}
        for name, phase in _PHASES.items():
            sum_ns, max_ns, counts = self.phases.read(phase)
            latencies[name] = {"sum_ns": sum_ns, "max_ns": max_ns, "counts": counts}
        return latencies
