"""What callers see when a supervised executor dies: nothing, where that can be."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.client import succession
from shmbatch.client.attended import Attended
from shmbatch.client.connecting import handle
from shmbatch.protocol._core import DONE
from tests import processes
from tests.processes import PATIENCE_S, Gate, Supervised


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    monkeypatch.setenv("SHMBATCH_TEST_LEDGER", str(path))
    return path


@pytest.fixture
def executor(gate: Gate, ledger: Path) -> Iterator[Supervised]:
    executor = Supervised("ledger.py", "ledger")
    yield executor
    executor.kill()


def executed(ledger: Path) -> Counter[int]:
    return Counter(map(int, ledger.read_text().split()))


def busy(executor: Supervised, gate: Gate, x: int = 0) -> shmbatch.FunctionCall:
    """Have the executor run a batch that does not end, so that nothing else is launched."""
    call = executor.connect("held").spawn(x)
    assert gate.arrived() == [x]
    return call


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def interrupted_at_the_move(patch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Once, have something happen when a ring has moved, and before anybody knows."""
    move = Attended.move

    class Ring:
        def __init__(self, connection: Attended) -> None:
            self._connection, self._ring = connection, connection.ring

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ring, name)

        def move(self, *arguments: Any) -> Any:
            moved = self._ring.move(*arguments)
            self._connection.ring = self._ring
            happens()
            return moved

    def interrupted(connection: Attended, *arguments: Any) -> None:
        patch.setattr(Attended, "move", move)
        connection.ring = Ring(connection)  # type: ignore[assignment]
        connection.move(*arguments)

    patch.setattr(Attended, "move", interrupted)


def test_calls_that_were_not_launched_run_at_the_next_executor(
    executor: Supervised, gate: Gate, ledger: Path
) -> None:
    once = executor.connect("once")
    launched = busy(executor, gate)
    waiting = [once.spawn(x) for x in range(1, 21)]

    executor.kill_executor()

    assert [call.get() for call in waiting] == [10 * x for x in range(1, 21)]
    with pytest.raises(errors.ExecutorGone, match="may or may not have run"):
        launched.get()
    assert executed(ledger) == Counter(range(21))


def test_launched_calls_of_an_idempotent_function_run_again(
    executor: Supervised, gate: Gate, ledger: Path
) -> None:
    held = executor.connect("held_often")
    calls = [held.spawn(x) for x in (1, 2)]
    gate.arrived()

    executor.kill_executor()
    with ThreadPoolExecutor(1) as threads:
        got = threads.submit(shmbatch.FunctionCall.gather, *calls)
        gate.arrived()
        gate.open(2)  # they may come in two batches
        assert got.result(PATIENCE_S) == [10, 20]

    assert executed(ledger)[1] == 2


@pytest.mark.slow
def test_inputs_that_were_lent_run_again_as_they_were(gate: Gate) -> None:
    executor = Supervised("isolating.py", "isolating")
    try:
        held = executor.connect("held")
        rows = [np.full(3, x, np.float32) for x in (1, 2)]
        first = held.spawn(rows[0])
        assert gate.arrived() == [[1, 1, 1]]
        second = held.spawn(rows[1])

        executor.kill_executor()
        with ThreadPoolExecutor(1) as threads:
            got = threads.submit(shmbatch.FunctionCall.gather, first, second)
            assert gate.arrived()[0] == [1, 1, 1]
            gate.open(2)  # they may come in two batches
            assert np.array_equal(got.result(PATIENCE_S), rows)
    finally:
        executor.kill()


@pytest.mark.slow
def test_a_call_that_kills_three_executors_does_not_kill_a_fourth(
    executor: Supervised, gate: Gate, ledger: Path
) -> None:
    held = executor.connect("held_often")
    with ThreadPoolExecutor(1) as threads:
        failed = threads.submit(held.remote, 1)
        for _ in range(3):
            assert gate.arrived() == [1]
            executor.kill_executor()
        assert isinstance(failed.exception(PATIENCE_S), errors.ExecutorGone)
    assert executed(ledger) == {1: 3}
    assert executor.connect("once").remote(2) == 20


