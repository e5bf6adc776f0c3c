"""An executor whose device is lost: everybody is told why, nothing is left, its status is 1."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lost as lost_app
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.executor.dying import DeviceLost
from shmbatch.protocol import owners
from shmbatch.protocol._core import OPEN
from tests import processes, programs
from tests.executor.worlds import Plan, World
from tests.processes import APPS, PATIENCE_S, Gate, Program, Served

LOST = "lost.py"
WHY = "CUDA error: an illegal memory access was encountered (AcceleratorError) in doomed."

# Waits in several ways for a function that is never due; prints what ended each.
WAITER = """
import asyncio, threading, shmbatch
never = shmbatch.connect("doomed.never")
pending = [never.spawn(x) for x in range(2)]
heard = []

async def waits():
    await never.remote.aio(1)

def says(wait):
    try:
        wait()
    except shmbatch.errors.ShmbatchError as error:
        heard.append(f"{type(error).__name__}: {error}")

threads = [threading.Thread(target=says, args=[each]) for each in (
    pending[0].get,
    lambda: list(never.map(range(3))),
    lambda: asyncio.run(pending[1].get.aio()),
    lambda: asyncio.run(waits()),
)]
for thread in threads:
    thread.start()
print("waits", flush=True)
for thread in threads:
    thread.join()
for each in heard:
    print(each, flush=True)
