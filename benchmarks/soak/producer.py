"""One producer of the soak: how it lives, and how it ends if nobody kills it."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.soak import awaiting, stepping
from benchmarks.soak.calls import Lane
from benchmarks.soak.ledger import LANES, Control, Ledger

STYLES = ("thread", "threads", "asyncio", "both")
ENDINGS = ("returns", "leaves calls", "_exit")

_PAUSE_S = 0.02  # at most, between two steps: 64 producers would have CPUs for themselves


@dataclass(frozen=True, slots=True)
class Life:
    """What the director has decided about one producer."""

    number: int
    seed: int
    style: str
    ending: str
    seconds: float

    @staticmethod
    def drawn(number: int, chance: random.Random) -> Life:
        """Most live for a few seconds, some for minutes."""
        seconds = chance.choice((0.2, 1.0, 1.0, 3.0, 10.0, 10.0, 60.0, 300.0))
        return Life(
            number=number,
            seed=chance.getrandbits(32),
            style=chance.choice(STYLES),
            ending=chance.choice(ENDINGS),
            seconds=chance.uniform(0.5, 1.5) * seconds,
        )


def live(folder: Path, life: Life) -> None:
    """Be that producer, in a process that has no connection yet. Returns as it ends, or not."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the director asks who hangs
    ledger = Ledger(folder, life.number)
    seeds = random.Random(life.seed)
    lanes = [Lane(ledger, lane, seeds.getrandbits(32)) for lane in range(LANES)]
    until = time.monotonic() + life.seconds

    def goes_on() -> bool:
        return time.monotonic() < until and not ledger.told(Control.OVER)

    runs: list[Callable[[], None]] = []
    if life.style in ("thread", "threads", "both"):
        count = {"thread": 1, "threads": 3, "both": 2}[life.style]
        runs += [partial(_step, lanes.pop(), goes_on) for _ in range(count)]
    if life.style in ("asyncio", "both"):
        tasks, lanes = lanes, []
        runs.append(lambda: asyncio.run(_await(tasks, goes_on)))
    threads = [threading.Thread(target=run) for run in runs[1:]]
    for thread in threads:
        thread.start()
    runs[0]()
    for thread in threads:
        thread.join()
    if life.ending == "_exit":
        os._exit(0)  # nobody is told
    if life.ending == "leaves calls":
        _leave(Lane(ledger, 0, life.seed))


def _step(lane: Lane, goes_on: Callable[[], bool]) -> None:
    lane.begins()
    while goes_on():
        lane.steps()
        lane.random.choice(stepping.STEPS)(lane)
        lane.rests()
        time.sleep(lane.random.uniform(0, _PAUSE_S))
    lane.ends()


async def _await(lanes: list[Lane], goes_on: Callable[[], bool]) -> None:
    async def one(lane: Lane) -> None:
        lane.begins()
        while goes_on():
            lane.steps()
            await lane.random.choice(awaiting.STEPS)(lane)
            lane.rests()
            await asyncio.sleep(lane.random.uniform(0, _PAUSE_S))
        lane.ends()

    await asyncio.gather(*map(one, lanes))


def _leave(lane: Lane) -> None:
    """End the interpreter with calls in flight, and a thread that waits for one."""
    function = lane.function("slow")
    pending = []
    for _ in range(5):
        attempt = lane.attempt("slow")
        lane.dropped(attempt)
        pending.append(function.spawn(lane.value(attempt)))
    threading.Thread(target=pending[0].get, daemon=True).start()
    _leave.pending = pending  # type: ignore[attr-defined] # for as long as the interpreter lives
