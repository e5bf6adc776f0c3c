"""Nothing grows: memory, descriptors and threads over a million calls, and over many producers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests import processes
from tests.processes import Program, Served
from tests.soak.holding import held

MIB = 1 << 20

# One lost object a call would be far more: sixteen bytes for each of a million calls.
GROWTH_MAX = 2 * MIB

# Makes as many calls as each line says, in every way there is, and checks each result.
CALLER = """
import asyncio, sys
import numpy as np
import shmbatch

name = sys.argv[1]
shout, double = (shmbatch.connect(f"{name}.{each}") for each in ("shout", "double"))
gather = shmbatch.FunctionCall.gather

def text(at):
    return f"call {at} of many"

def array(at):
    return np.full(64, at, np.float32)

def right(results, first=0):
    for at, result in enumerate(results, first):
        assert result == text(at).upper() if type(result) is str else (result == 2 * at).all()

async def awaited(ats):
    right([result async for result in double.map.aio(map(array, ats))])
    for start in ats[::100]:
        calls = (shout.remote.aio(text(at)) for at in range(start, start + 100))
        right(await asyncio.gather(*calls), start)
    pending = [await double.spawn.aio(array(at)) for at in ats[:500]]
    right(await gather.aio(*pending))

def turn(count):
    tenth = count // 10
    ats = range(2 * tenth)
    right([shout.remote(text(at)) for at in ats[:tenth]])
    right([double.remote(array(at)) for at in ats[:tenth]])
    for start in range(0, tenth, 500):
        pending = [shout.spawn(text(at)) for at in range(start, start + 500)]
        dropped = [double.spawn(array(at)) for at in range(start, start + 100)]
        for call in dropped[::2]:
            call.cancel()
        del dropped
        right(gather(*pending), start)
    right(shout.map(map(text, ats)))
    right(double.map(map(array, ats)))
    shout.for_each(map(text, ats[:tenth]))
    asyncio.run(awaited(range(tenth)))

for line in sys.stdin:
    turn(int(line))
    print("done", flush=True)
"""

# Connects as sixteen producers, calls with each and hangs up, as many times as each line says.
COMER = """
import sys
import shmbatch
from shmbatch.client import handshake
from shmbatch.protocol.names import Address

address = Address.parse(sys.argv[1] + ".triple")
for line in sys.stdin:
    for number in range(int(line)):
        producers = []
        for _ in range(16):
            producer = shmbatch.Function(address)
            producer._connection = handshake.connect(
                address, None, None, arrays="native", wait="park"
            )
            producers.append(producer)
        assert [each.remote(number) for each in producers] == [3 * number] * 16
        for each in producers:
            connection = each.connect()
            connection.close()
            each.forget(connection)  # else the handles, each a cycle, keep the memory for a while
    print(line.strip(), flush=True)
"""


class Watch:
    """Compares what processes hold with what they held when they had warmed up."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._warm = {who: held(pid) for who, pid in pids.items()}

    def check(self, done: str) -> None:
        for who, pid in self._pids.items():
            warm = self._warm[who]
            # Whoever has just been asked for its statistics has yet to hang up.
            processes.wait_until(
                lambda pid=pid, warm=warm: held(pid)["descriptors"] <= warm["descriptors"],
                f"{who} has no more descriptors than it had",
            )
            now = held(pid)
            print(
                f"{done}: {who} {now['resident'] / MIB:.1f} MiB "
                f"({(now['resident'] - warm['resident']) / MIB:+.1f}), "
                f"{now['descriptors']} descriptors, {now['threads']} threads"
            )
            assert now["resident"] <= warm["resident"] + GROWTH_MAX, who
            assert now["threads"] <= warm["threads"], who


@pytest.fixture
def executor(transport: str) -> Iterator[Served]:
    with processes.served("flat.py", "flat") as executor:
        yield executor


def told(programs: list[Program], text: object, times: int) -> None:
    """Give all programs a line so many times, and wait for the answers."""
    for _ in range(times):
        for program in programs:
            program.tell(str(text))
        for program in programs:
            program.line()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_calls_leave_nothing_behind(executor: Served) -> None:
    calls, times, turns = 5_000, 5, 22  # a line, lines a turn
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(CALLER, "flat")) for _ in range(2)]
        for _ in range(2):  # what is allocated once is allocated now
            told(programs, calls, times)
        watch = Watch(
            executor=executor.pid,
            first=programs[0].pid,
            second=programs[1].pid,
        )
        begun = _calls_done(executor)
        for _ in range(turns - 2):
            told(programs, calls, times)
            watch.check(f"{_calls_done(executor) - begun:,} calls")
        assert _calls_done(executor) - begun >= 1_000_000


def _calls_done(executor: Served) -> int:
    return sum(executor.statistics(each)["calls_done"] for each in ("shout", "double"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_producers_that_come_and_go_leave_nothing_behind(executor: Served) -> None:
    """64 of them at a time, a thousand times."""
    rounds, times, turns = 5, 10, 20  # a line, lines a turn
    alone = held(executor.pid)["descriptors"]
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(COMER, "flat")) for _ in range(4)]
        told(programs, rounds, times)
        _nobody_left(executor, alone)
        watch = Watch(
            executor=executor.pid,
            **{f"comer {number}": program.pid for number, program in enumerate(programs)},
        )
        for number in range(1, turns):
            told(programs, rounds, times)
            _nobody_left(executor, alone)
            watch.check(f"64 producers, {(number + 1) * rounds * times} times")


def _nobody_left(executor: Served, alone: int) -> None:
    """Wait until all are detached, and the executor has closed what it had for them."""
    processes.wait_until(
        lambda: (
            executor.statistics("triple")["producers"] == 0
            and held(executor.pid)["descriptors"] <= alone
        ),
        "they are all detached",
    )
