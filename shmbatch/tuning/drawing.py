"""The picture: time and throughput over the batch size, latency over the rate of arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..app.extras import needed
from ..errors import ConfigError
from .report import Report

_TIME, _CALLS, _TARGET, _P50 = "#1f5fa8", "#1a7f4b", "#b3261e", "#7a7a7a"


def check_drawable(file: Path | None) -> None:
    """Find out now, and not after half a minute.

    Raises:
        ConfigError: matplotlib is not installed, or *file* cannot be one of its pictures.
    """
    needed("tune", "matplotlib")
    if file is None:
        return
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--plot is '{file}'; use a file .png")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder '{file.absolute().parent}' for --plot")


def draw(report: Report, file: Path) -> Path:
    """Draw the curves into a PNG file, and return its path.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    from importlib import import_module

    needed("tune", "matplotlib")
    import_module("matplotlib").use("agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, (times, rates, latencies) = pyplot.subplots(
        1, 3, figsize=(13, 4.2), layout="constrained"
    )
    try:
        _draw_times(times, report)
        _draw_throughput(rates, report)
        _draw_latencies(latencies, report)
        for axes in (times, rates, latencies):
            axes.grid(True, color="#e4e4e4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(
            f"{report.name} on {report.device}, for {report.target_ms:g} ms:  "
            f"{report.proposal.parameters.short()}",
            fontsize=11,
        )
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise ConfigError(f"cannot write '{file}': {error.strerror}") from error
    finally:
        pyplot.close(figure)
    return file


def _draw_times(axes: Any, report: Report) -> None:
    sizes = [timing.size for timing in report.timings]
    p50 = [timing.p50_ns / 1e6 for timing in report.timings]
    p99 = [timing.p99_ns / 1e6 for timing in report.timings]
    axes.fill_between(sizes, p50, p99, color=_TIME, alpha=0.18, linewidth=0, label="p50 to p99")
    axes.plot(sizes, p50, "o-", color=_TIME, markersize=4, label="alone, p50")
    loaded = [report.service.period_ns(size) / 1e6 for size in sizes]
    axes.plot(sizes, loaded, "--", color=_P50, linewidth=1.2, label="under load, expected")
    axes.axhline(report.target_ms, color=_TARGET, linewidth=1.2, label="target")
    _mark_proposal(axes, report)
    axes.set(xlabel="calls in a batch", ylabel="time of a batch, ms", title="Time")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _size_axis(axes, sizes)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_throughput(axes: Any, report: Report) -> None:
    sizes = [timing.size for timing in report.timings]
    loaded = [size / report.service.period_ns(size) * 1e9 for size in sizes]
    alone = [timing.calls_per_s for timing in report.timings]
    axes.plot(sizes, alone, "o-", color=_CALLS, markersize=4, label="alone")
    axes.plot(sizes, loaded, "--", color=_P50, linewidth=1.2, label="under load, expected")
    largest = report.proposal.parameters.max_batch_size
    axes.plot(
        [largest],
        [report.measured_per_s],
        "D",
        color=_TARGET,
        markersize=6,
        label="under load, measured",
    )
    _mark_proposal(axes, report)
    axes.set(xlabel="calls in a batch", ylabel="calls a second", title="Throughput")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _size_axis(axes, sizes)
    axes.legend(frameon=False, fontsize=8)


def _draw_latencies(axes: Any, report: Report) -> None:
    rates = [at.rate for at in report.curve]
    axes.plot(rates, [at.p99_ms for at in report.curve], color=_TIME, label="p99, expected")
    axes.plot(rates, [at.p50_ms for at in report.curve], color=_P50, label="p50, expected")
    top = _top(report)
    for at in report.measured:
        _mark_latency(axes, at.rate, at.p99_ms, top, _TIME)
        _mark_latency(axes, at.rate, at.p50_ms, top, _P50)
    axes.plot([], [], "D", color="none", markeredgecolor="black", label="measured")
    axes.axhline(report.target_ms, color=_TARGET, linewidth=1.2, label="target")
    axes.axvline(
        report.expected_per_s, color=_CALLS, linewidth=1.2, linestyle=":", label="saturation"
    )
    axes.set(xlabel="calls a second, at random times", ylabel="latency, ms", title="Latency")
    axes.set_ylim(bottom=0, top=top)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _top(report: Report) -> float:
    """Return where to cut latencies off: near saturation they have no bound."""
    seen = [at.p99_ms for at in (*report.expected, *report.measured)]
    return 1.35 * max(report.target_ms, min(max(seen), 2 * report.target_ms))


def _mark_latency(axes: Any, rate: float, latency_ms: float, top: float, color: str) -> None:
    """Mark what was measured; beyond *top* by an arrow, and the figure."""
    if latency_ms < top:
        axes.plot([rate], [latency_ms], "D", color=color, markersize=6)
        return
    axes.plot([rate], [0.97 * top], "^", color=color, markersize=7)
    axes.annotate(
        f"{latency_ms:,.0f} ms",
        (rate, 0.97 * top),
        xytext=(-6, -3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=color,
    )


def _mark_proposal(axes: Any, report: Report) -> None:
    axes.axvline(
        report.proposal.parameters.max_batch_size,
        color="black",
        linewidth=0.9,
        linestyle=":",
        label="proposed",
    )


def _size_axis(axes: Any, sizes: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
