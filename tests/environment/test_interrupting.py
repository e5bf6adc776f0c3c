"""Ctrl-C at any moment: one traceback at most, the user's own; nobody hangs, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

import shmbatch
from tests.processes import wait_until
from tests.programs import PATIENCE_S, environment, processes_of, started, written

# Calls in every way, from threads and in a loop; daemon threads go on until they are torn away.
BUSY = """
    import asyncio
    import threading

    import shmbatch

    app = shmbatch.App("busy")

    @app.function()
    @shmbatch.batched(max_batch_size=8, wait_ms=1)
    def double(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    @app.function()
    @shmbatch.batched(max_batch_size=64, wait_ms=600_000)
    def never(xs: list[int]) -> list[int]:
        return xs

    def calls(times):
        for _ in range(times):
            assert [double.remote(x) for x in range(20)] == [2 * x for x in range(20)]
            assert list(double.map(range(50))) == [2 * x for x in range(50)]
            pending = [double.spawn(x) for x in range(20)]
            dropped = [never.spawn(x) for x in range(3)]
            assert [call.get() for call in pending] == [2 * x for x in range(20)]

    async def awaits():
        xs = range(20)
        assert await asyncio.gather(*map(double.remote.aio, xs)) == [2 * x for x in xs]
        assert [y async for y in double.map.aio(xs)] == [2 * x for x in xs]
        try:
            await asyncio.wait_for(never.remote.aio(1), 0.005)
        except TimeoutError:
            pass

    def quietly(do, *arguments):
        try:
            do(*arguments)
        except shmbatch.errors.ShmbatchError:
            pass  # the executor has ended

    def work():
        for wait in ((calls, 1000), (calls, 1000), (never.remote, 1)):
            threading.Thread(target=quietly, args=wait, daemon=True).start()
        calls(3)
        for _ in range(3):
            asyncio.run(awaits())
        calls(2)
        never.spawn(1)

    @app.local_entrypoint()
    def main():
        work()
"""
ITSELF = """
    if __name__ == "__main__":
        with app.run():
            work()
"""
CONNECTED = """
    import shmbatch
    import busy

    busy.double = shmbatch.connect("busy.double", timeout=10)
    busy.never = shmbatch.connect("busy.never", timeout=10)
    busy.work()
"""


def interrupted(command: list[str], after_s: float) -> tuple[int, str]:
    """Run a program and interrupt its process group, as a terminal does; status and errors."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        try:
            time.sleep(after_s)
            try:
                os.killpg(process.pid, signal.SIGINT)
            except ProcessLookupError:
                pass  # it has ended
            _, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.returncode, errors


def check(status: int, errors: str, file: Path, sockets: Path, serving: bool) -> None:
    """See that it ended as one that was interrupted, and that nobody is left."""
    assert status in (0, 1, -signal.SIGINT, 128 + signal.SIGINT), errors
    own = errors.partition("During handling of the above exception")[2] or errors  # asyncio.run's
    assert own.count("Traceback") <= 1, errors
    assert "gnored" not in errors, errors
    assert "Exception in" not in errors, errors
    if "Traceback" in errors:
        assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    if not serving:
        wait_until(lambda: not processes_of(file), "its executor has ended")
        wait_until(lambda: not list(sockets.iterdir()), "its names are gone")


def explored(kind: str, times: int, seed: int, folder: Path, sockets: Path) -> None:
    file = written(folder, "busy.py", BUSY, ITSELF)
    command = {
        "run": [sys.executable, "-m", "shmbatch", "run", str(file)],
        "app.run": [sys.executable, str(file)],
        "connect": [sys.executable, str(written(folder, "connected.py", CONNECTED))],
    }[kind]
    chance = random.Random(seed)
    serving: AbstractContextManager[object] = nullcontext()
    if kind == "connect":
        serving = started("start", file)
    with serving as executor:
        begun = time.monotonic()
        subprocess.run(command, check=True, env=environment(), timeout=PATIENCE_S)
        takes_s = time.monotonic() - begun
        for _ in range(times):
            status, errors = interrupted(command, chance.uniform(0.1, 1.05 * takes_s))
            check(status, errors, file, sockets, serving=kind == "connect")
        if kind == "connect":
            assert isinstance(executor, subprocess.Popen)
            assert shmbatch.connect("busy.double").remote(2) == 4
            shmbatch.stop("busy")
            assert executor.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("kind", ["run", "app.run", "connect"])
@pytest.mark.parametrize(
    ("times", "seed"),
    [
        pytest.param(3, 1, marks=pytest.mark.slow, id="3"),
        pytest.param(100, 2, marks=[pytest.mark.soak, pytest.mark.timeout(1800)], id="100"),
    ],
)
def test_ctrl_c_at_random_instants(
    kind: str, times: int, seed: int, tmp_path: Path, sockets: Path
) -> None:
    explored(kind, times, seed, tmp_path, sockets)
