"""How one rival is measured once, inside its own environment; asked.py is who calls this.

    python -m benchmarks.rivals MODULE OPTIONS PACKAGE WORK PRODUCERS IN_FLIGHT RATE WARMUP_S \\
        MEASURE_S OUT

OPTIONS are a JSON object, keywords of the module's `measure`; RATE is 0 for the closed loop.
Writes the latencies of each producer, int64 nanoseconds, and the PACKAGE's version to OUT, an
.npz file.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module, metadata
from typing import Any

import numpy as np

from benchmarks._load import Load
from benchmarks._works import WORKS


def main(
    module: str,
    options: str,
    package: str,
    work: str,
    producers: str,
    in_flight: str,
    rate_per_s: str,
    warmup_s: str,
    measure_s: str,
    out: str,
) -> None:
    load = Load(int(producers), int(in_flight), float(rate_per_s) or None)
    asked = WORKS[work].alone() if load.is_lone else WORKS[work]
    measure = import_module(module).measure
    latencies = measure(asked, load, float(warmup_s), float(measure_s), **json.loads(options))
    version = metadata.version(package) if package else ""
    arrays: dict[str, Any] = {"version": np.array(version)}
    for number, each in enumerate(latencies):
        arrays[f"producer_{number}"] = np.frombuffer(each, np.int64)
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
