"""Is what comes back from the GPU right?

::

    fresh random inputs --> network in 4 dtypes, on the device --> results
             |                                                       | every one compared
             +--> the same matrices, in float64 on the CPU ----------+

An error is ``|result - right| / |right|`` of one input; the worst of a round counts. The other
parts compare every result as well, but bit by bit, of functions that are exact.
"""

from __future__ import annotations

import torch

import shmbatch
from benchmarks import _report
from benchmarks.gpu import functions
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import standing

# Of a product of 256 terms, six times over; a wrong row has an error of about 1.
CEILINGS = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
SERVED = {f"network_{dtype}": dtype for dtype in CEILINGS} | {
    "eager": "float32",
    "graphs": "float32",
}


def measure(setting: Setting) -> Part:
    setting.calibrate()
    part, rows = Part(), []
    count = 33 if setting.rehearsal else 500
    seed = torch.seed()
    part.figures = {"seed": seed, "inputs_a_round": count, "worst_errors": {}}
    with standing(setting) as stand:
        for name, dtype in SERVED.items():
            worst = [
                _worst_error(getattr(stand.functions, name), dtype, count)
                for _ in range(setting.runs)
            ]
            part.promise(
                f"{name}: worst error / {CEILINGS[dtype]:g}",
                [each / CEILINGS[dtype] for each in worst],
                floor=None,
                ceiling=1.0,
            )
            part.figures["worst_errors"][name] = spread(worst).document()
            rows.append([name, str(setting.runs * count), f"{max(worst):.1e}"])
    part.tables.append(_report.table(["answers", "inputs", "worst error"], rows))
    return part


def _worst_error(function: shmbatch.Function, dtype: str, count: int) -> float:
    layers = [each.double() for each in functions.weights(getattr(torch, dtype), "cpu")]
    inputs = torch.randn(count, functions.LAYERS[0]).to(getattr(torch, dtype))
    results = torch.stack(list(function.map(inputs.unbind())))
    right = functions.network(inputs.double(), layers)
    errors = (results.double() - right).norm(dim=1) / right.norm(dim=1)
    worst = float(errors.max())
    return worst if worst == worst else float("inf")  # NaN is as wrong as can be
