"""Hostile producers in processes of their own, while another one calls all the time.

What the other one gets is right, and everything it calls completes; the executor goes on, lets in
who comes next, says in its statistics what has happened, and forgets who is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import shmbatch
from tests import processes
from tests.crash.test_hostile import BYSTANDER
from tests.processes import Program, Served

NAME = "assaulted"
ASSAULT = "import runpy, sys; runpy.run_module('tests.hostile.assaults', run_name='__main__')"

# What the executor counts of it: refused at least, and expelled.
WAYS = {
    "lingering": (1, 4),
    "scribbles": (0, 1),
    "flags": (0, 0),
    "descriptors": (3, 3),
    "counters": (0, 0),
    "storm": (0, 0),
    "packets": (3, 0),
    "connects": (500, 0),
    "handshakes": (0, 0),
}
LONG = {"connects often": (9000, 0)}
SAID = {"scribbles": "hung up", "lingering": "sent", "descriptors": "refused 6"}


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: processes.Gate) -> Iterator[Served]:
    with processes.served("crash.py", NAME) as executor:
        yield executor


@pytest.fixture(scope="module")
def bystander(executor: Served) -> Iterator[Program]:
    with Program(BYSTANDER.replace("hostile.{f}", f"{NAME}.{{f}}")) as program:
        assert program.line() == "connected"
        yield program
        program.tell()
        assert int(program.line()) > 0  # every result was right
        assert program.wait() == 0


@pytest.mark.parametrize(
    "how",
    [
        *(pytest.param(each, marks=pytest.mark.slow) for each in WAYS),
        *(pytest.param(each, marks=pytest.mark.soak) for each in LONG),
    ],
)
def test_nobody_else_is_hurt(executor: Served, bystander: Program, how: str) -> None:
    before = shmbatch.statistics(NAME)["admission"]
    descriptors = len(processes.descriptors(executor.pid))
    refused, expelled = (WAYS | LONG)[how]
    with Program(ASSAULT, NAME, how) as assailant:
        assert assailant.line() == "ready"
        assailant.tell()
        if how == "storm":
            double = executor.connect("double")
            assert list(double.map(range(100))) == [2 * x for x in range(100)]
            assailant.tell()
        assert assailant.line() == SAID.get(how, "done")
        # It is still there. Who comes next is served, by functions of both kinds.
        assert executor.connect("double").remote(3) == 6
        assert executor.connect("triple").remote(3) == 9
        processes.wait_until(
            lambda: (
                shmbatch.statistics(NAME)["admission"]["refused"] >= before["refused"] + refused
            ),
            "they are refused",
        )
        processes.wait_until(
            lambda: (
                shmbatch.statistics(NAME)["admission"]["expelled"] == before["expelled"] + expelled
            ),
            "they are expelled",
        )
    assert bystander.process.poll() is None
    processes.hang_up()
    processes.wait_until(
        lambda: len(processes.descriptors(executor.pid)) <= descriptors, "descriptors are closed"
    )
    processes.wait_until(
        lambda: shmbatch.statistics(NAME)["admission"]["producers"] == 2, "they are forgotten"
    )
    after = shmbatch.statistics(NAME)["admission"]
    assert after["nbytes"] <= before["nbytes"]
    assert "Traceback" not in executor.logged


@pytest.mark.slow
def test_an_executor_ends_though_descriptors_linger(module_gate: processes.Gate) -> None:
    with Program(ASSAULT, "ending", "lingering") as assailant:
        with processes.served("crash.py", "ending") as executor:
            assert assailant.line() == "ready"
            assailant.tell()
            assert assailant.line() == "sent"
            assert executor.connect("double").remote(3) == 6
            processes.hang_up()
        assert executor.process.returncode == 0
