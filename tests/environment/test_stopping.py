"""A process of either kind that is stopped and continued delays its own calls, and loses none."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shmbatch.protocol import ownership
from tests import processes
from tests.processes import Gate, Program, Served

# Says when its calls are made; then, that all results are right.
CALLER = """
import asyncio, sys, shmbatch
double, held = (shmbatch.connect(f"crash.{name}") for name in ("double", "held"))
async def awaited():
    return await asyncio.gather(*(double.remote.aio(x) for x in range(40)))
call = held.spawn(7)
print("called", flush=True)
sys.stdin.readline()
assert list(double.map(range(100))) == [2 * x for x in range(100)]
assert asyncio.run(awaited()) == [2 * x for x in range(40)]
print(call.get(), flush=True)
"""


@pytest.fixture
def executor(gate: Gate, transport: str) -> Iterator[Served]:
    with processes.served("crash.py", "crash") as executor:
        yield executor
        gate.reset()


def test_a_stopped_producer_holds_up_nobody_and_finds_its_results(
    executor: Served, gate: Gate
) -> None:
    double = executor.connect("double")
    with Program(CALLER) as program:
        assert program.line() == "called"
        assert gate.arrived() == [7]
        program.process.send_signal(signal.SIGSTOP)
        gate.open()  # its result is delivered while it cannot take it
        assert list(double.map(range(500))) == [2 * x for x in range(500)]
        assert executor.statistics("double")["producers"] == 2, "it is not taken for dead"
        program.process.send_signal(signal.SIGCONT)
        program.tell()
        assert program.line() == "70"
        assert program.wait() == 0


@pytest.mark.slow
def test_callers_wait_for_a_stopped_executor(executor: Served, gate: Gate) -> None:
    with Program(CALLER) as program, Program(CALLER) as late:
        assert program.line() == "called"
        gate.arrived()
        executor.signal(signal.SIGSTOP)
        program.tell()  # calls, and finds nobody who is awake
        gate.open(2)
        executor.signal(signal.SIGCONT)
        assert program.line() == "70"
        assert late.line() == "called"  # it may have connected to the stopped one
        late.tell()
        assert late.line() == "70"
        assert [program.wait(), late.wait()] == [0, 0]


@pytest.mark.slow
def test_a_stopped_executor_that_is_stopped_for_good_leaves_nobody_waiting(
    executor: Served, gate: Gate
) -> None:
    with Program(CALLER.replace("call.get()", "repr(call)")) as program:
        assert program.line() == "called"
        gate.arrived()
        executor.signal(signal.SIGSTOP)
        program.tell()
        executor.kill()
        assert program.wait() == 1
    ownership.sweep()
