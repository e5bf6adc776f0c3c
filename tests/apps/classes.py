"""Classes for tests: objects that tell what happened to them, and wait at the gate."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import shmbatch
from tests import processes

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.cls()
class Policy:
    """Adds its seed to what it is given."""

    seed: int = shmbatch.parameter(default=0)
    name: str = shmbatch.parameter(default="")

    def __init__(self) -> None:
        self.history = [f"made with {self.seed}"]

    @shmbatch.enter()
    def load(self) -> None:
        self.history.append("load")

    @shmbatch.enter()
    async def warm(self) -> None:
        await asyncio.sleep(0)
        self.history.append("warm")

    @shmbatch.batched(max_batch_size=8, wait_ms=1)
    def act(self, xs: list[int]) -> list[int]:
        return [x + self.seed for x in xs]

    @shmbatch.batched(max_batch_size=8, wait_ms=1)
    async def act_later(self, xs: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return self.act(xs)

    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    async def gated(self, xs: list[int]) -> list[int]:
        """Suspends while the gate is closed; the executor's loop goes on."""
        self.history.append(f"gated {xs}")
        await asyncio.to_thread(processes.pass_through, xs)
        self.history.append(f"ungated {xs}")
        return xs

    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def noted(self, xs: list[int]) -> list[int]:
        self.history.append(f"noted {xs}")
        return xs

    @shmbatch.batched(max_batch_size=4, wait_ms=0)
    def where(self, xs: list[int]) -> list[tuple[int, int, list[str]]]:
        return [self.told()] * len(xs)

    @shmbatch.method()
    def told(self) -> tuple[int, int, list[str]]:
        return os.getpid(), id(self), self.history

    @shmbatch.method()
    def refresh(self, by: int, name: str = "refreshed", times: int = 1) -> str:
        self.history.append(f"refresh {by} {name} {times}")
        return name * times

    @shmbatch.method()
    def fails(self, number: int) -> None:
        raise KeyError(number)

    @shmbatch.method()
    def asks(self, seed: int) -> list[int]:
        """Calls another instance, which has an executor of its own, and a function of the app."""
        of_other: int = Policy(seed=seed).act.remote(1)  # type: ignore[call-arg, attr-defined]
        of_other_pid: int = Policy(seed=seed).told.remote()[0]  # type: ignore[call-arg, attr-defined]
        return [of_other, of_other_pid]

    @shmbatch.exit()
    def close(self) -> None:
        self.history.append("close")
        if path := os.environ.get("CLASSES_EXIT"):
            Path(path).write_text("\n".join(self.history))
        if os.environ.get("CLASSES_EXIT_GATED"):
            processes.pass_through(["exit"])


@app.cls()
class Needing:
    """Has no object before somebody says with which seed."""

    seed: int = shmbatch.parameter()

    @shmbatch.batched(max_batch_size=4, wait_ms=1)
    def plus(self, xs: list[int]) -> list[int]:
        return [self.seed + x for x in xs]
