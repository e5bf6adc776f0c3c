"""What committed results say, as it stands in documents: a sentence, tables, pictures.

Nothing here is measured or invented: what has no results says so.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import _report, bench_rivals
from benchmarks._report import HERE

RESULTS = HERE / "results"
PLOTS = HERE.parent / "docs" / "explanation" / "plots"
WIDTH = 120  # of a line of text

_MISSING = "Not measured yet; `make bench` writes the figures here.\n"
_CLOSED = {"1x1": "1 x 1", "4x1": "4 x 1", "4x8": "4 x 8", "16x1": "16 x 1", "64x1": "64 x 1"}
_OPEN = {"poisson-common": "p99, same rate", "poisson-own": "p99, own rate"}
_PROMISING = (
    *("roundtrip", "throughput", "rivals", "lockstep", "pipeline", "waiting", "scale"),
    *("overload", "death", "import"),
)
_REASON = 320  # characters of an error; all of it is in the results
_MANY = ("free", 16)  # situation and producers of which the page says more
_BETWEEN_US = (100, 300, 1000, 3000, 10_000)
_BETWEEN = [
    *("the function takes", "sleeping: between batches, µs", "Python is slower, times"),
    "computing: four wake-ups, µs",
]
_TAILS = {
    "calls_per_s": "calls/s",
    "p50_us": "p50, µs",
    "mean_us": "mean",
    "p99.9_us": "p99.9",
    "max_us": "longest",
    "jain": "Jain's index",
}

Document: TypeAlias = dict[str, Any]


def sentence(results: Path = RESULTS) -> str:
    """Return what the README says of speed."""
    roundtrip, throughput = _results(results, "roundtrip"), _results(results, "throughput")
    if roundtrip is None or throughput is None:
        return _MISSING
    lone = roundtrip["systems"]["shmbatch, auto"]["p50_us"]["median"]
    pipe = _ratio(roundtrip, "multiprocessing Pipe / shmbatch, auto")
    rate = throughput["works"]["tiny"]["shmbatch"]["calls_per_s"]["median"]
    tiny = _ratio(throughput, "tiny, calls/s: shmbatch / UNIX sockets, coalesced")
    image = _ratio(throughput, "image, calls/s: shmbatch / UNIX sockets, coalesced")
    said = (
        f"A lone 16-byte call and its answer take {lone:.1f} µs (p50), {_times(pipe)} less "
        f"than over a `multiprocessing.Pipe`; four producers with eight calls each in flight "
        f"get {round(rate, -3):,.0f} answers a second, {_times(tiny)} what the best "
        f"hand-written batching loop over UNIX sockets gives them ({_times(image)} for images of "
        f"602 KB) ({_machine(roundtrip)}, {_dates(roundtrip, throughput)}; "
        f"[method and all figures](docs/explanation/benchmarks.md))."
    )
    return textwrap.fill(said, WIDTH, break_on_hyphens=False) + "\n"


def promises(results: Path = RESULTS) -> str:
    """Return a table of all that is promised, and what was measured of it."""
    rows, measured = [], []
    for name in _PROMISING:
        document = _results(results, name)
        if document is None:
            rows.append([f"`{name}`", "all", "not measured", "", ""])
            continue
        machine = document["machine"]
        measured.append(f"{name} {machine['date'][:10]} at {machine.get('commit')}")
        found = {ratio["what"]: ratio for ratio in _promised(document)}
        for ratio in found.values():
            spread = str(_report.Spread(tuple(ratio["runs"])))
            rows.append([f"`{name}`", ratio["what"], spread, _bound(ratio), _verdict(ratio)])
        for *which, _, floor in bench_rivals.PROMISES if name == "rivals" else ():
            if (what := bench_rivals.promised(*which)) not in found:
                rows.append([f"`{name}`", what, "not measured", f"≥ {floor}", ""])
    table = _table(["bench_", "what", "median (range)", "promised", "kept"], rows)
    return f"{table}\nMeasured: {', '.join(measured)}.\n"


def rivals(work: str, results: Path = RESULTS) -> str:
    """Return what all systems made of a work under all loads, the fastest first."""
    document = _results(results, "rivals")
    cells = {
        cell["load"]: cell["systems"]
        for cell in (document["cells"] if document is not None else ())
        if cell["work"] == work
    }
    if document is None or not cells:
        return _MISSING
    loads = [load for load in (*_CLOSED, *_OPEN) if load in cells]
    main = cells.get("4x8") or cells[loads[0]]
    names = sorted(
        (name for name in document["labels"] if any(name in cells[load] for load in loads)),
        key=lambda name: -main.get(name, {}).get("calls_per_s", {"median": 0})["median"],
    )
    rows, failed = [], dict[str, list[str]]()
    for name in names:
        row = [_label(document, name, cells)]
        for load in loads:
            figures = cells[load].get(name)
            if figures is not None and "error" in figures:
                failed.setdefault(figures["error"], []).append(
                    f"{document['labels'][name]}, {load}"
                )
            row.append(_cell(figures, load))
        rows.append(row)
    heads = [(_CLOSED | _OPEN)[load] for load in loads]
    measured = [cell for cell in document["cells"] if cell["work"] == work]
    dates = sorted(cell["date"][:10] for cell in measured)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    note = f"{_machine(document)}; measured {when}, medians of {_runs(measured)} runs."
    reasons = [
        f"- {', '.join(which)}: {textwrap.shorten(error, _REASON, placeholder=' ...')}"
        for error, which in failed.items()
    ]
    return (
        "\n".join([_table(["", *heads], rows), note, *([""] if reasons else []), *reasons]) + "\n"
    )


def instructions(results: Path = RESULTS) -> str:
    """Return how many instructions calls and batches take."""
    document = _results(results, "instructions")
    if document is None:
        return _MISSING
    counts: dict[str, dict[str, str]] = {}
    for name, figures in document["instructions"].items():
        payload, _, what = name.partition(": ")
        counts.setdefault(what, {})[payload] = _report.number(figures["least"])
    payloads = {"int": "an `int`", "small": "16 bytes", "large": "64 KB"}
    rows = [[what, *(of.get(payload, "") for payload in payloads)] for what, of in counts.items()]
    return _table(["instructions", *payloads.values()], rows)


def tails(results: Path = RESULTS) -> str:
    """Return what many producers wait for lone calls, by how everybody waits."""
    document = _results(results, "waiting")
    rows = [
        [f"`{row['wait']}`", *(_report.number(row[key]["median"]) for key in _TAILS)]
        for row in (document["rows"] if document is not None else ())
        if (row["situation"], row["producers"]) == _MANY
    ]
    return _table(["", *_TAILS.values()], rows)


def between(results: Path = RESULTS) -> str:
    """Return what passes between two batches, and what the machine does to that."""
    document = _results(results, "pipeline")
    systems = document["systems"] if document is not None else {}
    rows = []
    for us in _BETWEEN_US:
        names = [f"{kind}_{us}" for kind in ("sleep", "cold", "waking")]
        if document is None or not systems.keys() >= set(names):
            continue
        sleep, cold, waking = (systems[name] for name in names)
        size = document["parameters"]["max_batch_size"]
        runs = zip(sleep["served_per_s"]["runs"], sleep["batch_us"]["runs"], strict=True)
        between_us = tuple(size * 1e6 / rate - alone_us for rate, alone_us in runs)
        spreads = (between_us, cold["cold_by_hot"]["runs"], waking["waking_us"]["runs"])
        cells = (str(_report.Spread(tuple(values))) for values in spreads)
        rows.append([f"{us / 1000:g} ms", *cells])
    return _table(_BETWEEN, rows)


def pictures(prefix: str, plots: Path = PLOTS) -> str:
    """Return the plots whose names begin so."""
    found = sorted(plots.glob(f"{prefix}*.png"))
    if not found:
        return _MISSING
    return "".join(f"![{file.stem.replace('-', ', ')}](plots/{file.name})\n\n" for file in found)


def _results(results: Path, name: str) -> Document | None:
    try:
        found: Document = json.loads((results / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return found


def _promised(document: Document) -> Iterable[Document]:
    ratios = document.get("ratios") or document.get("promises") or ()
    return (ratio for ratio in ratios if ratio["holds"] is not None)


def _bound(ratio: Document) -> str:
    if ratio["floor"] is not None:
        return f"≥ {_report.number(ratio['floor'])}"
    return f"≤ {_report.number(ratio['ceiling'])}"


def _verdict(ratio: Document) -> str:
    """Whether the median keeps a promise, and whether every run does the same."""
    floor, ceiling = ratio["floor"], ratio["ceiling"]
    kept = [run >= floor if floor is not None else run <= ceiling for run in ratio["runs"]]
    if ratio["holds"]:
        return "yes" if all(kept) else "mostly"
    return "**mostly not**" if any(kept) else "**no**"


def _ratio(document: Document, what: str) -> float:
    (found,) = (ratio["median"] for ratio in document["ratios"] if ratio["what"] == what)
    return float(found)


def _label(document: Document, name: str, cells: dict[str, Any]) -> str:
    versions = (system.get(name, {}).get("version", "") for system in cells.values())
    version = next(filter(None, versions), "")
    label = document["labels"][name]
    return f"**{label}**" if name.startswith("shmbatch") else f"{label} {version}".strip()


def _cell(figures: Document | None, load: str) -> str:
    if figures is None:
        return ""
    if "error" in figures:
        return "failed"
    if load in _OPEN:
        p99 = f"{_report.number(figures['p99_us']['median'])} µs"
        return (
            f"{p99} at {_report.number(figures['rate_per_s'])}/s" if load == "poisson-own" else p99
        )
    return _report.number(figures["calls_per_s"]["median"])


def _runs(cells: Iterable[Document]) -> str:
    systems = (each for cell in cells for each in cell["systems"].values() if "error" not in each)
    return " or ".join(map(str, sorted({len(each["calls_per_s"]["runs"]) for each in systems})))


def _machine(document: Document) -> str:
    machine = document["machine"]
    return (
        f"{machine['cpu']}, {machine['cpus_usable']} CPUs, {machine['kernel']}, "
        f"{machine['python']}"
    )


def _dates(*documents: Document) -> str:
    return " and ".join(sorted({each["machine"]["date"][:10] for each in documents}))


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return _MISSING
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
