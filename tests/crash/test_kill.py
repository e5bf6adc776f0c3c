"""Kill -9, of either side and at any moment: who waits hears of it, the rest goes on, and nothing
is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import shmbatch
from shmbatch import errors
from tests import processes
from tests.crash.bystanders import mapped, swept
from tests.processes import PATIENCE_S, Gate, Program, Served

# Makes calls of every kind, checks results, prints a line for each hundred; says what ended it.
CALLER = """
import asyncio, itertools, sys, shmbatch
name, number = sys.argv[1], int(sys.argv[2])

async def gathered(xs):
    return await asyncio.gather(*(triple.remote.aio(x) for x in xs))

try:
    double, triple = (shmbatch.connect(f"{name}.{f}", timeout=0) for f in ("double", "triple"))
    print("connected", flush=True)
    for turn in itertools.count(number * 1_000_000, 100):
        xs = range(turn, turn + 25)
        assert [double.remote(x) for x in xs] == [2 * x for x in xs]
        pending = [double.spawn(x) for x in xs]
        dropped = [triple.spawn(x) for x in xs]
        assert list(triple.map(xs)) == [3 * x for x in xs]
        del dropped
        assert asyncio.run(gathered(xs)) == [3 * x for x in xs]
        assert [call.get() for call in pending] == [2 * x for x in xs]
        print(turn, flush=True)
except (shmbatch.errors.ExecutorGone, shmbatch.errors.ExecutorClosed,
        shmbatch.errors.ExecutorNotFound) as error:
    print(type(error).__name__, flush=True)
"""

ENDS = {"ExecutorGone", "ExecutorClosed", "ExecutorNotFound"}


def last_line(program: Program) -> str:
    """Read until the program says what ended it."""
    while (line := program.line()) not in ENDS:
        pass
    return line


def cycle(number: int) -> None:
    """Start an executor and producers, kill one of them at a random moment, end the others."""
    chance = random.Random(number)
    name = f"cycle-{number}"
    executor = Served("crash.py", name)
    programs: list[Program] = []
    try:
        open_before = len(processes.descriptors(executor.pid))
        programs += [Program(CALLER, name, each) for each in range(2)]
        victim = chance.choice(["executor", "producer", "producer"])
        never = executor.connect("never")
        with ThreadPoolExecutor(1) as threads:
            waiter = threads.submit(never.remote, 1)
            for _ in range(chance.choice([0, 0, 1, 2, 5])):
                programs[0].line()
            if victim == "producer":
                programs[0].kill()
                if programs[1].line() == "connected":
                    assert int(programs[1].line()) % 100 == 0  # it goes on, with right results
                processes.wait_until(
                    lambda: executor.statistics("double")["producers"] == 1, "it is detached"
                )
                executor.signal(signal.SIGTERM)
                assert waiter.result(PATIENCE_S) == 2  # published, so it was still run
                assert last_line(programs[1]) in ENDS
                assert executor.wait() == 0, executor.logged
                assert "Traceback" not in executor.logged
            else:
                executor.process.kill()
                error = waiter.exception(PATIENCE_S)
                assert isinstance(error, errors.ExecutorGone | errors.ExecutorNotFound), error
                assert {last_line(program) for program in programs} <= ENDS
        assert open_before > 0
    finally:
        for program in programs:
            program.close()
        executor.kill()
        processes.hang_up()
    swept(name)


# ---- one thing at a time ---------------------------------------------------------------------


@pytest.fixture
def executor(gate: Gate) -> Iterator[Served]:
    executor = Served("crash.py", "crash")
    yield executor
    executor.kill()
    swept("crash")


def test_a_dead_producers_memory_and_descriptors_are_freed(executor: Served) -> None:
    double = executor.connect("double")
    assert double.remote(1) == 2
    mapped_before = mapped(executor.pid)
    # At most, since some of a handshake's may still be open here.
    open_before = len(processes.descriptors(executor.pid))
    for number in range(3):
        with Program(CALLER, "crash", number) as program:
            program.line()
            program.line()
            program.kill()
    processes.wait_until(
        lambda: len(processes.descriptors(executor.pid)) <= open_before, "descriptors are closed"
    )
    processes.wait_until(lambda: mapped(executor.pid) == mapped_before, "memory is unmapped")
    assert double.remote(2) == 4


def test_a_fork_that_holds_the_socket_does_not_hide_its_parents_death(executor: Served) -> None:
    code = """
import os, sys, shmbatch
never = shmbatch.connect("crash.never")
pending = [never.spawn(x) for x in range(2)]
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""
    never = executor.connect("never")
    mine = [never.spawn(20)]
    with Program(code) as program:
        child = int(program.line())
        fd = os.pidfd_open(child)
        try:
            program.kill()
            processes.wait_until(
                lambda: executor.statistics("never")["producers"] == 1, "it is detached"
            )
            # With the two that were dropped these would make a full batch.
            mine += [never.spawn(x) for x in (21, 22)]
            assert executor.statistics("never")["batch_sizes"] == {}
        finally:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
    assert [call.cancel() for call in mine] == [True] * 3


def test_a_child_that_holds_its_sockets_does_not_hide_the_executors_death(
    executor: Served,
) -> None:
    child = executor.connect("forks").remote(0)
    fd = os.pidfd_open(child)
    try:
        never = executor.connect("never")

        async def waits() -> Any:
            task = asyncio.create_task(never.remote.aio(1))
            await asyncio.sleep(0)
            executor.process.kill()
            return await task

        call = never.spawn(1)
        with pytest.raises(errors.ExecutorGone):
            asyncio.run(waits())
        with pytest.raises(errors.ExecutorGone):
            call.get()
        # The child even listens where producers connect.
        for ask in (
            lambda: shmbatch.connect("crash.double", timeout=0),
            lambda: shmbatch.statistics("crash"),
            lambda: shmbatch.stop("crash"),
        ):
            with pytest.raises(errors.ExecutorNotFound, match="no executor serves 'crash'"):
                ask()
        with processes.served("crash.py", "crash") as successor:
            assert successor.connect("double").remote(2) == 4
    finally:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)


def test_calls_of_others_go_on_while_producers_die(executor: Served) -> None:
    double = executor.connect("double")
    for number in range(4):
        with Program(CALLER, "crash", number) as program:
            program.line()
            pending = [double.spawn(x) for x in range(200)]
            program.kill()
            assert [call.get() for call in pending] == [2 * x for x in range(200)]


def test_an_executor_that_app_run_started_ends_with_its_parent(gate: Gate) -> None:
    """Even if a fork of the parent holds everything that the parent had open."""
    code = """
import os, sys, crash
with crash.app.run() as running:
    assert crash.double.remote(2) == 4
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print(running.pid, child, flush=True)
    sys.stdin.read()
"""
    with Program(code) as program:
        pids = [int(pid) for pid in program.line().split()]
        watched = [os.pidfd_open(pid) for pid in pids]
        try:
            program.kill()
            processes.readable(watched[0], "the executor ends")
        finally:
            for fd in watched:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                os.close(fd)


# ---- at random, many times -------------------------------------------------------------------


@pytest.mark.parametrize("number", range(12))
def test_start_connect_kill_stop(number: int) -> None:
    cycle(number)
