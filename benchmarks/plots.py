"""Which pictures stand in docs/: curves, drawn from the results that are committed.

    python -m benchmarks.plots

Measures nothing. A picture whose results are not there is not drawn.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks._report import HERE

RESULTS = HERE / "results"
FOLDER = HERE.parent / "docs" / "explanation" / "plots"
SOURCE = "Source"  # of a picture's metadata: the `digest` of its results

Document: TypeAlias = dict[str, Any]

_BLUE, _GREEN, _RED, _GREY, _ORANGE = "#1f5fa8", "#1a7f4b", "#b3261e", "#7a7a7a", "#c77700"
_AXES = {
    "producers": "producers",
    "input": "bytes of an input",
    "batch": "max_batch_size",
    "parameters": "parameters of 16 bytes",
}
_SITUATIONS = {
    "free": "nothing else runs",
    "busy": "one CPU is busy otherwise",
    "one-cpu": "one CPU for all",
    "pinned": "executor pinned to one CPU",
}
_MODES = {"auto": _BLUE, "spin": _RED, "park": _GREEN}


def main() -> None:
    import_module("matplotlib").use("agg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWN.items():
        try:
            document = json.loads((RESULTS / f"{name}.json").read_text())
        except FileNotFoundError:
            print(f"there is no results/{name}.json; run its benchmark", file=sys.stderr)
            continue
        for file in draw(document):
            print(f"{file.parent.name}/{file.name}")


def digest(document: Document) -> str:
    """Say of which results a picture is, in its metadata."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def draw_scale(document: Document) -> list[Path]:
    """One picture for each thing that varies: CPU time, calls per second, memory, attaching."""
    files = []
    for axis, points in document["axes"].items():
        values = [point["value"] for point in points]
        with _Picture(f"scale-{axis}", document, columns=2, rows=2) as (picture, all_axes):
            (times, rates), (memory, attach) = all_axes
            for key, label, color in (
                ("batch_us", "executor, per batch", _GREY),
                ("producer_us", "producer, per call", _BLUE),
                ("executor_us", "executor, per call", _GREEN),
            ):
                _curve(times, values, points, key, label, color)
            times.set(title="CPU time", ylabel="µs")
            _curve(rates, values, points, "calls_per_s", "", _BLUE)
            rates.set(title="Throughput", ylabel="calls a second")
            _curve(memory, values, points, "segment_kb", "its segment, shared", _BLUE)
            _curve(memory, values, points, "own_kb", "beside it, in both processes", _GREY)
            memory.set(title="Memory of a producer", ylabel="KB")
            _curve(attach, values, points, "attach_ms", "", _ORANGE)
            attach.set(title="Attaching", ylabel="ms")
            for axes in all_axes.flat:
                _logarithmic(axes)
                _over(axes, values, _AXES[axis])
            for axes in (times, memory):
                axes.legend(frameon=False, fontsize=8)
        files.append(picture.file)
    return files


def draw_waiting(document: Document) -> list[Path]:
    """Latency and CPU over the number of producers, for each way to wait; a column a situation."""
    present = {row["situation"] for row in document["rows"]}
    shown = [situation for situation in _SITUATIONS if situation in present]
    if not shown:
        return []
    with _Picture("waiting", document, columns=len(shown), rows=2) as (picture, axes):
        for column, situation in enumerate(shown):
            latency, cpu = axes[0][column], axes[1][column]
            for mode, color in _MODES.items():
                rows = [
                    row
                    for row in document["rows"]
                    if (row["situation"], row["wait"]) == (situation, mode)
                ]
                values = [row["producers"] for row in rows]
                _curve(latency, values, rows, "p50_us", f"{mode}, p50", color)
                _curve(latency, values, rows, "p99_us", f"{mode}, p99", color, style="--")
                burnt = [
                    row["executor_cpus"]["median"] + row["producers_cpus"]["median"]
                    for row in rows
                ]
                cpu.plot(values, burnt, "o-", color=color, markersize=4)
            latency.set(title=_SITUATIONS[situation], ylabel="latency, µs")
            _logarithmic(latency)
            cpu.set(ylabel="CPUs, together")
            cpu.set_ylim(bottom=0)
            for each in (latency, cpu):
                _over(each, values, "producers")
        axes[0][0].legend(frameon=False, fontsize=8)
    return [picture.file]


