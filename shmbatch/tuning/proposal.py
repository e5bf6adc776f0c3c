"""Which batching parameters to propose, and why: a function of what was measured.

A call that comes just after a batch was sealed waits for that batch to end and then for its own.
So a size is feasible where twice its time fits into the target; of the feasible ones the smallest
is taken that has nearly the largest throughput. What the target leaves after a full batch, and
after the way there and back, is the time to wait for company.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ..contract.sizes import padded_size
from ..errors import ConfigError
from .service import Service, Timings
from .variants import Parameters

_ENOUGH = 0.95  # of the largest throughput
_SAVED = 0.1  # of the time of batches between, for which padding is worth it ...
_SAVED_NS = 10_000  # ... and at least so much of it: less is soon within what varies


@dataclass(frozen=True)
class Proposal:
    """Parameters, and for each of them the reason in one line."""

    parameters: Parameters
    reasons: dict[str, str] = field(default_factory=dict)


def feasible(service: Service, size: int, target_ns: float) -> bool:
    """Say whether a call that just misses a batch of *size* still meets the target in the next."""
    return 2 * service.period_ns(size) + service.overhead.way_p50_ns <= target_ns


def proposed(
    service: Service, sizes: Sequence[int], target_ns: float, name: str, limit: str
) -> Proposal:
    """Return what to propose of *sizes*, those timed that may be a largest batch.

    Args:
        name: of the function, for messages.
        limit: why no larger sizes were timed, if it is not for the target; else "".

    Raises:
        ConfigError: not even a single call meets the target.
    """
    way_ns = service.overhead.way_p50_ns
    least_ns = service.period_ns(1) + way_ns
    if least_ns > target_ns:
        raise ConfigError(
            f"{name} cannot meet {target_ns / 1e6:g} ms: a single call takes {ms(least_ns)}, "
            f"{ms(service.timings.total_ns(1))} of that in its batch; raise --target-ms above "
            f"that, or make the function faster"
        )
    fitting = [size for size in sizes if feasible(service, size, target_ns)]
    if not fitting:
        chosen = sizes[0]
        why = (
            f"twice {ms(service.period_ns(chosen))} do not fit into the target: a call that "
            f"finds the executor busy is late"
        )
    else:
        most = max(size / service.period_ns(size) for size in fitting)
        chosen = next(size for size in fitting if size / service.period_ns(size) >= _ENOUGH * most)
        twice = f"twice its {ms(service.period_ns(chosen))} fit into the target"
        if chosen < fitting[-1]:
            why = f"{twice}, and larger batches gain less than 5 %"
        elif chosen < sizes[-1]:
            why = f"{twice}, so a call that just misses a batch makes it in the next"
        else:
            why = f"{twice}; {limit or 'it is the largest that was tried'}"
    full_ns, way_p99_ns = service.p99_ns(chosen), service.overhead.way_p99_ns
    wait_ms = _rounded_down((target_ns - full_ns - way_p99_ns) / 1e6)
    reasons = {
        "max_batch_size": why,
        "wait_ms": f"{target_ns / 1e6:g} ms less {ms(full_ns)} for a full batch and "
        f"{ms(way_p99_ns)} for the way there and back, both p99",
    }
    return Proposal(Parameters(chosen, wait_ms), reasons)


def with_sizes(proposal: Proposal, steps: Timings, graphs: bool, arrays: bool) -> Proposal:
    """Add allowed sizes where they help.

    Args:
        steps: what was timed of `stepped_sizes`, at one time, to be compared.
        graphs: the function has CUDA graphs, which need allowed sizes.
        arrays: all its parameters are arrays of fixed shape.
    """
    largest = proposal.parameters.max_batch_size
    allowed = tuple(1 << at for at in range((largest - 1).bit_length()))
    allowed += (largest,)
    pairs = {size: padded_size(allowed, size) for size in steps.by_size if size < largest}
    saved_ns = {
        size: steps.total_ns(size) - steps.total_ns(padded)
        for size, padded in pairs.items()
        if size != padded and padded in steps.by_size
    }
    saved = {size: ns / steps.total_ns(size) for size, ns in saved_ns.items()}
    sizes: tuple[int, ...] | None = None
    if graphs:
        sizes, why = allowed, "there is one CUDA graph for each"
    elif not arrays:
        why = "not all parameters are arrays of fixed shape"
    elif not saved:
        why = "there are none between that could be padded"
    elif fmean(saved.values()) < _SAVED or fmean(saved_ns.values()) < _SAVED_NS:
        why = "batches between two powers of two take no longer than when padded"
    else:
        sizes = allowed
        best = max(saved, key=saved.__getitem__)
        own, padded = ms(steps.total_ns(best)), ms(steps.total_ns(pairs[best]))
        why = (
            f"padded to them, a batch between takes {fmean(saved.values()):.0%} less; "
            f"{best} calls take {own} as they are, {padded} padded"
        )
    parameters = Parameters(largest, proposal.parameters.wait_ms, sizes)
    return Proposal(parameters, {**proposal.reasons, "batch_sizes": why})


def stepped_sizes(largest: int) -> list[int]:
    """Return sizes that show whether times have steps at powers of two: those and some between."""
    found = set[int]()
    power = 4
    while power <= largest:
        found |= {3 * power // 4, power - 1, power}
        power *= 2
    return sorted(found)


def ms(ns: float) -> str:
    """Write a duration in milliseconds, to three digits."""
    value = ns / 1e6
    digits = max(0, 2 - math.floor(math.log10(value))) if value >= 0.001 else 3
    return f"{value:.{min(digits, 3)}f} ms"


def _rounded_down(value: float) -> float:
    """Return *value* with two digits that count, not larger; 0 where there is next to none."""
    if value < 0.01:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.floor(value / step + 1e-9) * step, 6)
