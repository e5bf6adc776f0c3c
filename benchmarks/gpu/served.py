"""How much of a function's own speed is left when it is served?

::

    producers x 16 in flight --> executor: batches of 32 --> f --> every result to its producer
                         a plain loop: ready-made batches --> f        (on the device)
               pinned batches --H2D--> f --D2H--> wait for it          (on the host)

Functions that take from 0.1 to 20 ms a batch, asleep on the device; one that multiplies matrices
for about 1 ms; and one of 1 ms on rows of 602 KB, 16 in a batch, of which some 10 GB a second
have to get into slots and from there to the device. The plain loops call the same function.

Served is divided by the loop over batches that are on the device already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import _report
from benchmarks.gpu import functions
from benchmarks.gpu._setting import Part, Setting, spread
from benchmarks.gpu._stand import Load, standing

FLOORS_FROM_US = {1000: 0.95, 300: 0.90, 0: None}


@dataclass(frozen=True)
class Served:
    name: str
    us: int
    shape: tuple[int, ...] = (1024,)
    rows: int = 32
    in_flight: int = 16

    @property
    def floor(self) -> float | None:
        return next(floor for least, floor in FLOORS_FROM_US.items() if self.us >= least)


SERVED = (
    *(Served(f"sleep_{us}", us) for us in functions.SLEEPS_US),
    Served("multiply_1000", 1000),
    Served("image_1000", 1000, (3, 224, 224), 16, 8),
)


def measure(setting: Setting) -> Part:
    part, rows = Part(), []
    setting.calibrate()
    with standing(setting) as stand:
        for served in setting.few(SERVED):
            # Calls end a batch at a time, so a run of few batches would be a coarse measure.
            at_least_s = 0 if setting.rehearsal else 60e-6 * served.us
            longer = replace(setting, window_s=max(setting.window_s, at_least_s))
            loops = _Loops(longer, served)
            half = math.ceil(setting.runs / 2)
            ready = [loops.ready() for _ in range(half)]
            pinned = [loops.pinned() for _ in range(half)]
            work = Load(served.name, served.shape, served.in_flight)
            rates = stand.load(work, longer).rates(setting.runs)
            ready += [loops.ready() for _ in range(setting.runs - half)]
            pinned += [loops.pinned() for _ in range(setting.runs - half)]
            statistics = _batch_sizes(stand.functions.app.name, served.name)
            quotient = _report.ratio(
                f"{served.name}: served / loop on ready-made batches",
                *(rates, ready),
                floor=served.floor,
            )
            part.promises.append(quotient)
            found = {"served": rates, "ready": ready, "pinned": pinned}
            part.figures[served.name] = {
                f"{name}_calls_per_s": spread(each).document() for name, each in found.items()
            } | {"mean_batch_size": statistics}
            rows.append(
                [served.name, *(str(spread(each)) for each in found.values()), f"{statistics:.1f}"]
            )
    header = ["calls/s", "served", "loop, on the device", "loop, pinned", "mean batch"]
    part.tables.append(_report.table(header, rows))
    return part


class _Loops:
    """The same function without any executor."""

    def __init__(self, setting: Setting, served: Served) -> None:
        self._setting = setting
        self._served = served
        self._function = getattr(functions, served.name).local
        shape = (served.rows, *served.shape)
        self._hosts = [setting.pinned(torch.rand(shape)) for _ in range(3)]
        self._batches = [host.to(setting.device) for host in self._hosts]
        self._result = setting.pinned(torch.empty(served.rows, functions.RESULTS))
        for _ in range(3):
            self._function(self._batches[0])
        # About a window, however long the function really takes.
        once = setting.seconds(lambda: [self._function(self._batches[0]) for _ in range(3)]) / 3
        self._count = max(3, int(setting.window_s / once))

    def ready(self) -> float:
        """Return the calls per second where batches are on the device, and results stay there."""

        def loop() -> None:
            for number in range(self._count):
                self._function(self._batches[number % 3])

        return self._rate(loop)

    def pinned(self) -> float:
        """Return the calls per second where batches come from the host and results go back."""

        def loop() -> None:
            for number in range(self._count):
                batch = self._hosts[number % 3].to(self._setting.device, non_blocking=True)
                self._result.copy_(self._function(batch), non_blocking=True)
                self._setting.synchronize()
                self._check(number, self._result)

        return self._rate(loop)

    def _check(self, number: int, result: Any) -> None:
        right = self._hosts[number % 3].reshape(self._served.rows, -1)[:, : functions.RESULTS]
        if number < 3:
            torch.testing.assert_close(result, right * 2 + 1, rtol=0, atol=0)

    def _rate(self, loop: Any) -> float:
        return float(self._served.rows * self._count / self._setting.seconds(loop))


def _batch_sizes(app: str, function: str) -> float:
    import shmbatch

    counted = shmbatch.statistics(app)["functions"][function]
    return float(counted["mean_batch_size"] or 0)