def test_finished_results_are_delivered_and_do_not_run_again(
    executor: Supervised, gate: Gate, ledger: Path
) -> None:
    once = executor.connect("once")
    ring = once.connect().ring
    calls = [once.spawn(x) for x in range(8)]
    processes.wait_until(
        lambda: all(ring.state(call._ticket) == DONE for call in calls), "all are done"
    )
    executor.kill_executor()
    assert once.remote(8) == 80
    assert [call.get() for call in calls] == [10 * x for x in range(8)]
    assert executed(ledger) == Counter(range(9))


def test_whoever_waits_notices_nothing(executor: Supervised, gate: Gate, ledger: Path) -> None:
    """Threads in remote, get, map and for a slot; tasks of an event loop in the same."""
    once, often, narrow = (executor.connect(name) for name in ("once", "often", "narrow"))
    launched = busy(executor, gate)
    together = threading.Barrier(7)

    def remote(x: int) -> Any:
        together.wait()
        return once.remote(x)

    def mapped() -> list[Any]:
        together.wait()
        return list(often.map(range(100, 140)))

    def full() -> list[Any]:
        together.wait()
        return [call.get() for call in [narrow.spawn(x) for x in range(200, 206)]]

    async def tasks() -> list[Any]:
        async def drained(results: Any) -> list[Any]:
            return [result async for result in results]

        return await asyncio.gather(
            *(once.remote.aio(x) for x in range(300, 310)),
            drained(often.map.aio(range(400, 420), order_outputs=False)),
            *(narrow.remote.aio(x) for x in range(500, 505)),
        )

    def loop() -> list[Any]:
        together.wait()
        return asyncio.run(tasks())

    with ThreadPoolExecutor(6) as threads:
        remotes = [threads.submit(remote, x) for x in (1, 2, 3)]
        others = [threads.submit(each) for each in (mapped, full, loop)]
        together.wait()
        executor.kill_executor()
        assert [each.result(PATIENCE_S) for each in remotes] == [10, 20, 30]
        assert others[0].result(PATIENCE_S) == [10 * x for x in range(100, 140)]
        assert others[1].result(PATIENCE_S) == [10 * x for x in range(200, 206)]
        results = others[2].result(PATIENCE_S)
        assert sorted(results.pop(10)) == [10 * x for x in range(400, 420)]
        assert results == [10 * x for x in (*range(300, 310), *range(500, 505))]
    with pytest.raises(errors.ExecutorGone):
        launched.get()
    assert max(executed(ledger).values()) == 1


