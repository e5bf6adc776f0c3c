"""A process of either kind that is suspended for a while delays its own calls, and loses none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shmbatch.protocol import ownership
from tests import processes
from tests.processes import Gate, Program, Served

# Says when its calls are made; then, whether the first of those that it is told to make came back
# in time; then, that all results are right.
CALLER = """
import asyncio, sys, shmbatch
double, held = (shmbatch.connect(f"crash.{name}") for name in ("double", "held"))
async def awaited():
    return await asyncio.gather(*(double.remote.aio(x) for x in range(40)))
def comes(pending, within_s):
    try:
        pending.get(within_s)
    except shmbatch.errors.CallTimeout:
        return "it waits"
    return "it has come"
call = held.spawn(7)
print("called", flush=True)
sys.stdin.readline()
print(comes(double.spawn(1), 0.3), flush=True)
assert list(double.map(range(100))) == [2 * x for x in range(100)]
assert asyncio.run(awaited()) == [2 * x for x in range(40)]
print(call.get(), flush=True)
"""


@pytest.fixture
def executor(gate: Gate, transport: str) -> Iterator[Served]:
    with processes.served("crash.py", "crash") as executor:
        yield executor
        gate.reset()


@contextmanager
def suspended(process: Served | Program) -> Iterator[None]:
    """Have it do nothing meanwhile."""
    process.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    yield
    process.process.send_signal(signal.SIGCONT)


def test_a_suspended_producer_holds_up_nobody_and_finds_its_results(
    executor: Served, gate: Gate
) -> None:
    double = executor.connect("double")
    with Program(CALLER) as program:
        assert program.line() == "called"
        assert gate.arrived() == [7]
        with suspended(program):
            gate.open()  # its result is delivered while it cannot take it
            assert list(double.map(range(500))) == [2 * x for x in range(500)]
            assert executor.statistics("double")["producers"] == 2, "it is not taken for dead"
        program.tell()
        program.line()
        assert program.line() == "70"
        assert program.wait() == 0


@pytest.mark.slow
def test_callers_wait_for_a_suspended_executor(executor: Served, gate: Gate) -> None:
    with Program(CALLER) as program, Program(CALLER) as late:
        assert program.line() == "called"
        gate.arrived()
        with suspended(executor):
            program.tell()
            assert program.line() == "it waits"
        gate.open(2)
        assert program.line() == "70"
        assert late.line() == "called"  # it may have connected to the suspended one
        late.tell()
        late.line()
        assert late.line() == "70"
        assert [program.wait(), late.wait()] == [0, 0]


@pytest.mark.slow
def test_a_suspended_executor_that_is_killed_leaves_nobody_waiting(
    executor: Served, gate: Gate
) -> None:
    with Program(CALLER) as program:
        assert program.line() == "called"
        gate.arrived()
        with suspended(executor):
            program.tell()
            assert program.line() == "it waits"
            executor.process.kill()
        executor.kill()
        assert program.wait() == 1
    ownership.sweep()
