"""What the processes do that are to be killed: producers that call in every way, an executor."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import shmbatch
from shmbatch import errors
from tests import processes

ready_fd = -1  # where an executor is to say so
BLOB = bytes(70_000)
FILE = processes.APPS / "faults.py"


def preload() -> None:
    """Import what a child is going to import, so that none of them has to."""
    import jaxtyping  # noqa: F401 - the app's
    import msgspec  # noqa: F401

    import shmbatch.client
    import shmbatch.contract
    import shmbatch.executor
    import shmbatch.protocol
    import shmbatch.supervisor

    packages = (shmbatch.protocol, shmbatch.contract, shmbatch.client, shmbatch.executor)
    for package in (*packages, shmbatch.supervisor):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in ("app.load", "app.reports", "app.paths", "cli.start", "cli.target"):
        importlib.import_module(f"shmbatch.{name}")
    from shmbatch.app.load import load_file

    load_file(FILE)


def handle(name: str, function: str, **options: Any) -> shmbatch.Function:
    return shmbatch.connect(f"{name}.{function}", timeout=0, wait="park", **options)


def hang_up(name: str) -> None:
    from shmbatch.client import pool

    pool.forget(name)


# ---- producers ----------------------------------------------------------------------------------


def producer(name: str, way: str) -> None:
    """Make calls in one of the ways below, and leave."""
    WAYS[way](name)
    hang_up(name)


def plain(name: str) -> None:
    double = handle(name, "double")
    assert double.remote(1) == 2
    calls = [double.spawn(x) for x in range(3)]
    assert [call.get() for call in calls] == [0, 2, 4]
    assert list(double.map(range(3))) == [0, 2, 4]


def plain_aio(name: str) -> None:
    async def calls() -> None:
        triple = handle(name, "triple")
        assert await triple.remote.aio(1) == 3
        call = await triple.spawn.aio(2)
        assert await asyncio.gather(*(triple.remote.aio(x) for x in range(3))) == [0, 3, 6]
        assert await call.get.aio() == 6
        assert [y async for y in triple.map.aio(range(3))] == [0, 3, 6]

    asyncio.run(calls())


def giving_up(name: str) -> None:
    never = handle(name, "never")
    assert never.spawn(1).cancel() is True
    never.spawn(2)  # dropped at once
    expect(errors.CallTimeout, lambda: never.with_options(timeout=0.001).remote(3))
    expect(errors.DeadlineExceeded, lambda: never.with_options(deadline_ms=1).remote(4))
    calls = [never.spawn(x) for x in range(4)]  # with others' more than a batch
    calls[0].get()
    dropped = calls.pop()
    del dropped


def giving_up_aio(name: str) -> None:
    async def calls() -> None:
        never = handle(name, "never")
        task = asyncio.create_task(never.remote.aio(1))
        await asyncio.sleep(0)
        task.cancel()
        await expect_aio(asyncio.CancelledError, task)
        await expect_aio(errors.CallTimeout, never.with_options(timeout=0.001).remote.aio(2))
        await expect_aio(errors.DeadlineExceeded, never.with_options(deadline_ms=1).remote.aio(3))
        pending = [await never.spawn.aio(x) for x in range(4)]
        await pending[0].get.aio()

    asyncio.run(calls())


def full(name: str) -> None:
    narrow = handle(name, "narrow")
    calls = [narrow.spawn(x) for x in range(5)]  # slots for two
    assert [call.get() for call in calls] == [0, 2, 4, 6, 8]
    patient = handle(name, "patient")
    with ThreadPoolExecutor(3) as threads:  # one of them waits for a slot
        assert list(threads.map(patient.remote, range(3))) == [0, 2, 4]
    stuck = handle(name, "stuck").with_options(timeout=0.002)
    calls = [stuck.spawn(x) for x in range(2)]
    expect(errors.RingFull, lambda: stuck.remote(1))


def full_aio(name: str) -> None:
    async def calls() -> None:
        narrow = handle(name, "narrow")
        assert await asyncio.gather(*(narrow.remote.aio(x) for x in range(5))) == [0, 2, 4, 6, 8]
        stuck = handle(name, "stuck").with_options(timeout=0.002)
        pending = [await stuck.spawn.aio(x) for x in range(2)]
        await expect_aio(errors.RingFull, stuck.remote.aio(1))
        del pending

    asyncio.run(calls())


def values(name: str) -> None:
    assert handle(name, "spells").remote("a", {"x": 1}, 0.5, False) == "a 1 0.5 False"
    assert handle(name, "halves").remote(1) == 0.5
    assert handle(name, "echoes").remote(BLOB) == BLOB
    result = handle(name, "sums").remote(np.ones(4, np.float32), np.ones(3, np.float32))
    assert result.tolist() == [7.0] * 20_000
    sorts = handle(name, "sorts")
    assert sorts.remote(np.array([3, 1, 2])).tolist() == [1, 2, 3]
    with sorts.reserve(), sorts.reserve() as slot:
        slot[0][:] = 3, 1, 2
        with slot.spawn().borrow() as ordered:
            assert ordered.tolist() == [1, 2, 3]
    expect(ValueError, lambda: handle(name, "refuses").remote(1))
    picky = handle(name, "picky")
    first, *others = [picky.spawn(x) for x in range(3)]
    expect(ValueError, first.get)
    assert [call.get() for call in others] == [2, 4]


def values_aio(name: str) -> None:
    async def calls() -> None:
        spells, refuses = handle(name, "spells"), handle(name, "refuses")
        assert await spells.remote.aio("a", {"x": 1}, 0.5, True) == "a 1 0.5 True"
        await expect_aio(ValueError, refuses.remote.aio(1))

    asyncio.run(calls())


def expect(kind: type[BaseException], call: Callable[[], Any]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


async def expect_aio(kind: type[BaseException], awaitable: Any) -> None:
    try:
        await awaitable
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


WAYS = {
    way.__name__: way
    for way in (plain, plain_aio, giving_up, giving_up_aio, full, full_aio, values, values_aio)
}


def moved(name: str) -> Iterator[None]:
    """Have calls in every state when the executor dies; then move on to the next one."""
    double, never, few = (handle(name, each) for each in ("double", "never", "few"))
    done = double.spawn(1)
    assert double.remote(2) == 4
    assert never.spawn(5).cancel()
    waiting = [never.spawn(0)]  # with those of others not enough for a batch
    sorts = handle(name, "sorts")
    reserved, borrowed = sorts.reserve(), sorts.spawn(np.array([3, 1, 2])).borrow()
    slot, ordered = reserved.__enter__(), borrowed.__enter__()
    slot[0][:] = 6, 5, 4
    executor = os.pidfd_open(shmbatch.statistics(name)["pid"])
    launched = handle(name, "kills").spawn(1)
    processes.readable(executor, "the executor is dead")
    os.close(executor)
    yield
    expect(errors.ExecutorGone, launched.get)
    assert (ordered.tolist(), slot.remote().tolist()) == ([1, 2, 3], [4, 5, 6])
    assert [double.remote(x) for x in range(3)] == [0, 2, 4]
    assert done.get() == 2
    waiting += [never.spawn(x) for x in range(1, 4)]
    assert [call.get() for call in waiting] == [0, 2, 4, 6]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(few.remote, range(3))) == [0, 2, 4]
    hang_up(name)


# ---- the executor -------------------------------------------------------------------------------


def executor(name: str, transport: str, *options: str) -> None:
    """Serve until stopped; says when it is ready."""
    from shmbatch.cli import start
    from shmbatch.supervisor import backoff

    backoff._FIRST_NS = 1_000_000  # what dies here has served for a moment only
    start.command.main(
        [
            *(str(FILE), "--name", name, "--transport", transport),
            *("--wait", "park", "--ready-fd", str(ready_fd), *options),
        ],
        standalone_mode=False,
    )