def test_a_handle_that_nobody_waited_on_goes_on_without_an_error(
    executor: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an event loop as well, which then helps the next executor once for all its tasks."""
    once = executor.connect("once")
    assert once.remote(1) == 10
    helps: list[int] = []
    help_one = succession.Succession.help

    def helped(*arguments: Any) -> None:
        helps.append(1)
        help_one(*arguments)

    async def calls() -> list[Any]:
        with executor.suspended():
            executor.kill_executor()
            tasks = [asyncio.ensure_future(once.remote.aio(x)) for x in range(100)]
            for _ in range(4):
                await asyncio.sleep(0)
            assert 0 < len(helps) < 10
        return await asyncio.gather(*tasks)

    monkeypatch.setattr(succession.Succession, "help", helped)
    assert asyncio.run(calls()) == [10 * x for x in range(100)]
    assert once.remote(2) == 20


def test_each_caller_waits_for_the_next_executor_as_long_as_it_would_for_its_call(
    executor: Supervised, gate: Gate, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awaits = threading.Event()
    await_executor = Attended.await_executor

    def awaited(*arguments: Any) -> None:
        awaits.set()
        await_executor(*arguments)

    once = executor.connect("once")
    launched = busy(executor, gate)
    kept, cancelled = once.spawn(1), once.spawn(2)
    given_up, late = once.with_options(timeout=0.1), once.with_options(deadline_ms=50)
    with ThreadPoolExecutor(1) as threads, executor.suspended():  # no other one is started
        executor.kill_executor()
        with no_descriptors_left():
            assert not kept.done()
        assert cancelled.cancel()
        with pytest.raises(errors.CallTimeout):
            kept.get(timeout=0.05)
        with pytest.raises(errors.CallTimeout):
            given_up.remote(3)
        with pytest.raises(errors.DeadlineExceeded):
            late.remote(4)
        with pytest.raises(errors.CallTimeout):
            asyncio.run(given_up.remote.aio(5))
        with pytest.raises(errors.DeadlineExceeded):
            asyncio.run(late.remote.aio(6))
        with pytest.raises(errors.ExecutorNotFound):
            executor.connect("once", timeout=0)
        assert not kept.done()
        monkeypatch.setattr(Attended, "await_executor", awaited)
        connected = threads.submit(executor.connect, "once", timeout=PATIENCE_S)
        awaits.wait()  # which holds up no call
        anew = handle("ledger.once", arrays="native", wait=None).with_options(timeout=2)
        assert anew.spawn(7).cancel()
    assert connected.result(PATIENCE_S)
    assert kept.get() == 10
    with pytest.raises(errors.ExecutorGone):
        launched.get()
    assert executed(ledger) == Counter([0, 1])


def test_without_a_supervisor_left_all_waiters_are_told(executor: Supervised, gate: Gate) -> None:
    once = executor.connect("once")
    launched = busy(executor, gate)
    waiting = [once.spawn(x) for x in range(3)]
    with ThreadPoolExecutor(2) as threads:
        remote = threads.submit(once.remote, 4)
        task = threads.submit(asyncio.run, once.remote.aio(5))
        executor.kill()
        for error in (remote.exception(PATIENCE_S), task.exception(PATIENCE_S)):
            assert isinstance(error, errors.ExecutorGone)
    for call in (launched, *waiting):
        with pytest.raises(errors.ExecutorGone):
            call.get()
    with pytest.raises(errors.ExecutorNotFound):
        once.remote(1)


def test_an_executor_that_was_stopped_has_no_successor(executor: Supervised) -> None:
    once = executor.connect("once")
    assert once.remote(1) == 10
    connection = once.connect()
    shmbatch.stop("ledger")
    with pytest.raises((errors.ExecutorClosed, errors.ExecutorGone)):
        once.remote(2)
    with pytest.raises(errors.ExecutorClosed, match="before it took this call"):
        connection.is_attended()  # as who waited for a slot
    with pytest.raises(errors.ExecutorNotFound):
        once.remote(3)


def test_a_forked_child_has_calls_of_its_own(executor: Supervised) -> None:
    once = executor.connect("once")
    assert once.remote(1) == 10
    executor.kill_executor()
    child = os.fork()
    if child == 0:
        try:
            anew = executor.connect("once")  # the parent's connection is not the child's
            os._exit(0 if (anew.remote(2), once.remote(3)) == (20, 30) else 1)
        finally:
            os._exit(2)
    assert once.remote(3) == 30
    assert os.waitpid(child, 0)[1] == 0


async def cancelled(once: Any) -> None:
    """Cancel many first calls; of their threads none is left waiting."""
    tasks = [asyncio.ensure_future(once.remote.aio(9)) for _ in range(40)]
    await asyncio.sleep(0)  # so that each has begun
    for task in tasks:
        task.cancel()
    assert {type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    await asyncio.to_thread(int)


def test_who_comes_between_two_executors_waits_for_the_next_one(executor: Supervised) -> None:
    once = executor.connect("once")
    assert once.remote(1) == 10
    processes.hang_up()  # and has no connection any more, as after a reload that it missed
    with ThreadPoolExecutor(2) as threads:
        with executor.suspended():
            executor.kill_executor()
            patient = threads.submit(once.remote, 2)
            task = threads.submit(lambda: asyncio.run(once.remote.aio(3)))
            with pytest.raises(errors.CallTimeout, match=r"no executor within 0\.1 seconds"):
                once.with_options(timeout=0.1, deadline_ms=1000).remote(4)
            with pytest.raises(errors.DeadlineExceeded, match="within 50 ms, so it never runs"):
                once.with_options(deadline_ms=50).remote(4)
            with pytest.raises(errors.CallTimeout, match=r"no executor within 0\.1 seconds"):
                asyncio.run(once.with_options(timeout=0.1).remote.aio(4))
            asyncio.run(cancelled(once))
            with pytest.raises(errors.ExecutorNotFound):
                executor.connect("once", timeout=0)
        assert (patient.result(PATIENCE_S), task.result(PATIENCE_S)) == (20, 30)


@pytest.mark.slow
def test_nothing_is_left_of_executors_that_died(executor: Supervised) -> None:
    once = executor.connect("once")
    assert asyncio.run(once.remote.aio(1)) == 10
    before = processes.descriptors()
    for number in range(4):
        executor.kill_executor()
        assert once.remote(number) == 10 * number
        assert asyncio.run(once.remote.aio(number)) == 10 * number
    gc.collect()  # closed event loops are cycles
    assert len(processes.descriptors()) <= len(before)


@pytest.mark.slow
def test_a_next_executor_with_another_signature_gets_no_calls(
    tmp_path: Path, gate: Gate, ledger: Path
) -> None:
    file = tmp_path / "changing.py"
    source = (processes.APPS / "ledger.py").read_text()
    file.write_text(source)
    executor = Supervised(str(file), "changing")
    try:
        once = executor.connect("once")
        launched = busy(executor, gate)
        waiting = once.spawn(1)
        file.write_text(source.replace("def once(xs: list[int])", "def once(xs: list[str])"))
        executor.kill_executor()
        with pytest.raises(errors.ExecutorGone, match=r"cannot go to the next: .*once"):
            waiting.get()
        with pytest.raises(errors.ExecutorGone):
            launched.get()
    finally:
        executor.kill()


@pytest.mark.slow
def test_many_deaths_under_load_lose_nothing(executor: Supervised, ledger: Path) -> None:
    """Every call ends once; it ran at most once, or at least once where that was asked for."""
    once, often = executor.connect("once"), executor.connect("often")
    stop = threading.Event()
    lost: list[int] = []

    def call(first: int) -> int:
        x = first
        while not stop.is_set():
            calls = [once.spawn(x + i) for i in range(10)]
            for i, each in enumerate(calls):
                try:
                    assert each.get() == 10 * (x + i)
                except errors.ExecutorGone:
                    lost.append(x + i)
            assert list(often.map(range(-x - 10, -x))) == [10 * y for y in range(-x - 10, -x)]
            x += 10
        return x

    async def call_aio(first: int) -> int:
        x = first
        while not stop.is_set():
            results = await asyncio.gather(
                *(once.remote.aio(x + i) for i in range(10)), return_exceptions=True
            )
            for i, result in enumerate(results):
                if isinstance(result, errors.ExecutorGone):
                    lost.append(x + i)
                else:
                    assert result == 10 * (x + i)
            x += 10
        return x

    with ThreadPoolExecutor(3) as threads:
        ends = [threads.submit(call, 1_000_000), threads.submit(call, 2_000_000)]
        ends.append(threads.submit(lambda: asyncio.run(call_aio(3_000_000))))
        try:
            for _ in range(6):
                executor.kill_executor()
                before = ledger.stat().st_size  # what grows from here on, the next one writes
                processes.wait_until(
                    lambda: ledger.stat().st_size > before + 5000,  # noqa: B023
                    "calls run",
                )
        finally:
            stop.set()
        last = [end.result(PATIENCE_S) for end in ends]
    counts = executed(ledger)
    for first, end in zip((1_000_000, 2_000_000, 3_000_000), last, strict=True):
        for x in range(first, end):
            assert counts[x] == 1 or (x in lost and counts[x] == 0)
        if first < 3_000_000:
            assert all(counts[-x] >= 1 for x in range(first + 1, end + 1))


def test_a_signal_handler_may_call_and_raise_wherever_it_interrupts_who_helps(
    executor: Supervised, monkeypatch: pytest.MonkeyPatch, ledger: Path
) -> None:
    """Its call is served at once, and the one that it interrupted goes on as if nothing had been.

    And so does one that it broke off with a KeyboardInterrupt just when the ring had moved.
    """
    once = executor.connect("once")
    connection = once.connect()
    greet = succession.greet
    interrupted: list[int] = []

    def greeted(*arguments: Any) -> int:
        pidfd = greet(*arguments)
        monkeypatch.setattr(succession, "greet", greet)
        interrupted.append(once.remote(2))
        return pidfd

    monkeypatch.setattr(succession, "greet", greeted)
    executor.kill_executor()
    assert once.remote(1) == 10
    assert interrupted == [20]

    def moved() -> None:
        interrupted.append(once.remote(4))
        raise KeyboardInterrupt

    executor.kill_executor()
    kept = once.spawn(3)
    interrupted_at_the_move(monkeypatch, moved)
    with pytest.raises(KeyboardInterrupt):
        kept.get()
    assert kept.get() == 30
    assert interrupted == [20, 40]
    assert once.connect() is connection
    assert executed(ledger) == Counter(range(1, 5))


def test_an_executor_that_refuses_for_now_is_asked_again(
    executor: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = executor.connect("once")
    assert once.remote(1) == 10
    reasons = [errors.HandshakeError("has no room"), errors.HandshakeError("connect again")]
    answered = succession.answered

    def refused(*arguments: Any) -> Any:
        if reasons:
            raise reasons.pop()
        return answered(*arguments)

    monkeypatch.setattr(succession, "answered", refused)
    monkeypatch.setattr(succession, "_REFUSED_NS", 1)
    executor.kill_executor()
    assert once.remote(2) == 20
    assert not reasons


@pytest.mark.slow
def test_hanging_up_ends_the_wait_for_the_next_executor(
    executor: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = executor.connect("once")
    connection = once.connect()
    sleep, children = succession._sleep, []

    def hangs_up(fds: tuple[int, ...], until_ns: int) -> bool:
        greeted = connection._succession._greeted
        if greeted is not None and not connection.dead:
            child = os.fork()
            if child == 0:  # whose copies are closed as well
                connection.close()
                os._exit(0 if greeted[0].fileno() == -1 else 1)
            children.append(child)
            connection.close()  # as another thread does at the end of a run
        return sleep(fds, until_ns)

    monkeypatch.setattr(succession, "_sleep", hangs_up)
    executor.kill_executor()
    with pytest.raises(errors.ExecutorGone):
        once.remote(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0]


@pytest.mark.slow
def test_an_executor_that_always_refuses_gets_no_calls(
    executor: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = executor.connect("once")
    reasons = [errors.HandshakeError("has no room") for _ in range(100)]

    def refused(*arguments: Any) -> Any:
        raise reasons.pop()

    monkeypatch.setattr(succession, "answered", refused)
    monkeypatch.setattr(succession, "_REFUSED_NS", 1)
    executor.kill_executor()
    with pytest.raises(errors.ExecutorGone, match="cannot go to the next: has no room"):
        once.remote(3)
    assert len(reasons) == 60
    assert once.remote(4) == 40
