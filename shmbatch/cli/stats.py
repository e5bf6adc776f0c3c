"""``shmbatch stats NAME``: what an executor has counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from .printing import duration, memory, say, table

_SIZES_MAX = 8  # apart; more of them are shown by powers of two
_PHASES = ("count", "mean", "p50", "p90", "p99", "p99.9", "max")


@click.command("stats")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str, as_json: bool) -> None:
    """Print what the executor NAME has counted since it began to serve."""
    from ..client.asking import statistics

    counted = statistics(name)
    if as_json:
        say(json.dumps(counted))
        return
    say(
        f"{counted['name']}: {counted['state']}, process {counted['pid']}, "
        f"up {duration(counted['uptime_s'])}, transport {counted['transport']}, "
        f"device {counted['device']}, protocol {counted['version']}"
    )
    say(_admission(counted["admission"]))
    for function, counts in counted["functions"].items():
        say()
        say("\n".join(_function(function, counts)))


def _admission(admission: dict[str, int]) -> str:
    line = (
        f"producers: {admission['producers']} of at most {admission['producers_max']}, "
        f"with {memory(admission['nbytes'])} of at most {memory(admission['nbytes_max'])}"
    )
    for what in ("refused", "expelled"):
        if admission[what]:
            line += f"; {admission[what]} {what}"
    return line


def _function(name: str, counts: dict[str, Any]) -> Iterator[str]:
    yield f"{name}: up to {counts['max_batch_size']} calls in {counts['wait_ms']:g} ms"
    producers = "1 producer" if counts["producers"] == 1 else f"{counts['producers']} producers"
    yield (
        f"  {producers}, each with {counts['slots']} slots in {memory(counts['segment_nbytes'])}"
    )
    yield (
        f"  calls: {counts['calls_waiting']} waiting, {counts['calls_in_flight']} in flight, "
        f"{counts['calls_done']} done, {counts['calls_failed']} failed"
    )
    if counts["failed"]:
        yield "  failed: " + ", ".join(f"{n} {kind}" for kind, n in counts["failed"].items())
    if counts["calls_cancelled"]:
        yield f"  cancelled: {counts['calls_cancelled']}"
    if counts["executions_halved"]:
        yield f"  executions: {counts['executions_halved']} failed and were halved"
    if counts["executions_out_of_memory"]:
        limit = counts["memory_limit"]
        bounded = "" if limit is None else f", up to {limit} calls in a batch now"
        yield f"  out of memory: {counts['executions_out_of_memory']} executions{bounded}"
    if not counts["batches"]:
        yield "  batches: none"
        return
    yield f"  batches: {counts['batches']}, mean size {counts['mean_batch_size']:.1f}"
    tables = table(
        ("sealed by", "batches", "sizes"),
        [
            (reason, str(n), _sizes(counts["batch_sizes_by_reason"][reason]))
            for reason, n in counts["sealed"].items()
            if n
        ],
        right=(1,),
    )
    yield from (f"    {line}" for line in tables)
    tables = table(
        ("latency, µs", "calls", *_PHASES[1:]),
        [
            (phase, *(_microseconds(each, times[each]) for each in _PHASES))
            for phase, times in counts["latency_us"].items()
        ],
        right=range(1, 1 + len(_PHASES)),
    )
    yield from (f"    {line}" for line in tables)


def _sizes(sizes: dict[str, int]) -> str:
    """How many batches there were of which size, as ``size:batches``."""
    counts = {int(size): n for size, n in sizes.items()}
    if len(counts) <= _SIZES_MAX:
        return " ".join(f"{size}:{n}" for size, n in counts.items())
    octaves: dict[int, int] = {}
    for size, n in counts.items():
        octave = size.bit_length() - 1
        octaves[octave] = octaves.get(octave, 0) + n
    return " ".join(
        f"{1 << octave}-{(2 << octave) - 1}:{n}" if octave else f"1:{n}"
        for octave, n in octaves.items()
    )


def _microseconds(what: str, value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if what == "count" else f"{value:,.1f}"
