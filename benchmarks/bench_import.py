"""What does `import shmbatch` cost a producer, beyond numpy?

python -m benchmarks.bench_import [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from benchmarks import _options, _report

LABELS = {
    "package": "import shmbatch",
    "handle": "... and shmbatch.connect",
    "connected": "... and what the first connection imports",
    "file": "... and shmbatch.App, shmbatch.batched",
    "everything": "from shmbatch import *",
}
STATEMENTS = {
    "package": "import shmbatch",
    "handle": "import shmbatch; shmbatch.connect",
    "connected": (
        "import shmbatch; shmbatch.connect\n"
        "import msgspec, shmbatch.protocol.linux, shmbatch.protocol.supervision"
    ),
    "file": "import shmbatch; shmbatch.App, shmbatch.batched",
    "everything": "from shmbatch import *",
}
CEILING_MS = 30
# What a producer needs that connects by name, or imports a user's file. The connection itself may
# take longer.
PROMISED = ("package", "handle", "file")


def measure(statement: str) -> Mapping[str, float]:
    """Import in a fresh process that has numpy already; return milliseconds."""
    code = (
        "import time, numpy\n"
        "began = time.perf_counter_ns()\n"
        f"{statement}\n"
        "print(time.perf_counter_ns() - began)"
    )
    # As after an installation, which compiles every file.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return {"ms": int(finished.stdout) / 1e6}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options.parse("import", __doc__, arguments, runs=15, quick_runs=2)
    facts = _report.machine_facts(datetime.now(UTC))
    systems = {name: partial(measure, STATEMENTS[name]) for name in LABELS}
    measure(STATEMENTS["everything"])  # compiled files are written once
    figures = _options.alternate(systems, options.runs)
    spreads = {LABELS[name]: _report.spreads(runs)["ms"] for name, runs in figures.items()}

    print(f"Import beyond numpy, {options.runs} runs: median (min..max) over the runs, in ms")
    print(_report.facts_line(facts), end="\n\n")
    print(_report.table(["statement", "ms"], [[name, str(s)] for name, s in spreads.items()]))
    promised = [
        _report.Ratio(f"{LABELS[name]}, ms", spreads[LABELS[name]], ceiling=CEILING_MS)
        for name in PROMISED
    ]
    print("\n" + _report.promises(promised))
    if options.out is not None:
        document = {
            "benchmark": "import",
            "machine": facts,
            "parameters": {"runs": options.runs},
            "statements": {name: spread.document() for name, spread in spreads.items()},
            "promises": [promise.document() for promise in promised],
        }
        _report.write_json(options.out, document)
        print(f"\nwritten to {options.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
