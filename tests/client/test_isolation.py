"""A bad input, or too little memory, as batch-mates in other processes see it: not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shmbatch
from shmbatch import errors
from tests import processes
from tests.processes import PATIENCE_S, Gate, Program, Served

MATE = """
import sys, shmbatch
function = shmbatch.connect(sys.argv[1])
print("connected", flush=True)
for line in sys.stdin:
    calls = [function.spawn(int(word)) for word in line.split()]
    print("called", flush=True)
    print(*[call.get() for call in calls], flush=True)
"""


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    with processes.served("isolating.py", "isolating") as executor:
        yield executor


def outcomes(function: shmbatch.Function, *inputs: Any) -> list[Any]:
    """Call *function* once for each input, all in one batch; return results or exceptions."""
    pending = [function.spawn(x) for x in inputs]
    found: list[Any] = []
    for call in pending:
        try:
            found.append(call.get(timeout=PATIENCE_S))
        except Exception as error:
            found.append(error)
    return found


@pytest.mark.parametrize("name", ["roots", pytest.param("later", marks=pytest.mark.slow)])
def test_batch_mates_in_another_process_get_their_results(executor: Served, name: str) -> None:
    function = executor.connect(name)
    with Program(MATE, f"isolating.{name}") as mate:
        assert mate.line() == "connected"
        mate.tell("1 2 3 4")
        assert mate.line() == "called"
        found = outcomes(function, 5, -6, 7, -8)
        assert mate.line() == "1 4 9 16"
    assert [found[0], found[2]] == [25, 49]
    assert [str(found[at]) for at in (1, 3)] == ["[-6] of 1", "[-8] of 1"]
    for error in (found[1], found[3]):
        assert isinstance(error, ValueError)
        (note,) = error.__notes__
        assert note.startswith("executor traceback:\n")
        assert "isolating.py" in note
    counts = executor.statistics(name)
    assert counts["failed"] == {"ValueError": 2}
    assert counts["executions_halved"] >= 3
    assert counts["calls_done"] == 8


def test_stacks_are_whole_again_in_every_part(executor: Served) -> None:
    function = executor.connect("norms")
    rows = [np.full(3, x, np.float32) for x in (1, 2, 3, -4, 5, 6, 7, 8)]
    found = outcomes(function, *rows)
    assert isinstance(found.pop(3), ValueError)
    assert [float(each) for each in found] == [6, 12, 18, 30, 36, 42, 48]


def test_asyncio_callers_get_them_too(executor: Served) -> None:
    function = executor.connect("roots")

    async def calls() -> list[Any]:
        return await asyncio.gather(
            *(function.remote.aio(x) for x in (1, 2, 3, 4, 5, 6, 7, -8)), return_exceptions=True
        )

    *good, bad = asyncio.run(calls())
    assert good == [1, 4, 9, 16, 25, 36, 49]
    assert isinstance(bad, ValueError)


def test_a_call_that_was_given_up_is_not_looked_for(executor: Served, module_gate: Gate) -> None:
    function = executor.connect("gated")
    bad = function.spawn(-1)
    calls = [function.spawn(x) for x in range(1, 8)]
    assert module_gate.arrived() == [-1, *range(1, 8)]
    assert not bad.cancel()  # it runs
    module_gate.open(3)
    assert [call.get() for call in calls] == list(range(1, 8))
    assert [module_gate.arrived(), module_gate.arrived()] == [[1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(errors.CallCancelled):
        bad.get()


def test_memory_that_does_not_suffice_makes_batches_smaller(executor: Served) -> None:
    function = executor.connect("greedy")
    assert outcomes(function, *range(8)) == list(range(1, 9))
    counts = executor.statistics("greedy")
    assert counts["memory_limit"] == 2
    assert (counts["executions_out_of_memory"], counts["executions_halved"]) == (2, 2)
    assert counts["batch_sizes"] == {"2": 4}
    assert counts["max_batch_size"] == 8
    assert outcomes(function, 1, 2) == [2, 3]  # two make a batch now
    assert executor.statistics("greedy")["executions_out_of_memory"] == 2