def draw_pipeline(document: Document) -> list[Path]:
    """Served by offline over the time that a batch takes by itself."""
    with _Picture("pipeline", document) as (picture, ((axes,),)):
        for kind, color in (("compute", _BLUE), ("sleep", _GREEN)):
            found = [
                figures
                for name, figures in document["systems"].items()
                if name.startswith(f"{kind}_")
            ]
            times = [figures["batch_us"]["median"] / 1000 for figures in found]
            _curve(axes, times, found, "served_by_alone", kind, color)
        for floor, least, until in ((0.90, 0.3, 1), (0.95, 1, 50)):
            axes.plot([least, until], [floor, floor], color=_RED, linewidth=1.2)
        axes.plot([], [], color=_RED, linewidth=1.2, label="promised")
        axes.set(title="Served ÷ plain loop", ylabel="ratio of inputs a second", xscale="log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("ms of a batch of 32 in the plain loop")
        ticks = (0.1, 0.3, 1, 3, 10, 50)
        axes.set_xticks(ticks, [f"{ms:g}" for ms in ticks])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return [picture.file]


class _Picture:
    """One PNG; leaving the context writes it, with the machine below."""

    def __init__(self, name: str, document: Document, *, columns: int = 1, rows: int = 1) -> None:
        self.file = FOLDER / f"{name}.png"
        self._digest = digest(document)
        self._pyplot: Any = import_module("matplotlib.pyplot")
        self._figure, self._axes = self._pyplot.subplots(
            rows,
            columns,
            figsize=(2.4 + 3.4 * columns, 0.6 + 3.3 * rows),
            layout="constrained",
            squeeze=False,
            sharey="row" if name == "waiting" else "none",
        )
        for each in self._axes.flat:
            each.grid(True, color="#e4e4e4", linewidth=0.6)
            each.set_axisbelow(True)
            each.spines[["top", "right"]].set_visible(False)
        machine = document["machine"]
        self._figure.supxlabel(
            f"{machine['cpu']}, {machine['cpus_usable']} CPUs, {machine['kernel']}, "
            f"{machine['date'][:10]};\nmedians of {document['parameters']['runs']} runs, "
            "shaded from the smallest to the largest",
            fontsize=7,
            color=_GREY,
        )

    def __enter__(self) -> tuple[_Picture, Any]:
        return self, self._axes

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            # Without the version of matplotlib, so that the same results are the same file.
            metadata = {"Software": None, SOURCE: self._digest}
            self._figure.savefig(self.file, dpi=110, metadata=metadata)
        self._pyplot.close(self._figure)


def _curve(
    axes: Any,
    values: list[Any],
    points: list[Document],
    key: str,
    label: str,
    color: str,
    *,
    style: str = "-",
) -> None:
    low, middle, high = ([point[key][what] for point in points] for what in _RANGE)
    axes.plot(values, middle, "o" + style, color=color, markersize=4, linewidth=1.3, label=label)
    axes.fill_between(values, low, high, color=color, alpha=0.15, linewidth=0)


_RANGE = ("min", "median", "max")


def _logarithmic(axes: Any) -> None:
    ticker: Any = import_module("matplotlib.ticker")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _over(axes: Any, values: list[int], label: str) -> None:
    """Make the axis logarithmic, with a tick at each value, or at some where they are many."""
    ticks = values[:: 1 + len(values) // 10]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [_short(value) for value in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _short(value: int) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return str(value)


DRAWN: dict[str, Callable[[Document], list[Path]]] = {
    "scale": draw_scale,
    "waiting": draw_waiting,
    "pipeline": draw_pipeline,
}


if __name__ == "__main__":
    main()