"""


@pytest.fixture
def doomed(gate: Gate) -> Iterator[Served]:
    executor = Served(LOST, "doomed")
    yield executor
    executor.kill()


def test_the_cause_is_the_first_line_of_the_error_and_where_it_came_from() -> None:
    illegal = lost_app.AcceleratorError(lost_app.ILLEGAL)
    assert str(DeviceLost.because(illegal, "doomed.f")) == f"{WHY}f"
    assert str(DeviceLost.because(KeyError(), "a.f")) == "KeyError in a.f"
    assert len(str(DeviceLost.because(RuntimeError("x" * 10_000), "a.f"))) < 600


def test_an_error_that_cannot_be_described_has_its_class() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert str(DeviceLost.because(Mute(), "a.f")) == "Mute in a.f"


def test_it_ends_the_loop_and_nobody_is_told_that_the_executor_has_stopped() -> None:
    def complete() -> None:
        raise DeviceLost("gone")

    world = World(Plan(), Plan())
    world.functions[1].complete = complete  # type: ignore[method-assign]
    world.at(world.now_ns, world.producers[0].submit)
    world.at(world.now_ns, world.producers[1].submit)
    with pytest.raises(DeviceLost, match=r"^gone$"):
        world.run(drain=False)
    assert [each.wire.producer.status for each in world.producers] == [OPEN, OPEN]


def test_every_waiter_of_every_producer_hears_the_cause(doomed: Served, gate: Gate) -> None:
    loses, never = doomed.connect("loses"), doomed.connect("never")
    before, later = never.spawn(1), never.spawn(2)
    launched = loses.spawn(3)
    gate.arrived()
    queued = loses.spawn(4)

    async def waits() -> Any:
        return await asyncio.gather(
            *(never.remote.aio(x) for x in range(3)), return_exceptions=True
        )

    programs = [Program(WAITER) for _ in range(2)]
    try:
        with ThreadPoolExecutor(3) as threads:
            mine = [threads.submit(never.remote, 9), threads.submit(before.get)]
            in_loop = threads.submit(asyncio.run, waits())
            for program in programs:
                assert program.line() == "waits"
            gate.open()
            heard = [
                *(each.exception(PATIENCE_S) for each in mine),
                *in_loop.result(PATIENCE_S),
            ]
        said = [program.line() for program in programs for _ in range(4)]
    finally:
        for program in programs:
            program.close()
    for call in (later, launched, queued):
        with pytest.raises(errors.ExecutorGone) as caught:
            call.get(timeout=PATIENCE_S)
        heard.append(caught.value)
    for error in heard:
        # A thread that was late to call found that nobody serves.
        assert isinstance(error, errors.ExecutorGone | errors.ExecutorNotFound), error
    gone = [f"ExecutorGone: {each}" for each in heard if isinstance(each, errors.ExecutorGone)]
    gone += [line for line in said if not line.startswith("ExecutorNotFound")]
    assert len(gone) >= 10
    for line in gone:
        function = "loses" if "loses' (process" in line else "never"
        assert line.rpartition("; ")[0] == (
            f"ExecutorGone: executor of 'doomed.{function}' (process {doomed.pid}) "
            f"died: {WHY}loses"
        )
    assert {line.rpartition("; ")[2] for line in gone} == {
        "calls that it had taken may or may not have run",
        "it had not taken this call",
    }


@pytest.mark.parametrize("way", ["loses", "suspends"])
def test_its_status_is_1_and_it_logs_one_line_and_leaves_nothing(
    doomed: Served, gate: Gate, way: str
) -> None:
    gate.open()
    function = doomed.connect(way)
    with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
        function.remote(1)
    assert doomed.wait() == 1
    logged = doomed.logged
    critical = [line for line in logged.splitlines() if "CRITICAL" in line]
    assert len(critical) == 1
    assert critical[0].endswith(f"doomed has lost its device and ends: {WHY}{way}")
    assert "Traceback (most recent call last)" in logged
    assert "AcceleratorError: CUDA error" in logged  # what it was raised from
    assert owners.owners() == []
    assert not list(Path(os.environ["SHMBATCH_DIR"]).glob("doomed*"))
    assert processes.shared_memory() == set()
    with pytest.raises(errors.ExecutorNotFound, match="no executor serves 'doomed'"):
        function.remote(2)
    with processes.served(LOST, "doomed"):
        assert doomed.connect("double").remote(2) == 4


def test_a_call_that_is_made_after_the_death_hears_the_cause_too(
    doomed: Served, gate: Gate
) -> None:
    gate.open()
    double = doomed.connect("double")
    assert double.remote(1) == 2
    finished = double.spawn(4)
    processes.wait_until(
        lambda: doomed.statistics("double")["calls_done"] == 2, "the call is done"
    )
    with pytest.raises(errors.ExecutorGone):
        doomed.connect("loses").remote(1)
    doomed.wait()
    assert finished.get() == 8
    with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
        double.remote(2)
    with pytest.raises(errors.ExecutorNotFound):
        double.remote(3)


def test_a_child_that_holds_its_sockets_hides_neither_death_nor_cause(doomed: Served) -> None:
    forks, never = doomed.connect("forks"), doomed.connect("never")
    before = processes.children()
    pending = never.spawn(1)
    with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
        forks.remote(1)
    with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
        pending.get(PATIENCE_S)
    assert doomed.wait() == 1
    os.killpg(doomed.pid, signal.SIGKILL)  # the child is in its session
    assert processes.children() <= before


def test_a_log_that_nobody_reads_keeps_nobody_waiting(doomed: Served) -> None:
    with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
        doomed.connect("unread").remote(1)
    assert doomed.wait() == 1
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.stop("doomed")  # sweeps what it had no time to remove


def test_who_runs_an_app_hears_the_cause_though_it_asks_when_all_is_over(gate: Gate) -> None:
    gate.open()
    with lost_app.app.run() as running:
        pending = lost_app.never.spawn(1)
        fd = os.pidfd_open(running.pid or 0)
        last = lost_app.loses.spawn(1)
        processes.readable(fd, "the executor ends")
        os.close(fd)
    for call in (pending, last):
        with pytest.raises(errors.ExecutorGone, match="illegal memory access"):
            call.get()


def test_a_service_manager_is_told(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"shmbatch-test-{os.getpid()}-{tmp_path.name}"
        manager.bind(f"\0{name}")
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        with programs.started("start", APPS / LOST, "--name", "doomed") as process:
            while not manager.recv(4096).startswith(b"READY=1"):
                pass
            gate.open()
            with pytest.raises(errors.ExecutorGone):
                shmbatch.connect("doomed.loses").remote(1)
            assert manager.recv(4096).decode() == f"STATUS=has lost its device: {WHY}loses"
            assert process.wait(PATIENCE_S) == 1
