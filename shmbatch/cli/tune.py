"""``shmbatch tune FILE::FUNCTION``: which batching parameters to give a function, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..contract.batching import MAX_BATCH_SIZE
from . import options
from .printing import say, table

if TYPE_CHECKING:
    from ..tuning.report import Report

_LONGEST_TARGET_MS = 600_000
_HIGHEST_RATE = 10_000_000


@click.command("tune")
@click.argument("target", metavar="FILE[::FUNCTION]")
@click.option(
    "--target-ms",
    type=options.Number(0, _LONGEST_TARGET_MS, min_open=True),
    required=True,
    metavar="MS",
    help="How long a call may take, from the call to its result.",
)
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Examples: .npz or .json with one entry a parameter, or .npy or .json of the only one; "
    "the first axis counts examples. By default made from the signature.",
)
@click.option(
    "--rate",
    type=options.Number(0, _HIGHEST_RATE, min_open=True),
    metavar="CALLS_PER_S",
    help="How many calls come a second; by default 50 and 80 percent of what it can serve.",
)
@click.option(
    "--max",
    "max_size",
    type=click.IntRange(1, MAX_BATCH_SIZE),
    default=MAX_BATCH_SIZE,
    metavar="N",
    help="Try no larger batches: no more calls than will be outstanding at once.",
)
@click.option(
    "--seconds",
    type=options.Number(0.1, 600),
    default=2.0,
    metavar="S",
    show_default=True,
    help="How long the runs at a rate take; the others take parts of it.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Where to draw the curves; APP.FUNCTION.png by default.",
)
@click.option("--no-plot", is_flag=True, help="Draw nothing.")
@options.app
@options.device
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    target: str,
    target_ms: float,
    input_file: Path | None,
    rate: float | None,
    max_size: int,
    seconds: float,
    plot_file: Path | None,
    no_plot: bool,
    app_name: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a function and propose its max_batch_size, wait_ms and batch_sizes.

    It is run as an executor would, first alone, then under load by processes that call it. Keeps
    the machine busy for ten to thirty seconds, longer if a batch takes long.
    """
    if no_plot and plot_file is not None:
        raise click.UsageError("--plot and --no-plot exclude each other")
    if not no_plot:
        from ..tuning.drawing import check_drawable

        check_drawable(plot_file)
    from ..tuning.procedure import Wanted, tune

    file, _, function = target.partition("::")
    report = tune(
        Wanted(
            Path(file),
            function or None,
            target_ms,
            app=app_name,
            device=device,
            input_file=input_file,
            rate=rate,
            seconds=seconds,
            max_size=max_size,
        ),
        _progress,
    )
    drawn = None
    if not no_plot:
        from ..tuning.drawing import draw

        drawn = draw(report, plot_file or Path(f"{report.name}.png"))
    if as_json:
        say(json.dumps({**report.document(), "plot": None if drawn is None else str(drawn)}))
        return
    for line in _prose(report):
        say(line)
    if drawn is not None:
        say(f"\ncurves: {drawn}")


def _progress(doing: str) -> None:
    """Say what takes so long, to a person who watches."""
    if sys.stderr.isatty():
        click.echo(f"{doing} ...", err=True)


def _prose(report: Report) -> Iterator[str]:
    yield f"{report.name} on {report.device}, {report.examples}"
    yield ""
    yield from table(
        ("batch of", "p50, ms", "p99, ms", "calls/s"),
        [
            (
                str(timing.size),
                _figure(timing.p50_ns / 1e6),
                _figure(timing.p99_ns / 1e6),
                _figure(timing.calls_per_s),
            )
            for timing in report.timings
        ],
        right=range(4),
    )
    yield ""
    yield f"for {report.target_ms:g} ms:"
    yield ""
    yield f"    {report.decorator}"
    yield ""
    parameters = report.proposal.parameters
    values = {
        "max_batch_size": str(parameters.max_batch_size),
        "wait_ms": f"{parameters.wait_ms:g}",
        "batch_sizes": "any" if parameters.batch_sizes is None else "some",
    }
    for name, reason in report.proposal.reasons.items():
        yield f"{name}, {values[name]}: {reason}"
    yield ""
    yield from table(
        ("", "expected", "measured", "ratio"),
        [
            (
                f"{check.what}, {check.unit}",
                _figure(check.expected),
                _figure(check.measured),
                f"{check.ratio:.2f}",
            )
            for check in report.checks()
        ],
        right=range(1, 4),
    )
    yield ""
    for at in report.too_late():
        late = f"{_figure(at.late_ms)} ms late"
        yield f"At {at.calls_per_s} calls/s half of the calls were made {late}: this machine"
        yield "cannot make so many, and serve them too."
    yield f"The throughput is that of {report.outstanding} calls outstanding at once."
    size, wait_ms = parameters.max_batch_size, parameters.wait_ms
    if wait_ms and size > 1:
        yield f"With fewer than {size} every batch waits {wait_ms:g} ms in vain: then give"
        yield "--max, as many as there will be."


def _figure(value: float) -> str:
    """Write a number to three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
