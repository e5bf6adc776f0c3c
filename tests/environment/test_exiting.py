"""An interpreter that ends with calls in flight ends at once, in silence, and by no accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shmbatch
from tests.processes import wait_until
from tests.programs import PATIENCE_S, SERVED, ended, environment, line, serving, started, written

# What is pending when the main thread comes to its end; `LINGER` is how long that end takes.
LEAVER = """
import asyncio, atexit, builtins, os, sys, threading, time
atexit.register(time.sleep, float(os.environ["LINGER"]))  # runs after all that are registered now
import shmbatch

double, never = (shmbatch.connect(f"served.{name}", timeout=10) for name in ("double", "never"))

def in_daemon_threads():
    async def waits():
        await asyncio.gather(never.remote.aio(1), call.get.aio())

    call = never.spawn(1)
    for wait in (call.get, lambda: never.remote(1), lambda: asyncio.run(waits())):
        threading.Thread(target=wait, daemon=True).start()
    while shmbatch.statistics("served")["functions"]["never"]["calls_waiting"] < 3:
        time.sleep(0.001)

def in_a_map():
    builtins.results = double.map(range(100))
    next(builtins.results)

def kept_to_the_end():
    builtins.kept = [double.spawn(1), never.spawn(1), double, never]

def in_a_cycle():
    class Node: pass
    node = Node()
    node.itself, node.calls = node, [double.spawn(1), never.spawn(1)]

def in_a_loop():
    async def leaves():
        pending = [await never.spawn.aio(1)]
        try:
            await asyncio.wait_for(never.remote.aio(1), 0.01)
        except TimeoutError:
            builtins.awaited = pending
    asyncio.run(leaves())

for how in sys.argv[1:]:
    globals()[how]()
"""
WAYS = ("in_daemon_threads", "in_a_map", "kept_to_the_end", "in_a_cycle", "in_a_loop")


def left(*ways: str, linger: float, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a producer that leaves calls behind; its status, and all that it wrote."""
    ended = subprocess.run(
        [sys.executable, *options, "-c", LEAVER, *ways],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(LINGER=str(linger)),
        timeout=PATIENCE_S,
    )
    return ended.returncode, ended.stdout


def nobody_is_attached() -> None:
    wait_until(
        lambda: shmbatch.statistics("served")["admission"]["producers"] == 0,
        "the executor lets go of it",
    )


def test_calls_left_behind_in_every_way_are_no_accident(tmp_path: Path) -> None:
    with serving(written(tmp_path, "served.py", SERVED)) as executor:
        assert left(*WAYS, linger=0) == (0, "")
        nobody_is_attached()
        shmbatch.stop("served")
        _, logged = ended(executor)
    assert logged.count(" left\n") == 2
    assert " died" not in logged
    assert "without a goodbye" not in logged


@pytest.mark.slow
def test_calls_left_behind_in_one_way_are_left_in_silence(tmp_path: Path) -> None:
    """With all of Python's warnings, and while exit handlers take their time."""
    file = written(tmp_path, "served.py", SERVED)
    with serving(file, "--restart"):
        for way in WAYS:
            assert left(way, linger=0.3, options=("-W", "default")) == (0, ""), way
        nobody_is_attached()
        shmbatch.stop("served")


@pytest.mark.slow
def test_an_exit_handler_may_still_call(tmp_path: Path) -> None:
    """One that was registered before this package was imported runs after its own."""
    late = """
import atexit, builtins
atexit.register(lambda: print(builtins.double.remote(4), flush=True))
import shmbatch
builtins.double = shmbatch.connect("served.double", timeout=10)
"""
    with serving(written(tmp_path, "served.py", SERVED)):
        with started("-c", late, python=True) as producer:
            assert line(producer) == "8"
            _, errors = producer.communicate(timeout=PATIENCE_S)
        assert (errors, producer.returncode) == ("", 0)
        shmbatch.stop("served")


# As servers do that fork. In the end modules then lose their names before what uses them goes.
FROZEN = """
import gc
import shmbatch
import shmbatch.client.call, shmbatch.client.connection, shmbatch.client.handshake
import shmbatch.protocol.linux, shmbatch.protocol.posix
gc.freeze()

def main():
    never = shmbatch.connect("served.never", timeout=10)
    pending = [never.spawn(1), never.spawn(2)]

main()
"""


def test_a_producer_that_has_frozen_its_memory_ends_in_silence(tmp_path: Path) -> None:
    file = written(tmp_path, "served.py", SERVED)
    with serving(file, "--restart") as executor:
        with started("-c", FROZEN, python=True) as producer:
            assert producer.communicate(timeout=PATIENCE_S) == ("", "")
            assert producer.returncode == 0
        shmbatch.stop("served")
        assert executor.wait(PATIENCE_S) == 0
