"""What tuning found: figures for people and programs to read, and to be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..errors import ConfigError
from .proposal import Proposal
from .service import Service, Timing, percentile

_LATE = 0.1  # of the target


@dataclass(frozen=True)
class At:
    """How long calls take that come at random times, so many a second."""

    rate: float
    p50_ms: float
    p99_ms: float
    late_ms: float = 0.0  # how late half of the calls were made

    @classmethod
    def of(cls, rate: float, latencies_ns: Sequence[float], late_ns: float = 0.0) -> Self:
        """Return the percentiles of some calls.

        Raises:
            ConfigError: there were none.
        """
        if not latencies_ns:
            raise ConfigError(
                f"no call came at {rate:g} calls/s; give a higher --rate, or more --seconds"
            )
        p50, p99 = (percentile(latencies_ns, q) / 1e6 for q in (0.5, 0.99))
        return cls(rate, p50, p99, late_ns / 1e6)

    @property
    def calls_per_s(self) -> str:
        """The rate, for people to read."""
        return f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.2g}"


@dataclass(frozen=True)
class Check:
    """One figure, as expected and as measured."""

    what: str
    unit: str
    expected: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.measured / self.expected


@dataclass(frozen=True)
class Report:
    """What is known of one function, what to do, and what then to expect."""

    name: str
    file: str
    device: str
    examples: str
    target_ms: float
    timings: Sequence[Timing]  # of sizes that may be a largest batch
    proposal: Proposal
    options: Sequence[str]  # of the decorator, that stay
    service: Service
    outstanding: int  # calls, for the throughput
    expected_per_s: float
    measured_per_s: float
    expected: Sequence[At]
    measured: Sequence[At]  # at the same rates
    curve: Sequence[At]  # expected

    @property
    def decorator(self) -> str:
        """The line to paste."""
        return self.proposal.parameters.decorator(self.options)

    def checks(self) -> Iterator[Check]:
        """Yield what was expected and what came."""
        yield Check("throughput", "calls/s", self.expected_per_s, self.measured_per_s)
        for expected, measured in zip(self.expected, self.measured, strict=True):
            at = f"at {expected.calls_per_s} calls/s"
            yield Check(f"p50 {at}", "ms", expected.p50_ms, measured.p50_ms)
            yield Check(f"p99 {at}", "ms", expected.p99_ms, measured.p99_ms)

    def too_late(self) -> Iterator[At]:
        """Yield what was measured where the calls themselves came late, so that it tells little
        of the function."""
        for measured in self.measured:
            if measured.late_ms > _LATE * self.target_ms:
                yield measured

    def document(self) -> dict[str, Any]:
        """Return all of it as data that JSON has."""
        overhead = self.service.overhead
        return {
            "name": self.name,
            "file": self.file,
            "device": self.device,
            "examples": self.examples,
            "target_ms": self.target_ms,
            "sizes": [
                {
                    "size": timing.size,
                    "p50_ms": timing.p50_ns / 1e6,
                    "p99_ms": timing.p99_ns / 1e6,
                    "calls_per_s": timing.calls_per_s,
                }
                for timing in self.timings
            ],
            "overhead": {
                "slowdown": overhead.slowdown,
                "per_batch_us": overhead.per_batch_ns / 1e3,
                "per_call_us": overhead.per_call_ns / 1e3,
                "way_us": overhead.way_p50_ns / 1e3,
            },
            "proposal": {
                **asdict(self.proposal.parameters),
                "decorator": self.decorator,
                "reasons": self.proposal.reasons,
            },
            "outstanding": self.outstanding,
            "checks": [{**asdict(check), "ratio": check.ratio} for check in self.checks()],
            "expected": [asdict(at) for at in self.expected],
            "measured": [asdict(at) for at in self.measured],
            "curve": [asdict(at) for at in self.curve],
        }
