"""Classes that tell what became of their objects."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import shmbatch
from tests import processes

app = shmbatch.App()


@app.cls()
class Model:
    """Scales numbers by a factor that can be changed; tells its process and its history."""

    factor: int = shmbatch.parameter(default=2)

    @shmbatch.enter()
    def load(self) -> None:
        self.history = ["load"]

    @shmbatch.enter()
    async def warm(self) -> None:
        self.history.append("warm")

    @shmbatch.batched(max_batch_size=4, wait_ms=1)
    def scale(self, xs: list[int]) -> list[int]:
        return [self.factor * x for x in xs]

    @shmbatch.batched(max_batch_size=2, wait_ms=600_000)
    async def pair(self, xs: list[int], ys: list[int]) -> list[list[int]]:
        return [[self.factor, *xs, *ys]] * len(xs)

    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    async def gated(self, xs: list[int]) -> list[list[int]]:
        """Awaits the gate, so that other functions could be served meanwhile."""
        await asyncio.to_thread(processes.pass_through, xs)
        return [[self.factor, *xs]] * len(xs)

    @shmbatch.method()
    def refresh(self, factor: int, by: int = 0) -> int:
        """Takes the arguments of one call, with defaults, as no batched method may."""
        self.factor = factor + by
        return self.factor

    @shmbatch.method()
    def told(self) -> tuple[int, list[str]]:
        return os.getpid(), self.history

    @shmbatch.exit()
    def close(self) -> None:
        if path := os.environ.get("CONFORMING_EXIT"):
            Path(path).write_text(f"{self.history} exit")

    def helper(self) -> None:
        """Is not served."""


@app.cls()
class Needing:
    """Has a parameter without a default, so that there is no object of it before somebody asks."""

    seed: int = shmbatch.parameter()

    @shmbatch.batched(max_batch_size=4, wait_ms=1)
    def plus(self, xs: list[int]) -> list[list[int]]:
        return [[os.getpid(), self.seed + x] for x in xs]
