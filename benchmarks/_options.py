"""What every benchmark takes on its command line, and how its runs are laid out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks._report import HERE

Figure = TypeVar("Figure")


def parse(
    name: str,
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    systems: Sequence[str] = (),
    runs: int = 5,
    quick_runs: int = 1,
) -> argparse.Namespace:
    """Read the command line; `out` is None where no JSON is wanted.

    Args:
        systems: What --systems may choose from; without any there is no such option.
        runs: How often each system is measured unless --runs says otherwise.
        quick_runs: The same with --quick.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.bench_{name}", description=(description or "").split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: checks answers, figures mean nothing"
    )
    parser.add_argument("--runs", type=int, help=f"measure so many times (default {runs})")
    if systems:
        parser.add_argument(
            "--systems", default=",".join(systems), help="only these (default %(default)s)"
        )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"the JSON file (default results/{name}.json, none if --quick or not all systems)",
    )
    options = parser.parse_args(arguments)
    if systems:
        chosen = options.systems.split(",")
        options.systems = [system for system in systems if system in chosen]
        if unknown := set(chosen) - set(systems):
            parser.error(f"unknown systems {', '.join(unknown)}; known are {', '.join(systems)}")
    if options.runs is None:
        options.runs = quick_runs if options.quick else runs
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}, needs at least 1")
    everything = not systems or len(options.systems) == len(systems)
    if options.out is None and everything and not options.quick:
        options.out = HERE / "results" / f"{name}.json"
    return options


def alternate(systems: Mapping[str, Callable[[], Figure]], runs: int) -> dict[str, list[Figure]]:
    """Measure every system once per run, each run beginning with another one.

    Drift of the machine then hits all systems alike, and none is always the first.
    """
    figures: dict[str, list[Figure]] = {name: [] for name in systems}
    names = list(systems)
    for run in range(runs):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            print(f"run {run + 1} of {runs}: {name}", file=sys.stderr, flush=True)
            figures[name].append(systems[name]())
    return figures
