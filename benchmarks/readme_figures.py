"""Which figures stand in the README: one sentence, written from the results that are committed.

    python -m benchmarks.readme_figures

Replaces what stands between the two marks; the tests hold the README against it.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from benchmarks._report import HERE

README = HERE.parent / "README.md"
RESULTS = HERE / "results"
WIDTH = 120  # of the README's lines
BEGIN = "<!-- figures: written by `python -m benchmarks.readme_figures` -->\n"
END = "<!-- end of figures -->\n"


def fragment(results: Path = RESULTS) -> str:
    """Return what belongs between the marks."""
    try:
        roundtrip = json.loads((results / "roundtrip.json").read_text())
        throughput = json.loads((results / "throughput.json").read_text())
    except FileNotFoundError:
        return "Not measured yet; `make bench` writes the figures here.\n"
    lone = roundtrip["systems"]["shmbatch, auto"]["p50_us"]["median"]
    pipe = _ratio(roundtrip, "multiprocessing Pipe / shmbatch, auto")
    rate = throughput["works"]["tiny"]["shmbatch"]["calls_per_s"]["median"]
    tiny = _ratio(throughput, "tiny, calls/s: shmbatch / UNIX sockets, coalesced")
    image = _ratio(throughput, "image, calls/s: shmbatch / UNIX sockets, coalesced")
    machine = roundtrip["machine"]
    sentence = (
        f"A lone 16-byte call and its answer take {lone:.1f} µs (p50), {_times(pipe)} less "
        f"than over a `multiprocessing.Pipe`; four producers with eight calls each in flight "
        f"get {round(rate, -3):,.0f} answers a second, {_times(tiny)} what the best "
        f"hand-written batching loop over UNIX sockets gives them ({_times(image)} for images of "
        f"602 KB) ({machine['cpu']}, {machine['cpus_usable']} CPUs, {machine['kernel']}, "
        f"{machine['python']}, {machine['date'][:10]}; "
        f"[method and all figures](benchmarks/README.md))."
    )
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False) + "\n"


def replaced(readme: str, text: str) -> str:
    """Return the README with *text* between the marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md has no place for figures: {BEGIN.strip()} ... {END.strip()}")
    return before + begin + text + end + after


def main() -> None:
    README.write_text(replaced(README.read_text(), fragment()))


def _ratio(document: dict[str, Any], what: str) -> float:
    (found,) = (ratio["median"] for ratio in document["ratios"] if ratio["what"] == what)
    return float(found)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


if __name__ == "__main__":
    main()
