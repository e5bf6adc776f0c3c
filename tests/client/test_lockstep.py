"""Lockstep over real processes: whoever sat out a wait of ten minutes would not be done here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests import processes
from tests.processes import Program, Served

ACTORS = 4
STEPS = 200
HANDFUL = 10  # waits that may be sat out; without lockstep it would be one a step

# Calls, waits, and calls again; says when it has begun and when it has made its steps. Then it
# leaves at once: the others may have a step to make, and would wait for it.
ACTOR = """
import sys, shmbatch
address, number, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step = shmbatch.connect(address)
sys.stdin.readline()
for x in range(number, number + steps):
    assert step.remote(x) == 3 * x
    if x == number:
        print("begun", flush=True)
print("done", flush=True)
"""

# The same with three calls at a time, out of one event loop.
TASKS = """
import asyncio, sys, shmbatch
address, number, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step = shmbatch.connect(address)

async def main():
    for x in range(number, number + steps):
        calls = (step.remote.aio(y) for y in (x, -x, 2 * x))
        assert await asyncio.gather(*calls) == [3 * x, -3 * x, 6 * x]

sys.stdin.readline()
asyncio.run(main())
print("done", flush=True)
"""


@pytest.fixture
def executor() -> Iterator[Served]:
    with processes.served("lockstep.py", "lockstep") as executor:
        yield executor


def begin(stack: ExitStack, function: str, steps: int = STEPS, code: str = ACTOR) -> list[Program]:
    """Start actors that begin together."""
    actors = [
        stack.enter_context(Program(code, f"lockstep.{function}", 1000 * number, steps))
        for number in range(ACTORS)
    ]
    for actor in actors:
        actor.tell()
    return actors


def finish(actors: list[Program]) -> None:
    """Wait until all have made their steps; each has left as soon as it had."""
    for actor in actors:
        while actor.line() != "done":
            pass
        assert actor.wait() == 0


def sealed(executor: Served, function: str) -> Counter[str]:
    return Counter(executor.statistics(function)["sealed"])


@pytest.mark.parametrize("function", ["step", "step_later"])
def test_actors_make_all_their_steps_without_sitting_out_a_wait(
    executor: Served, function: str
) -> None:
    with ExitStack() as stack:
        finish(begin(stack, function))
    counted = executor.statistics(function)
    assert counted["calls_done"] == ACTORS * STEPS
    assert set(+sealed(executor, function)) == {"all"}


def test_producers_with_several_calls_at_a_time_get_them_all(executor: Served) -> None:
    """Until it is known how many they are the last of them may have to sit out a wait."""
    with ExitStack() as stack:
        finish(begin(stack, "step_or_wait", code=TASKS))
    assert executor.statistics("step_or_wait")["calls_done"] == 3 * ACTORS * STEPS
    assert sealed(executor, "step_or_wait")["deadline"] <= HANDFUL


def test_an_actor_that_is_killed_does_not_stop_the_others(executor: Served) -> None:
    with ExitStack() as stack:
        actors = begin(stack, "step")
        assert actors[0].line() == "begun"
        actors[0].kill()
        finish(actors[1:])
    assert sealed(executor, "step")["deadline"] == 0


def test_an_actor_that_stands_still_is_waited_for_once(executor: Served) -> None:
    """It is forgotten when the wait is over, and counted again when it has called again."""
    quiet = executor.connect("step_or_wait")
    assert quiet.remote(1) == 3
    with ExitStack() as stack:
        finish(begin(stack, "step_or_wait"))
    assert quiet.remote(2) == 6
    assert executor.statistics("step_or_wait")["calls_done"] == ACTORS * STEPS + 2
    assert sealed(executor, "step_or_wait")["deadline"] <= HANDFUL
