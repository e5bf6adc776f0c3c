"""What an executor's counts say: totals, means, percentiles."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from ..errors import ProtocolError
from ..protocol.snapshot import FunctionCounts, Latencies, Snapshot, batch_sizes, totals

# Each with the thousandth of all calls that took as long or less.
PERCENTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}

EXPIRED = "DeadlineExceeded"  # what a caller gets whose call has expired

_BUCKETS = 976  # of a histogram; see `_core.Phases`
_EXACT = 16  # as many buckets are one nanosecond wide, and an octave has as many


def report(snapshot: Snapshot) -> dict[str, Any]:
    """Return *snapshot* as `shmbatch.statistics` documents it.

    Raises:
        ProtocolError: a histogram in it has another size.
    """
    return {
        "name": snapshot["name"],
        "pid": snapshot["pid"],
        "version": snapshot["version"],
        "transport": snapshot["transport"],
        "device": snapshot["device"],
        "state": snapshot["state"],
        "uptime_s": round(snapshot["uptime_ns"] / 1e9, 3),
        "admission": dict(snapshot["admission"]),
        "functions": {name: _function(each) for name, each in snapshot["functions"].items()},
    }


def _function(counts: FunctionCounts) -> dict[str, Any]:
    total = totals(counts)
    failed = Counter(counts["failed"])
    if counts["expired"]:
        failed[EXPIRED] += counts["expired"]
    return {
        "max_batch_size": counts["max_batch_size"],
        "wait_ms": counts["wait_ns"] / 1e6,
        "producers": counts["producers"],
        "slots": counts["slots"],
        "segment_nbytes": counts["segment_nbytes"],
        "calls_waiting": counts["waiting"],
        "calls_in_flight": counts["in_flight"],
        "calls_done": total.done,
        "calls_failed": total.failed,
        "failed": dict(failed.most_common()),
        "calls_cancelled": counts["cancelled"],
        "batches": total.batches,
        "mean_batch_size": round(total.ran / total.batches, 3) if total.batches else None,
        "batch_sizes": _by_size(batch_sizes(counts)),
        "sealed": {reason: sum(each.values()) for reason, each in counts["batch_sizes"].items()},
        "batch_sizes_by_reason": {
            reason: _by_size(each) for reason, each in counts["batch_sizes"].items()
        },
        "executions_halved": counts["halved"],
        "executions_out_of_memory": counts["out_of_memory"],
        "memory_limit": counts["memory_limit"],
        "latency_us": {phase: _latency(each) for phase, each in counts["latencies"].items()},
    }


def _by_size(sizes: dict[int, int]) -> dict[str, int]:
    return {str(size): sizes[size] for size in sorted(sizes)}


def _latency(latencies: Latencies) -> dict[str, Any]:
    counts = latencies["counts"]
    if len(counts) != _BUCKETS * 8:
        raise ProtocolError(
            f"statistics are malformed: a histogram has {len(counts)} bytes, not {_BUCKETS * 8}"
        )
    buckets = memoryview(counts).cast("Q")
    count = sum(buckets)
    if not count:
        return {"count": 0, "mean": None, **dict.fromkeys(PERCENTILES), "max": None}
    longest_ns = percentiles_ns(buckets, PERCENTILES.values(), latencies["max_ns"])
    return {
        "count": count,
        "mean": round(latencies["sum_ns"] / count / 1e3, 3),
        **{name: ns / 1e3 for name, ns in zip(PERCENTILES, longest_ns, strict=True)},
        "max": latencies["max_ns"] / 1e3,
    }


def percentiles_ns(counts: Sequence[int], thousandths: Iterable[int], max_ns: int) -> list[int]:
    """Return how long the fastest so many thousandths of all took, nanoseconds, not less.

    A bucket knows its calls no better than its width: the answer is too large by a sixteenth
    at most, and never larger than *max_ns*.

    Args:
        counts: of the buckets of `_core.Phases.read`, some of them not zero.
    """
    fastest = list(accumulate(counts))  # up to the end of each bucket
    found = []
    for each in thousandths:
        rank = max(1, -(-fastest[-1] * each // 1000))
        found.append(min(_longest_ns(bisect_left(fastest, rank)), max_ns))
    return found


def _longest_ns(bucket: int) -> int:
    """Return the longest time that belongs into a bucket."""
    if bucket < _EXACT:
        return bucket
    octave = bucket // _EXACT - 1
    return ((_EXACT + bucket % _EXACT + 1) << octave) - 1
