"""How one soak is laid out: warm-up, both kinds killed, then only producers; and its verdict."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks.soak import producer, watching
from benchmarks.soak.director import HANG_S, PRODUCERS, Born, Director
from benchmarks.soak.ledger import VIOLATIONS, Ledger
from shmbatch.protocol.transport import TRANSPORTS

MIB = 1 << 20

# What may come on top once everything was used: an arena of Python's, and the allocator's like.
GROWTH_MAX = 4 * MIB

# Shares of the time. Executors die in the first two; the last two have one executor.
_STORM_BEGINS, _STORM, _WARM_UP, _WATCHED = 0.1, 0.4, 0.15, 0.35


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, report, and return the exit status; also that of each producer that is forked."""
    options = _options(arguments)
    director_pid = os.getpid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nobody is left
    folder = Path(tempfile.mkdtemp(prefix="shmbatch-", dir="/tmp"))
    os.environ["SOAK_FOLDER"] = str(folder)
    os.environ["SHMBATCH_DIR"] = str(folder / "names")
    Ledger.create(folder)
    director = Director(folder, folder / "names", options.seed, options.transport)
    try:
        document = _soak(director, options)
    except Born as born:
        life = born.life
    except BaseException as error:
        if os.getpid() == director_pid:
            director.kill_everything()
            if isinstance(error, KeyboardInterrupt):
                shutil.rmtree(folder)
            else:
                print(f"logs and ledger are kept in {folder}", file=sys.stderr)
        raise
    if os.getpid() != director_pid:
        producer.live(folder, life)
        return 0
    director.kill_everything()
    print(_readable(document))
    if options.out is not None:
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out}", file=sys.stderr)
    if document["violations"]:
        print(f"\nlogs and ledger are kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Run producers and executors under every harm at once, and check the books.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="default random")
    parser.add_argument("--transport", choices=TRANSPORTS, default=TRANSPORTS[0])
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file (default results/soak.json, of another transport than linux "
        "results/soak-NAME.json; none if shorter than 30 minutes)",
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}, needs more than 0")
    if options.out is None and options.minutes >= 30:
        suffix = "" if options.transport == TRANSPORTS[0] else f"-{options.transport}"
        options.out = _report.HERE / "results" / f"soak{suffix}.json"
    return options


def _soak(director: Director, options: argparse.Namespace) -> dict[str, Any]:
    facts = _report.machine_facts(datetime.now(UTC))
    seconds = options.minutes * 60
    print(f"soaking for {options.minutes:g} minutes, seed {options.seed}", file=sys.stderr)
    begun = time.monotonic()
    director.executors.start()
    held: dict[str, dict[str, dict[str, int]]] = {}
    for phase, share, executor_lives in (
        ("storm begins", _STORM_BEGINS, False),
        ("storm", _STORM, False),
        ("warm-up", _WARM_UP, True),
        ("watched", _WATCHED, True),
    ):
        print(f"{phase}: {share * seconds:.0f} s", file=sys.stderr, flush=True)
        director.run(share * seconds, executor_lives=executor_lives)
        director.quiesce()
        held[phase] = {
            "supervisor": watching.held(director.executors.supervisor_pid),
            "executor": watching.held(director.executors.pid),
        }
    director.executors.stop(now=bool(director.violations))
    director.violations += _grown(held) + director.left()
    calls, executions = director.books(), director.executions()
    director.violations += [f"{n} calls of `once`: {what}" for what, n in executions.items() if n]
    for column in VIOLATIONS:
        if n := calls[column.name.lower()]:
            director.violations.append(f"{n} calls: {column.name.lower()}")
    director.violations += director.complaints()
    return {
        "benchmark": "soak",
        "machine": facts,
        "parameters": {
            "minutes": options.minutes,
            "seed": options.seed,
            "transport": options.transport,
            "producers": PRODUCERS,
            "hanging_after_s": HANG_S,
            "growth_max_mib": GROWTH_MAX / MIB,
        },
        "took_s": round(time.monotonic() - begun, 1),
        "harm": dict(sorted(director.counts.items())),
        "calls": calls,
        "executions_of_once": executions,
        "held_with_no_producer": held,
        "violations": director.violations,
    }


def _grown(held: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """What is more at the end of a phase than at its beginning."""
    found = []
    for who, before, after in (
        ("supervisor", "storm begins", "watched"),
        ("executor", "warm-up", "watched"),
    ):
        was, now = held[before][who], held[after][who]
        for what, amount in now.items():
            allowed = was[what] + (GROWTH_MAX if what == "anonymous" else 0)
            if amount > allowed:
                found.append(f"{who} has {amount} {what}, after {before} it had {was[what]}")
    return found


def _readable(document: dict[str, Any]) -> str:
    parameters, calls = document["parameters"], document["calls"]
    lines = [
        f"soak of {parameters['minutes']:g} minutes, {parameters['producers']} producers at a "
        f"time, transport {parameters['transport']}, seed {parameters['seed']}",
        _report.facts_line(document["machine"]),
        "",
    ]
    rows = [[what, f"{n:,}"] for what, n in document["harm"].items()]
    lines += [_report.table(["what happened", "times"], rows), ""]
    rows = [[what.replace("_", " "), f"{n:,}"] for what, n in calls.items()]
    lines += [_report.table(["calls", "number"], rows), ""]
    rows = [
        [
            f"{who}, after {phase}",
            f"{each['anonymous'] / MIB:.1f}",
            *(str(each[what]) for what in ("segments", "descriptors", "threads")),
        ]
        for phase, both in document["held_with_no_producer"].items()
        for who, each in both.items()
    ]
    head = ["held", "anonymous, MiB", "segments", "descriptors", "threads"]
    lines += [_report.table(head, rows), ""]
    violations = document["violations"]
    lines += [f"VIOLATION: {each}" for each in violations] or [
        "nothing lost, wrong, hanging or left: submitted = outcomes + lost with killed producers"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
