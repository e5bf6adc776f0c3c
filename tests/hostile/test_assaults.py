"""Hostile producers in processes of their own, while another one calls all the time.

What the other one gets is right, and everything it calls completes; the executor goes on, lets in
who comes next, says in its statistics what has happened, and forgets who is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import shmbatch
from tests import processes
from tests.hostile.scribbling import IN_FLIGHT, RINGS
from tests.processes import Program, Served

NAME = "assaulted"
ASSAULT = "import runpy, sys; runpy.run_module('tests.hostile.assaults', run_name='__main__')"

# Calls and checks results until it is told to stop; then says how often.
BYSTANDER = """
import select, sys, shmbatch
double, triple = (shmbatch.connect(f"assaulted.{f}") for f in ("double", "triple"))
turns = 0
while True:
    told = select.select([sys.stdin], [], [], 0)[0]
    xs = range(25 * turns, 25 * turns + 25)
    assert list(double.map(xs)) == [2 * x for x in xs]
    assert [triple.remote(x) for x in xs] == [3 * x for x in xs]
    turns += 1
    if turns == 1:
        print("connected", flush=True)
    if told:
        break
print(turns, flush=True)
"""

# What the executor counts of it: refused at least, and expelled.
EVERYDAY = {"pages": (0, 1), "bell": (0, 0)}
SLOW = {
    "words": (0, 1),
    "lingering": (1, 4),
    "flags": (0, 0),
    "descriptors": (3, 3),
    "counters": (0, 0),
    "storm": (0, 0),
    "packets": (3, 0),
    "connects": (500, 0),
    "handshakes": (0, 0),
}
LONG = {"connects often": (9000, 0)}
COUNTED = {**EVERYDAY, **SLOW, **LONG, **dict.fromkeys((*RINGS, *IN_FLIGHT), (0, 1))}
SAID = {
    "pages": "hung up",
    "words": "hung up",
    "lingering": "sent",
    "descriptors": "refused 6",
}


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: processes.Gate) -> Iterator[Served]:
    with processes.served("crash.py", NAME) as executor:
        yield executor


@pytest.fixture(scope="module")
def bystander(executor: Served) -> Iterator[Program]:
    with Program(BYSTANDER) as program:
        assert program.line() == "connected"
        yield program
        program.tell()
        assert int(program.line()) > 0  # every result was right
        assert program.wait() == 0


@contextmanager
def assailant(executor: Served, bystander: Program, *ways: str) -> Iterator[Program]:
    """Who is about to assault the executor; at the end nothing of it may be left."""

    def admission() -> dict[str, int]:
        counted: dict[str, int] = shmbatch.statistics(NAME)["admission"]
        return counted

    before = admission()
    descriptors = len(processes.descriptors(executor.pid))
    refused, expelled = (
        sum(counts) for counts in zip(*(COUNTED[how] for how in ways), strict=True)
    )
    with Program(ASSAULT, NAME, *ways) as program:
        assert program.line() == "ready"
        yield program
        # It is still there. Who comes next is served, by functions of both kinds.
        assert executor.connect("double").remote(3) == 6
        assert executor.connect("triple").remote(3) == 9
        processes.wait_until(
            lambda: admission()["refused"] >= before["refused"] + refused, "they are refused"
        )
        processes.wait_until(
            lambda: admission()["expelled"] == before["expelled"] + expelled, "they are expelled"
        )
    assert bystander.process.poll() is None
    processes.hang_up()
    processes.wait_until(
        lambda: len(processes.descriptors(executor.pid)) <= descriptors, "descriptors are closed"
    )
    processes.wait_until(lambda: admission()["producers"] == 2, "they are forgotten")
    assert admission()["nbytes"] <= before["nbytes"]
    assert "Traceback" not in executor.logged


@pytest.mark.parametrize(
    "how",
    [
        *EVERYDAY,
        *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW),
        *(pytest.param(each, marks=pytest.mark.soak) for each in LONG),
    ],
)
def test_nobody_else_is_hurt(executor: Served, bystander: Program, how: str) -> None:
    with assailant(executor, bystander, how) as program:
        program.tell()
        if how in ("storm", "bell"):
            double = executor.connect("double")
            assert list(double.map(range(100))) == [2 * x for x in range(100)]
            program.tell()
        assert program.line() == SAID.get(how, "done")


def test_who_publishes_what_cannot_be_is_expelled(executor: Served, bystander: Program) -> None:
    with assailant(executor, bystander, *RINGS) as program:
        for how in RINGS:
            program.tell()
            assert program.line() == "ProtocolError", how


def test_a_scribblers_batch_mates_have_their_results(
    executor: Served, bystander: Program, module_gate: processes.Gate
) -> None:
    held = executor.connect("held")
    with assailant(executor, bystander, *IN_FLIGHT) as program:
        for how in IN_FLIGHT:
            first = held.spawn(1)
            assert module_gate.arrived() == [1]
            mate = held.spawn(2)
            program.tell()
            assert program.line() == "called"
            module_gate.open()
            assert first.get() == 10
            assert sorted(module_gate.arrived()) == [2, 5]
            program.tell()
            assert program.line() == "scribbled"
            module_gate.open()
            assert mate.get() == 20
            assert program.line() == "ProtocolError", how
            del first, mate


@pytest.mark.slow
def test_an_executor_ends_though_descriptors_linger(module_gate: processes.Gate) -> None:
    with Program(ASSAULT, "ending", "lingering") as program:
        with processes.served("crash.py", "ending") as executor:
            assert program.line() == "ready"
            program.tell()
            assert program.line() == "sent"
            assert executor.connect("double").remote(3) == 6
            processes.hang_up()
        assert executor.process.returncode == 0
