"""What do CUDA graphs save a small network?

::

    one producer, 1, 8 or 32 in flight --> eager:  about twelve kernels, launched one by one
                                      \\-> graphs: one replay; both pad to 1, 8 or 32

An MLP 784-256-256-256-256-256-10 in float32, `wait_ms=0`. The answers of both are compared with
the CPU's in `answers`, and in each run here with each other's.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import _report
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Load, Stand, standing

IN_FLIGHT = (1, 8, 32)
FLOOR = 1.0


def measure(setting: Setting) -> Part:
    part, rows = Part(), []
    setting.calibrate()
    with standing(setting) as stand:
        for in_flight in setting.few(IN_FLIGHT):
            rates: dict[str, list[float]] = {"eager": [], "graphs": []}
            for _ in range(setting.runs):
                _compare(stand)
                for name, found in rates.items():
                    work = Load(name, (784,), in_flight, compared=False)
                    found += stand.load(work, setting, producers=1, windows=1).rates(1)
            quotient = _report.ratio(
                f"graphs / eager, calls/s with {in_flight} in flight",
                *(rates["graphs"], rates["eager"]),
                floor=FLOOR,
            )
            part.promises.append(quotient)
            part.figures[str(in_flight)] = {
                name: spread(each).document() for name, each in rates.items()
            }
            rows.append([str(in_flight), *(str(spread(each)) for each in rates.values())])
    part.tables.append(_report.table(["in flight", "eager calls/s", "graphs calls/s"], rows))
    return part


def _compare(stand: Stand) -> None:
    inputs = np.random.default_rng().random((33, 784), np.float32)
    eager, graphs = (
        torch.stack(list(function.map(inputs)))
        for function in (stand.functions.eager, stand.functions.graphs)
    )
    torch.testing.assert_close(graphs, eager)
