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
    flags: Mapping[str, str] | None = None,
    choices: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
) -> argparse.Namespace:
    """Read the command line; `out` is None where no JSON is wanted.

    Args:
        systems: What --systems may choose from; without any there is no such option.
        runs: How often each system is measured unless --runs says otherwise.
        quick_runs: The same with --quick.
        flags: Switches of this benchmark alone, and what each says of itself.
        choices: Further options like --systems: what there is, and what --quick takes of it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.bench_{name}", description=(description or "").split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: checks answers, figures mean nothing"
    )
    for flag, meaning in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning.replace("%", "%%"))
    parser.add_argument("--runs", type=int, help=f"measure so many times (default {runs})")
    choices = ({"systems": (systems, systems)} if systems else {}) | dict(choices or {})
    for choice, (known, _) in choices.items():
        parser.add_argument(f"--{choice}", help=f"only these (default {','.join(known)})")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"the JSON file (default results/{name}.json, none if --quick or not all systems)",
    )
    options = parser.parse_args(arguments)
    everything = True
    for choice, (known, quick) in choices.items():
        given = getattr(options, choice)
        chosen = given.split(",") if given else quick if options.quick else known
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown {choice} {', '.join(unknown)}; known are {', '.join(known)}")
        setattr(options, choice, [each for each in known if each in chosen])
        everything = everything and len(getattr(options, choice)) == len(known)
    if options.runs is None:
        options.runs = quick_runs if options.quick else runs
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}, needs at least 1")
    if options.out is None and everything and not options.quick:
        options.out = HERE / "results" / f"{name}.json"
    return options


def alternate(systems: Mapping[str, Callable[[], Figure]], runs: int) -> dict[str, list[Figure]]:
    """Measure every system once per run, every other run backwards.

    Drift of the machine then hits all systems alike, and those that are compared follow each
    other, in whichever order, if they stand beside each other.
    """
    figures: dict[str, list[Figure]] = {name: [] for name in systems}
    names = list(systems)
    for run in range(runs):
        for name in reversed(names) if run % 2 else names:
            print(f"run {run + 1} of {runs}: {name}", file=sys.stderr, flush=True)
            figures[name].append(systems[name]())
    return figures
