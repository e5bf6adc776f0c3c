"""How long a batch keeps the executor, alone and under load: what was timed, and a model of it.

Under load a batch of *n* calls is followed by the next one after::

    slowdown * alone(n)  +  per_batch  +  n * per_call

*alone* is what `bench` timed. The others are what producers cost that compete for CPUs, and have
to be woken; they are fitted to short runs with batches smaller than those they are used for.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from ..contract.sizes import padded_size


@dataclass(frozen=True)
class Timing:
    """Batches of one size, run alone; nanoseconds."""

    size: int
    total_ns: list[int] = field(default_factory=list)
    function_ns: list[int] = field(default_factory=list)

    @property
    def p50_ns(self) -> float:
        return float(median(self.total_ns))

    @property
    def p99_ns(self) -> float:
        return percentile(self.total_ns, 0.99)

    @property
    def calls_per_s(self) -> float:
        return self.size / self.p50_ns * 1e9


@dataclass
class Timings:
    """All that was timed, by size; in between, a straight line."""

    by_size: dict[int, Timing] = field(default_factory=dict)

    def add(self, size: int, total_ns: Sequence[int], function_ns: Sequence[int]) -> None:
        """Add runs of one size to those that there are."""
        timing = self.by_size.setdefault(size, Timing(size))
        timing.total_ns.extend(total_ns)
        timing.function_ns.extend(function_ns)

    def total_ns(self, size: float) -> float:
        """Return the median of all that the executor does for a batch."""
        return self._between(size, lambda timing: timing.p50_ns)

    def function_ns(self, size: float) -> float:
        """Return the median of the function's part of it."""
        return self._between(size, lambda timing: float(median(timing.function_ns)))

    def p99_ns(self, size: float) -> float:
        return self._between(size, lambda timing: timing.p99_ns)

    def noise(self, size: float) -> Sequence[float]:
        """Return how long single runs of about that size took, relative to their mean."""
        nearest = min(self.by_size, key=lambda each: abs(each - size))
        total_ns = self.by_size[nearest].total_ns
        mean = fmean(total_ns)
        return [each / mean for each in total_ns]

    def _between(self, size: float, of: Callable[[Timing], float]) -> float:
        sizes = sorted(self.by_size)
        at = bisect_left(sizes, size)
        if at == len(sizes):  # beyond what was timed, as long for each
            return of(self.by_size[sizes[-1]]) * size / sizes[-1]
        above = of(self.by_size[sizes[at]])
        if at == 0:
            return above
        low, high = sizes[at - 1], sizes[at]
        below = of(self.by_size[low])
        return below + (above - below) * (size - low) / (high - low)


@dataclass(frozen=True)
class Loaded:
    """A run under load: batches of about one size, one after the other."""

    size: float
    period_ns: float  # from one batch to the next
    function_ns: float  # of it, the function's part


def typical(runs: Sequence[Loaded]) -> Loaded:
    """Return the medians of several runs with the same parameters."""
    return Loaded(
        median(run.size for run in runs),
        median(run.period_ns for run in runs),
        median(run.function_ns for run in runs),
    )


@dataclass(frozen=True)
class Overhead:
    """What load adds; see above."""

    slowdown: float = 1.0
    per_batch_ns: float = 0.0
    per_call_ns: float = 0.0
    way_ns: Sequence[float] = (0.0,)  # of lone calls: what they took beside their batch

    @property
    def way_p50_ns(self) -> float:
        return float(median(self.way_ns))

    @property
    def way_p99_ns(self) -> float:
        return percentile(self.way_ns, 0.99)


def overhead(
    timings: Timings, runs: Sequence[Loaded], way_ns: Sequence[float], on_host: bool
) -> Overhead:
    """Fit the overhead to runs under load.

    Args:
        runs: of two sizes, or of one.
        on_host: the function has ended when it returns. Else it may overlap with the next one,
            and only whole batches can be compared.
    """
    if not on_host:
        slowdown = fmean(run.period_ns / timings.total_ns(run.size) for run in runs)
        return Overhead(slowdown, way_ns=way_ns)
    slowdown = fmean(run.function_ns / timings.function_ns(run.size) for run in runs)
    gaps = [
        (run.size, max(0.0, run.period_ns - slowdown * timings.total_ns(run.size))) for run in runs
    ]
    per_batch_ns, per_call_ns = _line(gaps)
    return Overhead(slowdown, per_batch_ns, per_call_ns, way_ns)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return intercept and slope of the line through two points, or one; none is negative."""
    (x1, y1), (x2, y2) = min(points), max(points)
    if x1 == x2:
        return y1, 0.0
    slope = (y2 - y1) / (x2 - x1)
    if slope < 0:
        return (y1 + y2) / 2, 0.0
    intercept = y1 - slope * x1
    if intercept < 0:
        return 0.0, (y1 + y2) / (x1 + x2)
    return intercept, slope


@dataclass(frozen=True)
class Service:
    """The model: how long a batch of some calls keeps the executor under load."""

    timings: Timings
    overhead: Overhead
    batch_sizes: tuple[int, ...] | None = None

    def period_ns(self, calls: float) -> float:
        """Return from one batch to the next."""
        cost = self.overhead
        alone_ns = self.timings.total_ns(self._size(calls))
        return cost.slowdown * alone_ns + cost.per_batch_ns + calls * cost.per_call_ns

    def p99_ns(self, calls: int) -> float:
        """Return `period_ns` of an unusually long batch."""
        size = self._size(calls)
        longer_ns = self.timings.p99_ns(size) - self.timings.total_ns(size)
        return self.period_ns(calls) + self.overhead.slowdown * max(0.0, longer_ns)

    def drawing(self, seed: int) -> Callable[[int], int]:
        """Return what draws the time that one batch of some calls takes."""
        draw = random.Random(seed)
        noise: dict[int, Sequence[float]] = {}
        periods: dict[int, float] = {}

        def drawn(calls: int) -> int:
            if calls not in periods:
                periods[calls] = self.period_ns(calls)
                noise[calls] = self.timings.noise(self._size(calls))
            return int(periods[calls] * draw.choice(noise[calls]))

        return drawn

    def _size(self, calls: float) -> float:
        if self.batch_sizes is None or calls > self.batch_sizes[-1]:
            return calls
        return padded_size(self.batch_sizes, int(calls))


def percentile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that a fraction *q* of all do not exceed."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(q * len(ordered)))])
