"""What every part of the GPU benchmarks is given, and what it hands back.

A part is measured in a process of its own (see `run_all`), so what breaks in one, the device's
context too, breaks in no other. Rehearsed, all parts share a process and an executor on the CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks import _report

if TYPE_CHECKING:
    from benchmarks.gpu._stand import Stand

Value = TypeVar("Value")


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly to measure."""

    device: str  # "cuda:0", or "cpu" in a rehearsal
    runs: int
    window_s: float  # of one run of a load
    warmup_s: float
    producers: int
    folder: Path  # for what executors write
    shared: Stand | None = None  # in a rehearsal

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def few(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return all *values*; in a rehearsal the first two."""
        return values[:2] if self.rehearsal else values

    def synchronize(self) -> None:
        if not self.rehearsal:
            import torch

            torch.cuda.synchronize()

    def pinned(self, tensor: Any) -> Any:
        """Return a copy in page-locked memory, where there is a device that needs it."""
        return tensor.clone() if self.rehearsal else tensor.pin_memory()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long *work* takes until all that it starts is over."""
        self.synchronize()
        since = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - since

    def calibrate(self) -> float:
        """Find out how many cycles `torch.cuda._sleep` takes for a microsecond; tell executors."""
        from benchmarks.gpu.functions import CYCLES

        cycles = 1000.0
        if not self.rehearsal:
            import torch

            asked = 20_000_000
            for _ in range(20):  # until the clock has risen
                torch.cuda._sleep(asked)
            times = []
            for _ in range(7):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                torch.cuda._sleep(asked)
                end.record()
                end.synchronize()
                times.append(1e3 * begin.elapsed_time(end))
            cycles = asked / median(times)
        os.environ[CYCLES] = str(cycles)
        return cycles


@dataclass
class Part:
    """What one part has found."""

    tables: list[str] = field(default_factory=list)
    promises: list[_report.Ratio] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # it took

    def promise(
        self, what: str, values: list[float], *, floor: float | None, ceiling: float | None = None
    ) -> None:
        spread = _report.Spread(tuple(values))
        self.promises.append(_report.Ratio(what, spread, floor, ceiling))

    def document(self) -> dict[str, Any]:
        return {
            "tables": self.tables,
            "promises": [each.document() for each in self.promises],
            "figures": self.figures,
            "seconds": self.seconds,
        }


def spread(values: list[float]) -> _report.Spread:
    return _report.Spread(tuple(values))
