"""Making calls: one, many, from threads, event loops and forks, against a real executor."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import calls
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.client import call as call_module
from shmbatch.client import connecting as connecting_module
from shmbatch.client import connection as connection_module
from shmbatch.client import listener as listener_module
from shmbatch.client import pool
from shmbatch.client.function import Function
from shmbatch.client.slots import Slots
from shmbatch.protocol._core import DONE, Spinning
from shmbatch.protocol.clock import now_ns
from tests import processes
from tests.processes import PATIENCE_S, Gate, Program, Served


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    """One executor for all tests of this module, under each transport."""
    with processes.served("calls.py", "calls", SHMBATCH_TEST_SELF="calls.add") as executor:
        yield executor


@pytest.fixture
def add(executor: Served) -> shmbatch.Function:
    return executor.connect("add")


# ---- one call ------------------------------------------------------------------------------


def test_a_call_returns_its_own_result(add: shmbatch.Function) -> None:
    assert add.remote(1, 300) == 301
    assert add.remote(xs=2, ys=200) == 202
    assert add.remote(3, ys=100) == 103


def test_a_decorated_function_is_a_handle_where_its_file_is_imported(executor: Served) -> None:
    assert calls.add.remote(2, 3) == 5
    assert calls.add.local([1, 2], [3, 4]) == [4, 6]


def test_an_async_function_is_called_like_any_other(executor: Served) -> None:
    assert list(executor.connect("add_later").map(range(30), range(30))) == list(range(0, 60, 2))


def test_positional_and_keyword_calls_share_a_batch(executor: Served) -> None:
    pair = executor.connect("pair")
    first = pair.spawn(20)
    second = pair.spawn(xs=22)
    assert (first.get(), second.get()) == (42, 42)


def test_a_spawned_call_can_be_asked_for_again_and_again(add: shmbatch.Function) -> None:
    call = add.spawn(1, 2)
    assert call.get() == 3
    assert call.get(timeout=0) == 3
    assert call.done()
    assert repr(call) == "<FunctionCall 'calls.add' done>"


def test_an_error_that_was_raised_is_let_go_of_with_its_call(add: shmbatch.Function) -> None:
    """Its traceback has the frame of `get`, which has the call, which has the error."""
    late = add.with_options(deadline_ms=1e-6)

    def raised(ask: Callable[[], object]) -> weakref.ref[BaseException]:
        try:
            ask()
        except errors.DeadlineExceeded as error:
            return weakref.ref(error)
        raise AssertionError

    async def awaited() -> weakref.ref[BaseException]:
        try:
            await late.spawn(1, 2).get.aio()
        except errors.DeadlineExceeded as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        assert raised(lambda: late.spawn(1, 2).get())() is None
        assert raised(lambda: list(late.map([1], [2])))() is None
        assert asyncio.run(awaited())() is None
    finally:
        gc.enable()


def test_a_connection_that_is_let_go_of_is_not_followed_again(executor: Served) -> None:
    """Whatever another thread, which has it still, does between any two lines of `forget`."""
    add = executor.connect("add")
    connection = add.connect()
    lines = []

    def interfere(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is Function.forget.__code__:
            if event == "line":
                lines.append(frame.f_lineno)
                add._follow(connection)
            return interfere
        return None

    sys.settrace(interfere)
    try:
        add.forget(connection)
    finally:
        sys.settrace(None)

    assert len(lines) >= 3
    assert add.remote.connection is None
    assert add.spawn.connection is None
    assert add.remote(1, 2) == 3


def test_a_handle_that_was_interrupted_while_it_connected_follows_with_all_verbs(
    executor: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = executor.connect("add")
    lines: list[int] = []

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is Function._follow.__code__:
            if event == "line":
                lines.append(frame.f_lineno)
                if len(lines) == at:
                    raise KeyboardInterrupt
            return interrupt
        return None

    at = 0  # the line before which the signal comes
    while True:
        at += 1
        lines.clear()
        add.forget(add.connect())
        sys.settrace(interrupt)
        try:
            add.connect()
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(None)
        assert add.remote(xs=1, ys=2) == 3  # the long way, on which it is mended
        assert add.remote.connection is add.spawn.connection is add.live()
    assert at > 4


def test_a_signal_handler_may_call_while_its_thread_connects(
    executor: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, other = (
        connecting_module.handle("calls.add", arrays="native", wait="spin") for _ in range(2)
    )
    connect = pool.connect
    interrupted: list[int] = []

    def connected(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(pool, "connect", connect)
        interrupted.append(other.with_options(timeout=1).remote(1, 2))
        return connect(*arguments, **options)

    monkeypatch.setattr(pool, "connect", connected)
    assert add.remote(3, 4) == 7
    assert interrupted == [3]
    assert add.connect() is other.connect(), "and the pool knows both"


def test_a_call_is_done_only_when_its_batch_is(executor: Served, module_gate: Gate) -> None:
    call = executor.connect("held").spawn(1)
    assert module_gate.arrived() == [1]
    assert not call.done()
    module_gate.open()
    assert call.get() == 10
    assert call.done()


def test_calls_made_while_the_executor_is_busy_share_the_next_batch(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    pending = [held.spawn(1)]
    assert module_gate.arrived() == [1]
    pending += [held.spawn(x) for x in (2, 3, 4)]
    module_gate.open(2)
    assert module_gate.arrived() == [2, 3, 4]
    assert [call.get() for call in pending] == [10, 20, 30, 40]


def test_aio_twins_do_what_their_originals_do(add: shmbatch.Function) -> None:
    async def main() -> None:
        assert await add.remote.aio(1, ys=2) == 3
        call = await add.spawn.aio(3, 4)
        assert await call.get.aio() == 7
        assert [y async for y in add.map.aio([1, 2], [3, 4])] == [4, 6]
        assert [y async for y in add.starmap.aio([(1, 3), (2, 4)])] == [4, 6]
        assert await add.for_each.aio([1, 2], [3, 4]) is None

    asyncio.run(main())


def test_results_reach_the_awaiting_task_that_asked(add: shmbatch.Function) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(add.remote.aio(x, 1000) for x in range(500)))

    assert asyncio.run(main()) == [1000 + x for x in range(500)]


# ---- timeouts, cancelling, dropping ---------------------------------------------------------


KEPT = (
    r"^'calls\.held' gave no result within 0\.01 seconds; the call goes on, "
    r"get it again or give it more time with timeout=$"
)
GIVEN_UP = (
    r"^'calls\.\w+' gave no result within 0\.02 seconds and the call is given up; "
    r"give it more time with timeout=$"
)


def test_who_slept_for_a_call_after_a_spin_in_vain_does_not_spin_for_the_next(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    connection = held.connect()
    connection.ring.spinning = connection.spinning = how = Spinning(1, True)
    call = held.spawn(1)
    assert module_gate.arrived() == [1]
    opener = threading.Timer(0.02, module_gate.open)
    opener.start()

    outcome = call.get()  # not in an assertion, which would bind it first: that does not spin

    opener.join()
    assert outcome == 10
    assert (how.won, how.vain, how.spin_ns) == (0, 1, 0)


def test_get_with_a_timeout_keeps_the_call(executor: Served, module_gate: Gate) -> None:
    call = executor.connect("held").spawn(4)
    module_gate.arrived()
    with pytest.raises(errors.CallTimeout, match=KEPT):
        call.get(timeout=0.01)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    module_gate.open()
    assert call.get() == 40


def test_awaiting_get_with_a_timeout_keeps_the_call(executor: Served, module_gate: Gate) -> None:
    async def main() -> int:
        call = await executor.connect("held").spawn.aio(4)
        await asyncio.to_thread(module_gate.arrived)
        with pytest.raises(errors.CallTimeout, match=KEPT):
            await call.get.aio(timeout=0.01)
        module_gate.open()
        result: int = await call.get.aio(timeout=PATIENCE_S)
        return result

    assert asyncio.run(main()) == 40


def test_a_timeout_before_launch_means_that_the_call_never_runs(executor: Served) -> None:
    pair = executor.connect("pair")
    with pytest.raises(errors.CallTimeout, match=GIVEN_UP):
        pair.with_options(timeout=0.02).remote(1)
    # Were the first still waiting, it would be this one's company.
    with pytest.raises(errors.CallTimeout):
        pair.with_options(timeout=0.02).remote(2)
    assert executor.statistics("pair")["batch_sizes"].keys() <= {"2"}


def test_an_awaited_call_that_times_out_never_runs(executor: Served) -> None:
    pair = executor.connect("pair").with_options(timeout=0.02)

    async def main() -> None:
        for x in (1, 2):
            with pytest.raises(errors.CallTimeout):
                await pair.remote.aio(x)

    asyncio.run(main())


def test_the_timeout_of_a_spawned_call_runs_from_its_submission(executor: Served) -> None:
    call = executor.connect("never").with_options(timeout=0.02).spawn(1)
    with pytest.raises(errors.CallTimeout, match=GIVEN_UP):
        call.get(timeout=PATIENCE_S)
    with pytest.raises(errors.CallTimeout):
        call.get()  # it is over
    assert call.done()


def test_a_cancelled_call_never_runs(executor: Served) -> None:
    pair = executor.connect("pair")
    call = pair.spawn(1)
    assert call.cancel() is True
    with pytest.raises(errors.CallCancelled, match=r"^the call of 'calls\.pair' was cancelled$"):
        call.get()
    assert call.cancel() is False
    others = [pair.spawn(x) for x in (20, 22)]
    assert [other.get() for other in others] == [42, 42]


def test_cancelling_a_launched_call_leaves_its_batch_mates_alone(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    first = held.spawn(1)
    module_gate.arrived()
    mates = [held.spawn(x) for x in (2, 3)]
    module_gate.open()
    assert module_gate.arrived() == [2, 3]
    assert mates[0].cancel() is False  # it runs
    module_gate.open()
    assert first.get() == 10
    assert mates[1].get() == 30
    with pytest.raises(errors.CallCancelled):
        mates[0].get()


def test_cancelling_a_call_that_is_done_keeps_its_result(add: shmbatch.Function) -> None:
    call = add.spawn(1, 2)
    assert call.get() == 3
    assert call.cancel() is False
    assert call.get() == 3


def test_cancelling_wakes_the_thread_and_the_task_that_wait(executor: Served) -> None:
    call = executor.connect("never").spawn(1)

    async def wait_for_it() -> str:
        waiting = asyncio.create_task(call.get.aio())
        await asyncio.sleep(0)
        await asyncio.to_thread(started.wait)
        call.cancel()
        try:
            return str(await waiting)
        except errors.CallCancelled as error:
            return str(error)

    started = threading.Event()

    def wait_in_thread() -> str:
        started.set()
        try:
            return str(call.get())
        except errors.CallCancelled as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        in_thread = threads.submit(wait_in_thread)
        assert asyncio.run(wait_for_it()) == "the call of 'calls.never' was cancelled"
        assert in_thread.result(PATIENCE_S) == "the call of 'calls.never' was cancelled"


def test_cancelling_a_task_cancels_its_call(executor: Served) -> None:
    pair = executor.connect("pair")

    async def main() -> list[int]:
        task = asyncio.create_task(pair.remote.aio(1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.gather(pair.remote.aio(20), pair.remote.aio(22))

    assert asyncio.run(main()) == [42, 42]


def test_awaiting_a_call_under_asyncio_timeout_gives_its_slot_back(executor: Served) -> None:
    never = executor.connect("never")
    connection = never.connect()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await never.remote.aio(1)

    asyncio.run(main())
    processes.wait_until(
        lambda: connection.ring.free_slots == connection.capacity, "the slot comes back"
    )


def test_a_dropped_call_gives_its_slot_back(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held")
    ring = held.connect().ring
    launched = held.spawn(1)
    module_gate.arrived()
    waiting = held.spawn(2)
    assert ring.free_slots == 2
    del launched, waiting
    module_gate.open()  # the dropped, launched one
    assert held.connect().ring is ring
    processes.wait_until(lambda: ring.free_slots == 4, "both slots come back")
    last = held.spawn(3)
    assert module_gate.arrived() == [3]  # and not 2
    module_gate.open()
    assert last.get() == 30


# ---- deadlines -------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes it ten minutes later for all calls of this process."""

    def pass_time() -> None:
        for module in (call_module, connection_module, listener_module):
            monkeypatch.setattr(module, "now_ns", lambda: now_ns() + 600_000_000_000)

    return pass_time


def slots_come_back(function: shmbatch.Function) -> None:
    connection = function.connect()
    processes.wait_until(
        lambda: connection.ring.free_slots == connection.capacity, "the slots come back"
    )


TOO_LATE = r"'calls\.\w+' did not launch this call within [\d.]+ ms, so it never runs; "


def test_a_call_that_is_not_launched_by_its_deadline_never_runs(executor: Served) -> None:
    pair = executor.connect("pair")
    hasty = pair.with_options(deadline_ms=20)
    for _ in range(2):  # were the first still waiting, it would be the second one's company
        with pytest.raises(errors.DeadlineExceeded, match=TOO_LATE):
            hasty.remote(1)
    call = hasty.spawn(1)
    with pytest.raises(TimeoutError, match="give it more time with deadline_ms="):
        call.get()
    with pytest.raises(errors.DeadlineExceeded):
        call.get()
    assert call.done()
    assert call.cancel() is False
    others = [pair.spawn(x) for x in (20, 22)]
    assert shmbatch.FunctionCall.gather(*others) == [42, 42]
    slots_come_back(pair)


def test_an_awaited_call_that_is_not_launched_by_its_deadline_never_runs(
    executor: Served,
) -> None:
    pair = executor.connect("pair")
    hasty = pair.with_options(deadline_ms=20)

    async def main() -> list[int]:
        for _ in range(2):
            with pytest.raises(errors.DeadlineExceeded, match=TOO_LATE):
                await hasty.remote.aio(1)
        call = await hasty.spawn.aio(1)
        with pytest.raises(errors.DeadlineExceeded):
            await call.get.aio()
        assert call.done()
        return await asyncio.gather(pair.remote.aio(20), pair.remote.aio(22))

    assert asyncio.run(main()) == [42, 42]
    slots_come_back(pair)


def test_a_caller_hears_at_the_deadline_though_the_executor_is_busy(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    hasty = held.with_options(deadline_ms=20)
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    with pytest.raises(errors.DeadlineExceeded):
        hasty.remote(2)
    results = list(hasty.map([3, 4], return_exceptions=True))
    assert [type(result) for result in results] == [errors.DeadlineExceeded] * 2
    results = list(hasty.map([3, 4], return_exceptions=True, order_outputs=False))
    assert [type(result) for result in results] == [errors.DeadlineExceeded] * 2

    async def main() -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await hasty.remote.aio(5)
        async for result in hasty.map.aio([6, 7], return_exceptions=True, order_outputs=False):
            assert isinstance(result, errors.DeadlineExceeded)

    asyncio.run(main())
    module_gate.open()
    assert first.get() == 10
    last = held.spawn(8)
    assert module_gate.arrived() == [8]  # and none of the others
    module_gate.open()
    assert last.get() == 80


def test_the_executor_passes_over_a_call_whose_deadline_has_passed(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_alone")
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    late = held.with_options(deadline_ms=0.001).spawn(2)
    ring = held.connect().ring
    module_gate.open()
    processes.wait_until(lambda: ring.state(late._ticket) == DONE, "the executor says so")
    with pytest.raises(errors.DeadlineExceeded, match=TOO_LATE):
        late.get()
    assert first.get() == 10
    slots_come_back(held)


def test_a_deadline_does_nothing_to_a_call_that_was_launched_in_time(
    executor: Served, module_gate: Gate, later: Callable[[], None]
) -> None:
    held = executor.connect("held").with_options(deadline_ms=60_000)
    call = held.spawn(1)
    assert module_gate.arrived() == [1]
    later()
    assert not call.done()

    async def main() -> int:
        waiting = asyncio.create_task(call.get.aio())
        await asyncio.sleep(0)
        module_gate.open()
        return await waiting

    with ThreadPoolExecutor(1) as threads:
        in_thread = threads.submit(call.get)
        assert asyncio.run(main()) == 10
        assert in_thread.result(PATIENCE_S) == 10


def test_get_with_a_timeout_keeps_a_call_with_a_deadline(
    executor: Served, later: Callable[[], None]
) -> None:
    call = executor.connect("never").with_options(deadline_ms=60_000).spawn(1)
    with pytest.raises(errors.CallTimeout):
        call.get(timeout=0)
    assert not call.done()
    later()
    with pytest.raises(errors.DeadlineExceeded):
        call.get(timeout=0)


@pytest.mark.parametrize(
    ("timeout", "deadline_ms", "late", "full"),
    [
        (0.01, 60_000, errors.CallTimeout, errors.RingFull),
        (60, 10, errors.DeadlineExceeded, errors.DeadlineExceeded),
        (None, 10, errors.DeadlineExceeded, errors.DeadlineExceeded),
    ],
)
def test_of_timeout_and_deadline_the_earlier_says_what_it_is(
    executor: Served,
    module_gate: Gate,
    timeout: float | None,
    deadline_ms: float,
    late: type[Exception],
    full: type[Exception],
) -> None:
    options: dict[str, Any] = {"timeout": timeout, "deadline_ms": deadline_ms}
    never = executor.connect("never").with_options(**options)
    held = executor.connect("held_alone")
    pending = [held.spawn(x) for x in (1, 2)]
    assert module_gate.arrived() == [1]
    crowded = held.with_options(**options)

    async def main() -> None:
        for function, error in ((never, late), (crowded, full)):
            with pytest.raises(error):
                await function.remote.aio(1)

    asyncio.run(main())
    with pytest.raises(late):
        never.remote(1)
    with pytest.raises(late):
        never.spawn(1).get()
    with pytest.raises(full):
        crowded.remote(3)
    with pytest.raises(full):
        crowded.spawn(3)
    assert [type(r) for r in crowded.map([3], return_exceptions=True)] == [full]
    module_gate.open(2)
    assert shmbatch.FunctionCall.gather(*pending) == [10, 20]
    assert module_gate.arrived() == [2]


def test_options_that_are_not_given_stay(executor: Served) -> None:
    add = executor.connect("add")
    one = add.with_options(timeout=PATIENCE_S).with_options(deadline_ms=20_000)
    other = add.with_options(deadline_ms=20_000).with_options(timeout=PATIENCE_S)
    for handle in (one, other, pickle.loads(pickle.dumps(one)), one.with_options()):
        assert handle.remote(1, 2) == 3
        assert (handle._timeout, handle._deadline_ms) == (PATIENCE_S, 20_000)
    assert one.with_options(timeout=None)._timeout is None
    assert one.with_options(timeout=None)._deadline_ms == 20_000
    assert one.with_options(deadline_ms=None)._deadline_ms is None
    assert (add._timeout, add._deadline_ms) == (None, None)


# ---- gathering -------------------------------------------------------------------------------

gather = shmbatch.FunctionCall.gather


def test_gather_returns_results_of_several_functions_in_order(
    executor: Served, module_gate: Gate
) -> None:
    add, held = executor.connect("add"), executor.connect("held")
    pending = [held.spawn(1), add.spawn(2, 3), executor.connect("add_later").spawn(4, 5)]
    assert module_gate.arrived() == [1]
    module_gate.open()
    assert gather(*pending) == [10, 5, 9]
    assert gather(*pending) == [10, 5, 9]
    assert gather() == []

    async def main() -> list[int]:
        more = [await add.spawn.aio(x, 1) for x in range(200)]
        results: list[int] = await gather.aio(*more)
        return results

    assert asyncio.run(main()) == list(range(1, 201))


def test_gather_raises_the_first_failure_and_leaves_the_others_alone(executor: Served) -> None:
    add, fails = executor.connect("add"), executor.connect("fails")
    pending = [add.spawn(1, 1), fails.spawn(7), fails.spawn(8), add.spawn(2, 2)]
    with pytest.raises(KeyError):
        gather(*pending)
    with pytest.raises(KeyError):
        asyncio.run(gather.aio(*pending))
    assert pending[3].get() == 4
    found = gather(*pending, return_exceptions=True)
    assert [type(each) for each in found] == [int, KeyError, KeyError, int]
    found = asyncio.run(gather.aio(*pending, return_exceptions=True))
    assert [type(each) for each in found] == [int, KeyError, KeyError, int]


def test_gather_with_a_timeout_keeps_all_calls(executor: Served, module_gate: Gate) -> None:
    held, add = executor.connect("held"), executor.connect("add")
    pending = [add.spawn(1, 1), held.spawn(1)]
    assert module_gate.arrived() == [1]
    for exceptions in (False, True):
        with pytest.raises(errors.CallTimeout):
            gather(*pending, timeout=0.01, return_exceptions=exceptions)
        with pytest.raises(errors.CallTimeout):
            asyncio.run(gather.aio(*pending, timeout=0.01, return_exceptions=exceptions))
    module_gate.open()
    assert gather(*pending, timeout=PATIENCE_S) == [2, 10]


def test_gather_takes_calls_and_nothing_else(add: shmbatch.Function) -> None:
    pending = [add.spawn(1, 1)]
    with pytest.raises(errors.ConfigError, match=r"gather got a list; .* gather\(\*calls\)"):
        gather(pending)
    with pytest.raises(errors.ConfigError, match="gather got a int"):
        asyncio.run(gather.aio(*pending, 1))
    assert gather(*pending) == [2]


# ---- more calls than slots -------------------------------------------------------------------


def test_thousands_of_calls_are_outstanding_and_each_gets_its_own_result(
    executor: Served,
) -> None:
    add = executor.connect("add")
    connection = add.connect()
    assert connection.capacity == 64
    pending = [add.spawn(x, 1) for x in range(5000)]
    for x in (*range(1, 5000, 2), *range(4998, -1, -2)):
        assert pending[x].get() == x + 1
    assert connection.stash == {}


def test_dropped_calls_leave_nothing_of_their_stashed_results(executor: Served) -> None:
    add = executor.connect("add")
    connection = add.connect()
    pending = [add.spawn(x, 1) for x in range(1000)]
    assert len(connection.stash) > 900
    del pending[500:]
    assert len(connection.stash) <= 500
    pending.clear()
    assert connection.stash == {}
    slots_come_back(add)


def test_a_call_dropped_while_its_result_goes_to_the_stash_leaves_nothing_there(
    executor: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = executor.connect("add")
    connection = add.connect()
    pending = [add.spawn(x, 1) for x in range(connection.capacity)]
    processes.wait_until(lambda: len(connection.ring.finished(True)) == len(pending), "all done")
    take = connection.outcome

    def taken_and_dropped(ticket: int, spin_ns: int) -> Any:
        outcome = take(ticket, spin_ns)
        pending[:] = [call for call in pending if call._ticket != ticket]
        return outcome

    monkeypatch.setattr(connection, "outcome", taken_and_dropped)
    assert add.remote(2, 2) == 4  # makes room
    assert pending == []
    assert connection.stash == {}


class Interrupting:
    """Stands where calls are polled; raises, as a signal's handler may, before or after."""

    def __init__(self, ring: Any, *, after: bool) -> None:
        self._ring = ring
        self._after = after

    def poll(self, ticket: int, spin_ns: int) -> Any:
        if self._after:
            processes.wait_until(lambda: self._ring.state(ticket) == DONE, "done")
            self._ring.poll(ticket, spin_ns)
        raise KeyboardInterrupt


def test_a_signal_handler_that_raises_while_a_call_is_asked_for_loses_no_result(
    executor: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = executor.connect("add")
    ring, slots = add.connect().ring, add.connect().slots
    call = add.spawn(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(slots, "entrance", Interrupting(ring, after=False))
        with pytest.raises(KeyboardInterrupt):
            call.done()
    assert call.get(timeout=PATIENCE_S) == 3

    late = add.spawn(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(slots, "entrance", Interrupting(ring, after=True))
        with pytest.raises(KeyboardInterrupt):
            late.done()
    with pytest.raises(errors.CallCancelled, match="interrupted"):
        late.get(timeout=0)
    slots_come_back(add)


def test_more_calls_may_be_outstanding_than_there_are_slots(executor: Served) -> None:
    add = executor.connect("add")
    assert add.connect().capacity == 64
    pending = [add.spawn(x, 1) for x in range(1000)]
    assert [call.get() for call in pending] == [x + 1 for x in range(1000)]


def test_more_awaited_calls_may_be_outstanding_than_there_are_slots(executor: Served) -> None:
    add = executor.connect("add")

    async def main() -> None:
        pending = [await add.spawn.aio(x, 1) for x in range(300)]
        assert [await call.get.aio() for call in pending] == [x + 1 for x in range(300)]
        pending = [await add.spawn.aio(x, 1) for x in range(300)]
        assert await asyncio.gather(*(call.get.aio() for call in reversed(pending))) == [
            x + 1 for x in reversed(range(300))
        ]

    asyncio.run(main())


def test_a_full_ring_without_time_raises_ring_full(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held_alone")
    pending = [held.spawn(x) for x in (1, 2)]
    assert module_gate.arrived() == [1]
    message = "all 2 slots for 'calls.held_alone' are in use; .* slots="
    with pytest.raises(errors.RingFull, match=message):
        held.with_options(timeout=0).spawn(3)
    with pytest.raises(errors.RingFull, match=message):
        held.with_options(timeout=0.03).remote(3)

    async def main() -> None:
        with pytest.raises(errors.RingFull, match=message):
            await held.with_options(timeout=0).remote.aio(3)
        with pytest.raises(errors.RingFull, match=message):
            await held.with_options(timeout=0.03).spawn.aio(3)

    asyncio.run(main())
    module_gate.open(2)
    assert [call.get() for call in pending] == [10, 20]
    assert module_gate.arrived() == [2]


def test_who_is_interrupted_while_it_queues_for_a_slot_leaves_the_queue(
    executor: Served, module_gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = executor.connect("held_alone")
    pending = [held.spawn(x) for x in (1, 2)]
    assert module_gate.arrived() == [1]
    join = Slots.join

    def interrupted(slots: Slots, waiter: Any) -> None:
        join(slots, waiter)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            held.spawn(3)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(held.spawn.aio(3))
    module_gate.open(4)
    assert [call.get() for call in pending] == [10, 20]
    assert [held.with_options(timeout=PATIENCE_S).remote(x) for x in (4, 5)] == [40, 50]
    module_gate.reset()


def test_a_thread_that_waits_for_a_slot_gets_the_next_one(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_alone")
    pending = [held.spawn(x) for x in (1, 2)]
    assert module_gate.arrived() == [1]
    with ThreadPoolExecutor(4) as threads:
        more = [threads.submit(held.remote, x) for x in (3, 4, 5, 6)]
        for _ in range(5):
            module_gate.open()
            module_gate.arrived()
        module_gate.open()
        assert [each.result(PATIENCE_S) for each in more] == [30, 40, 50, 60]
    assert [call.get() for call in pending] == [10, 20]


def test_tasks_that_wait_for_slots_all_get_one(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held_alone")

    async def main() -> None:
        tasks = [asyncio.create_task(held.remote.aio(x)) for x in range(8)]
        for _ in range(8):
            await asyncio.to_thread(module_gate.arrived)
            module_gate.open()
        assert await asyncio.gather(*tasks) == [10 * x for x in range(8)]

    asyncio.run(main())


def test_a_cancelled_wait_for_a_slot_leaves_the_others_waiting(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_alone")

    async def main() -> None:
        tasks = [asyncio.create_task(held.remote.aio(x)) for x in range(6)]
        assert await asyncio.to_thread(module_gate.arrived) == [0]
        for task in (tasks[2], tasks[4]):
            task.cancel()
        await asyncio.sleep(0)
        module_gate.open(4)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r if isinstance(r, int) else type(r) for r in results] == [
            0,
            10,
            asyncio.CancelledError,
            30,
            asyncio.CancelledError,
            50,
        ]
        for _ in range(3):
            module_gate.arrived()

    asyncio.run(main())


# ---- whose turn it is ------------------------------------------------------------------------


@pytest.fixture
def endless_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look by himself, so that whoever is not told waits for the watchdog."""
    monkeypatch.setattr(connection_module, "SLICE_NS", 3_600_000_000_000)
    monkeypatch.setattr(listener_module, "SLICE_NS", 3_600_000_000_000)


def queued(function: shmbatch.Function, count: int) -> None:
    slots = function.connect().slots
    processes.wait_until(lambda: len(slots) == count, f"{count} wait for a slot")


def test_two_busy_threads_take_turns_at_a_single_slot(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held_single")
    turns: list[int] = []

    def caller(number: int) -> None:
        for _ in range(10):
            assert held.remote(number) == 10 * number

    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(caller, number) for number in (1, 2)]
        for at in range(20):
            turns += module_gate.arrived()
            queued(held, 1 if at < 19 else 0)  # the other one
            module_gate.open()
        for each in callers:
            each.result(PATIENCE_S)
    assert sorted(turns[:2]) == [1, 2]
    assert turns == turns[:2] * 10


def test_a_newcomer_does_not_jump_the_queue_for_a_slot(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_single")
    connection = held.connect()
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(held.remote, 2)
        queued(held, 1)
        assert connection.slots.entrance is not connection.ring
        module_gate.open(2)
        assert second.result(PATIENCE_S) == 20
    queued(held, 0)
    assert connection.slots.entrance is connection.ring
    assert first.get() == 10
    assert module_gate.arrived() == [2]


@pytest.mark.usefixtures("endless_slices")
def test_threads_and_tasks_are_told_when_a_slot_is_put_back(
    executor: Served, module_gate: Gate
) -> None:
    """A slot that a thread puts back, of which the executor tells nobody."""
    held = executor.connect("held_single")

    async def in_loop() -> int:
        result: int = await held.remote.aio(2)
        return result

    def in_thread() -> int:
        result: int = held.remote(2)
        return result

    ways: list[Callable[[], int]] = [lambda: asyncio.run(in_loop()), in_thread]
    for way in ways * 5:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(held.remote, 1)
            assert module_gate.arrived() == [1]
            second = threads.submit(way)
            queued(held, 1)
            module_gate.open()  # the first thread takes its result, which frees the slot
            assert module_gate.arrived() == [2]
            module_gate.open()
            assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (10, 20)


@pytest.mark.usefixtures("endless_slices")
def test_who_waits_for_any_call_takes_no_wake_up_from_who_waits_for_a_slot(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_alone")
    busy = [held.spawn(1), held.spawn(2)]
    assert module_gate.arrived() == [1]
    with ThreadPoolExecutor(4) as threads:
        anyone = [threads.submit(busy[1]._wait_any, [busy[1]]) for _ in range(3)]
        waiting = threads.submit(held.remote, 3)
        queued(held, 1)
        assert busy[1].cancel()
        module_gate.open(2)
        assert waiting.result(PATIENCE_S) == 30
        for each in anyone:
            each.result(PATIENCE_S)
    assert busy[0].get() == 10
    assert module_gate.arrived() == [3]


def test_a_thread_does_not_wait_for_ever_for_a_loop_that_does_not_run(
    executor: Served, module_gate: Gate
) -> None:
    """A task stands first in the queue, and its event loop waits for a call behind it."""
    held = executor.connect("held_single")

    async def main() -> None:
        first = held.spawn(1)
        assert await asyncio.to_thread(module_gate.arrived) == [1]
        task = asyncio.create_task(held.remote.aio(2))
        await asyncio.sleep(0)
        queued(held, 1)
        module_gate.open(3)
        assert held.remote(3) == 30  # blocks the event loop
        assert await task == 20
        assert first.get() == 10

    asyncio.run(main())
    assert [module_gate.arrived() for _ in range(2)] == [[3], [2]]


def test_a_loop_that_was_closed_keeps_nobody_from_a_slot(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_single")
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    abandoned = asyncio.new_event_loop()
    task = abandoned.create_task(held.remote.aio(2))
    abandoned.run_until_complete(asyncio.sleep(0))
    queued(held, 1)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    abandoned.close()

    async def main() -> int:
        waiting = asyncio.create_task(held.remote.aio(3))
        await asyncio.sleep(0)
        module_gate.open(2)
        return await waiting

    assert asyncio.run(main()) == 30
    assert module_gate.arrived() == [3]
    assert first.get() == 10
    del task
    gc.collect()
    queued(held, 0)


def test_an_interrupted_wait_for_a_slot_leaves_the_queue(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held_single")
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    with ThreadPoolExecutor(2) as threads:
        hasty = threads.submit(held.with_options(timeout=0.05).remote, 2)
        queued(held, 1)
        patient = threads.submit(held.remote, 3)
        assert isinstance(hasty.exception(PATIENCE_S), errors.RingFull)
        queued(held, 1)
        module_gate.open(2)
        assert patient.result(PATIENCE_S) == 30
    assert first.get() == 10
    assert module_gate.arrived() == [3]


@pytest.mark.usefixtures("endless_slices")
def test_every_thread_that_waits_for_one_call_is_told(executor: Served, module_gate: Gate) -> None:
    for _ in range(5):
        call = executor.connect("held").spawn(1)
        assert module_gate.arrived() == [1]
        with ThreadPoolExecutor(4) as threads:
            waiting = [threads.submit(call.get) for _ in range(4)]
            asleep(call, 4)
            module_gate.open()
            assert [each.result(PATIENCE_S) for each in waiting] == [10] * 4


@pytest.mark.usefixtures("endless_slices")
def test_cancelling_tells_every_thread_that_waits_for_the_call(executor: Served) -> None:
    call = executor.connect("never").spawn(1)
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(call.get) for _ in range(3)]
        asleep(call, 3)
        assert call.cancel() is True
        for each in waiting:
            assert isinstance(each.exception(PATIENCE_S), errors.CallCancelled)


def asleep(call: shmbatch.FunctionCall, count: int) -> None:
    sleepers = call._connection.sleepers
    processes.wait_until(lambda: sleepers.count(call._ticket) == count, "the threads wait")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError])
def test_a_result_that_cannot_be_finished_fails_its_call_as_what_it_is(
    executor: Served, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """What goes wrong with a result must not be taken for what is wrong with its ticket."""

    def finish(result: int) -> int:
        raise kind(f"cannot make anything of {result}")

    processes.hang_up()
    monkeypatch.setattr(connection_module, "finisher", lambda *_: finish)
    add = executor.connect("add")
    with pytest.raises(kind, match="cannot make anything of 3"):
        add.remote(1, 2)
    with pytest.raises(kind, match="cannot make anything of 3"):
        asyncio.run(_get_one(add))
    call = add.spawn(1, 2)
    for _ in range(2):
        with pytest.raises(kind, match="cannot make anything of 3"):
            call.get()
    pending = [add.spawn(1, 2) for _ in range(200)]  # most are stashed
    assert {type(each) for each in gather(*pending, return_exceptions=True)} == {kind}
    slots_come_back(add)
    processes.hang_up()


# ---- maps ------------------------------------------------------------------------------------


def _calls_alive() -> int:
    gc.collect()
    return sum(type(each) is shmbatch.FunctionCall for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_over_an_endless_iterator_holds_no_more_than_its_window(
    add: shmbatch.Function, ordered: bool
) -> None:
    window = 16  # two batches
    read = 0

    def endless() -> Iterator[tuple[int, int]]:
        nonlocal read
        while True:
            read += 1
            yield read, 1

    results = add.starmap(endless(), order_outputs=ordered)
    for seen, _ in zip(range(2000), results, strict=False):
        assert read - seen <= window
        if seen % 500 == 0:
            assert _calls_alive() <= window
    results.close()  # type: ignore[attr-defined]
    assert _calls_alive() == 0
    assert add.connect().stash == {}

    async def main() -> None:
        nonlocal read
        read = seen = 0
        results = add.starmap.aio(endless(), order_outputs=ordered)
        async for _ in results:
            assert read - seen <= window
            seen += 1
            if seen == 2000:
                break
        assert _calls_alive() <= window
        await results.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert _calls_alive() == 0
    slots_come_back(add)


@pytest.mark.slow
def test_for_each_keeps_nothing_of_what_is_done(add: shmbatch.Function) -> None:
    def inputs() -> Iterator[int]:
        for x in range(2000):
            if x % 500 == 0:
                assert _calls_alive() <= 16
            yield x

    add.for_each(inputs(), itertools.repeat(1))
    asyncio.run(add.for_each.aio(inputs(), itertools.repeat(1)))
    assert add.connect().stash == {}


@pytest.mark.slow
def test_a_consumer_that_leaves_a_map_cancels_what_is_in_flight(executor: Served) -> None:
    add = executor.connect("add")
    connection = add.connect()

    def breaks() -> None:
        for _ in add.map(itertools.count(), itertools.repeat(1)):
            break

    def fails() -> None:
        try:
            for result in add.map(itertools.count(), itertools.repeat(1), order_outputs=False):
                raise KeyError(result)
        except KeyError:
            pass

    def closes() -> None:
        results = add.map(itertools.count(), itertools.repeat(1))
        next(results)
        results.close()

    async def closed() -> None:
        results = add.map.aio(itertools.count(), itertools.repeat(1))
        async for _ in results:
            break
        await results.aclose()

    async def cancelled() -> None:
        never = executor.connect("never")

        async def consume() -> None:
            async for _ in never.map.aio(range(30)):
                raise AssertionError

        task = asyncio.create_task(consume())
        ring = never.connect().ring
        while ring.free_slots > 128 - 30:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slots_come_back(never)

    for leave in (breaks, fails, closes, lambda: asyncio.run(closed())):
        leave()
        assert _calls_alive() == 0
        slots_come_back(add)
        assert connection.stash == {}
    asyncio.run(cancelled())
    assert _calls_alive() == 0


def test_map_yields_in_the_order_of_its_inputs(add: shmbatch.Function) -> None:
    assert list(add.map(range(200), itertools.count())) == [2 * x for x in range(200)]
    assert list(add.map([], [])) == []


def test_starmap_takes_one_tuple_an_input(add: shmbatch.Function) -> None:
    assert list(add.starmap([(1, 300), [2, 200], (3, 100)])) == [301, 202, 103]


def test_unordered_map_yields_every_result_once(add: shmbatch.Function) -> None:
    results = list(add.map(range(200), range(200), order_outputs=False))
    assert sorted(results) == list(range(0, 400, 2))


def test_unordered_map_does_not_wait_for_the_first(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held_alone")
    first = held.spawn(0)
    assert module_gate.arrived() == [0]
    results = held.map([1, 2], order_outputs=False)
    module_gate.open(3)
    assert sorted(results) == [10, 20]
    assert first.get() == 0
    assert [module_gate.arrived() for _ in range(2)] in ([[1], [2]], [[2], [1]])


def test_for_each_runs_every_input_and_returns_nothing(executor: Served) -> None:
    before = executor.statistics("add")["calls_done"]
    assert executor.connect("add").for_each(range(50), range(50)) is None
    assert executor.statistics("add")["calls_done"] == before + 50


def test_maps_read_lazily_and_keep_a_bounded_number_in_flight(executor: Served) -> None:
    read = itertools.count()
    results = executor.connect("add").map(read, itertools.repeat(1))
    assert [next(results) for _ in range(100)] == list(range(1, 101))
    results.close()
    assert next(read) <= 100 + 64 + 1


def test_a_map_keeps_a_batch_in_flight(executor: Served) -> None:
    # Only full batches are due, so with less in flight this would wait for ten minutes.
    assert list(executor.connect("never").map(range(128))) == list(range(128))
    assert executor.statistics("never")["batch_sizes"].keys() == {"64"}

    async def main() -> list[int]:
        return [y async for y in executor.connect("never").map.aio(range(128))]

    assert asyncio.run(main()) == list(range(128))


def test_a_map_that_is_left_early_cancels_what_is_in_flight(executor: Served) -> None:
    never = executor.connect("never")
    ring = never.connect().ring
    capacity = never.connect().capacity

    def inputs() -> Iterator[int]:
        yield from range(10)
        raise EOFError

    with pytest.raises(EOFError):
        next(never.map(inputs()))
    processes.wait_until(lambda: ring.free_slots == capacity, "the slots come back")


def test_a_slow_iterator_does_not_keep_results_back(executor: Served) -> None:
    """The second input exists only once the first result has been seen."""
    add = executor.connect("add")
    seen: list[int] = []

    def inputs() -> Iterator[int]:
        yield 1
        processes.wait_until(lambda: add.connect().ring.finished(True), "it ran")
        yield 2
        assert seen == [2]
        yield 3

    for result in add.map(inputs(), [1, 1, 1]):
        seen.append(result)
    assert seen == [2, 3, 4]


def test_an_async_iterator_does_not_keep_results_back(add: shmbatch.Function) -> None:
    """Each input exists only once the result before it has been seen."""

    async def main(ordered: bool) -> None:
        answered: asyncio.Queue[int] = asyncio.Queue()

        async def inputs() -> AsyncIterator[int]:
            yield 0
            for _ in range(5):
                yield await answered.get()

        results = []
        async for result in add.map.aio(inputs(), itertools.repeat(1), order_outputs=ordered):
            results.append(result)
            await answered.put(result)
        assert results == [1, 2, 3, 4, 5, 6]

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_async_maps_take_either_kind_of_iterable(add: shmbatch.Function) -> None:
    async def pairs() -> AsyncIterator[tuple[int, int]]:
        for x in range(20):
            await asyncio.sleep(0)
            yield x, 1

    async def numbers() -> AsyncIterator[int]:
        for x in range(20):
            yield x

    async def main() -> None:
        wanted = list(range(1, 21))
        assert [y async for y in add.starmap.aio(pairs())] == wanted
        assert [y async for y in add.map.aio(numbers(), range(1, 2))] == [1]
        assert [y async for y in add.map.aio(range(20), itertools.repeat(1))] == wanted
        assert [y async for y in add.map.aio(numbers(), itertools.repeat(1))] == wanted
        unordered = [y async for y in add.starmap.aio(pairs(), order_outputs=False)]
        assert sorted(unordered) == wanted

    asyncio.run(main())


def test_an_async_map_that_is_left_early_cancels_what_is_in_flight(executor: Served) -> None:
    never = executor.connect("never")
    connection = never.connect()

    async def inputs() -> AsyncIterator[int]:
        for x in range(10):
            yield x
        raise EOFError

    async def main() -> None:
        with pytest.raises(EOFError):
            async for _ in never.map.aio(inputs()):
                pass

    asyncio.run(main())
    ring = connection.ring
    processes.wait_until(lambda: ring.free_slots == connection.capacity, "the slots come back")


def test_a_refused_input_stands_in_its_place_with_return_exceptions(
    add: shmbatch.Function,
) -> None:
    inputs: list[Any] = [(1, 1), ("two", 2), (3, 3), (4,), (5, 5)]
    for ordered in (True, False):
        results = list(add.starmap(inputs, return_exceptions=True, order_outputs=ordered))
        assert sorted(r for r in results if isinstance(r, int)) == [2, 6, 10]
        refused = [r for r in results if not isinstance(r, int)]
        assert [type(r) for r in refused] == [errors.InputTypeError] * 2
        if ordered:
            assert results[1] is refused[0]
            assert results[3] is refused[1]

    async def main() -> list[Any]:
        return [r async for r in add.starmap.aio(inputs, return_exceptions=True)]

    results = asyncio.run(main())
    assert [type(r) for r in results] == [int, errors.InputTypeError] * 2 + [int]
    with pytest.raises(errors.InputTypeError):
        list(add.starmap(inputs))


# ---- handles ---------------------------------------------------------------------------------


def test_a_pickled_handle_works_where_the_file_is_not_known(executor: Served) -> None:
    handle = pickle.dumps(calls.add.with_options(timeout=PATIENCE_S))
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).remote(2, 3))"
    with Program(code, handle.hex(), PYTHONPATH=str(processes.ROOT)) as program:
        assert program.line() == "5"
        assert program.wait() == 0


def test_a_handle_cannot_be_called_like_the_function(add: shmbatch.Function) -> None:
    with pytest.raises(errors.ConfigError, match=r"cannot be called directly; use .remote"):
        add(1, 2)
    with pytest.raises(errors.ConfigError, match="not the function; import it from its file"):
        add.local([1], [2])


def test_an_executor_cannot_be_called_from_inside_itself(executor: Served) -> None:
    calls_itself = executor.connect("calls_itself")
    for way in (0, 1):  # by handle, by name
        with pytest.raises(errors.ConfigError, match="inside its own executor"):
            calls_itself.remote(way)


# ---- threads and event loops -----------------------------------------------------------------


def test_many_threads_share_a_connection(executor: Served) -> None:
    add = executor.connect("add")

    def caller(number: int) -> list[int]:
        return [add.remote(number, x) for x in range(40)]

    with ThreadPoolExecutor(16) as threads:
        for number, results in enumerate(threads.map(caller, range(16))):
            assert results == [number + x for x in range(40)]
    assert executor.statistics("add")["producers"] == 1


def test_more_threads_call_than_there_are_slots(executor: Served) -> None:
    add = executor.connect("add")

    def caller(number: int) -> list[int]:
        return [add.remote(number, x) for x in range(5)]

    with ThreadPoolExecutor(100) as threads:
        for number, results in enumerate(threads.map(caller, range(100))):
            assert results == [number + x for x in range(5)]


def test_several_threads_wait_for_one_call(executor: Served, module_gate: Gate) -> None:
    call = executor.connect("held").spawn(1)
    module_gate.arrived()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(call.get) for _ in range(6)]
        waiting += [threads.submit(_get_in_loop, call) for _ in range(2)]
        module_gate.open()
        assert [each.result(PATIENCE_S) for each in waiting] == [10] * 8


def test_several_threads_hear_of_one_failure(executor: Served) -> None:
    for _ in range(20):
        call = executor.connect("fails").spawn(7)
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(call.get) for _ in range(6)]
            waiting += [threads.submit(_get_in_loop, call) for _ in range(2)]
            assert [repr(each.exception(PATIENCE_S)) for each in waiting] == ["KeyError(7)"] * 8


def _get_in_loop(call: shmbatch.FunctionCall) -> Any:
    return asyncio.run(_get(call))


async def _get(call: shmbatch.FunctionCall) -> Any:
    return await call.get.aio()


def test_several_event_loops_share_a_connection(executor: Served) -> None:
    add = executor.connect("add")
    together = threading.Barrier(4)

    async def main(number: int) -> list[int]:
        together.wait(PATIENCE_S)
        results = []
        for start in range(0, 100, 20):
            results += await asyncio.gather(
                *(add.remote.aio(number, x) for x in range(start, start + 20))
            )
        return results

    with ThreadPoolExecutor(4) as threads:
        for number, results in enumerate(
            threads.map(lambda number: asyncio.run(main(number)), range(4))
        ):
            assert results == [number + x for x in range(100)]


def test_event_loops_whose_first_calls_coincide_all_hear_of_theirs(executor: Served) -> None:
    """In a fresh process, where what tells event loops is not even imported yet."""
    code = """
import asyncio, threading, shmbatch
from concurrent.futures import ThreadPoolExecutor
add = shmbatch.connect("calls.add")
together = threading.Barrier(8)

async def main(number):
    together.wait()
    return sum(await asyncio.gather(*(add.remote.aio(number, x) for x in range(8))))

with ThreadPoolExecutor(8) as threads:
    print(sum(threads.map(lambda number: asyncio.run(main(number)), range(8))))
"""
    for _ in range(5):
        with Program(code) as program:
            assert program.line() == str(2 * 8 * 28)


def test_threads_and_event_loops_mix(executor: Served) -> None:
    add = executor.connect("add")

    async def main(number: int) -> list[int]:
        return await asyncio.gather(*(add.remote.aio(number, x) for x in range(100)))

    def in_loop(number: int) -> list[int]:
        return asyncio.run(main(number))

    def in_thread(number: int) -> list[int]:
        pending = [add.spawn(number, x) for x in range(100)]
        return [call.get() for call in pending]

    ways: list[Callable[[int], list[int]]] = [in_loop, in_thread, in_loop, in_thread]
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(way, number) for number, way in enumerate(ways)]
        for number, each in enumerate(running):
            assert each.result(PATIENCE_S) == [number + x for x in range(100)]


def test_a_closed_event_loop_does_not_keep_results_from_others(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")

    async def leave_waiting() -> None:
        asyncio.create_task(held.remote.aio(1)).add_done_callback(lambda _: None)
        await asyncio.to_thread(module_gate.arrived)

    abandoned = asyncio.new_event_loop()
    abandoned.run_until_complete(leave_waiting())
    abandoned.run_until_complete(abandoned.shutdown_default_executor())
    for task in asyncio.all_tasks(abandoned):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    abandoned.close()

    async def main() -> int:
        waiting = asyncio.create_task(held.remote.aio(2))
        await asyncio.sleep(0)
        module_gate.open(2)
        return await waiting

    assert asyncio.run(main()) == 20
    assert module_gate.arrived() == [2]


def test_hanging_up_is_logged_once(executor: Served, caplog: pytest.LogCaptureFixture) -> None:
    connection = executor.connect("add").connect()
    with caplog.at_level(logging.DEBUG, "shmbatch.client"):
        connection.close()
        connection.close()
    assert caplog.messages == [f"hung up on 'calls.add' (process {executor.pid})"]


def test_event_loops_one_after_the_other_use_one_connection(executor: Served) -> None:
    add = executor.connect("add")

    async def main() -> int:
        result: int = await add.remote.aio(1, 1)
        return result

    before = processes.descriptors()
    assert [asyncio.run(main()) for _ in range(20)] == [2] * 20
    assert processes.descriptors() == before


def test_first_calls_of_several_threads_at_once_make_one_connection(executor: Served) -> None:
    processes.hang_up()
    handles = [shmbatch.Function(calls.add.address) for _ in range(8)]
    together = threading.Barrier(8)

    def first(handle: shmbatch.Function) -> Any:
        together.wait(PATIENCE_S)
        return handle.remote(1, 1)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(first, handles)) == [2] * 8
    assert len({handle.connect() for handle in handles}) == 1


def test_waiting_for_one_name_keeps_nobody_from_another(executor: Served) -> None:
    processes.hang_up()
    outcome: list[Exception] = []

    def wait() -> None:
        try:
            shmbatch.connect("nobody.f", timeout=1)
        except Exception as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert executor.connect("add", timeout=0).remote(1, 1) == 2
    assert outcome == []
    waiting.join(PATIENCE_S)
    assert [type(each) for each in outcome] == [errors.ExecutorNotFound]


# ---- forks -----------------------------------------------------------------------------------


def _in_fork(work: Callable[[], None]) -> int:
    """Run *work* in a forked child; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_connects_anew(executor: Served) -> None:
    add = executor.connect("add")
    pending = [add.spawn(x, 1) for x in range(40)]

    def work() -> None:
        assert add.remote(5, 6) == 11
        assert list(add.map(range(100), range(100))) == list(range(0, 200, 2))
        assert executor.statistics("add")["producers"] == 2
        with pytest.raises(errors.ConfigError, match="belongs to the parent process"):
            pending[0].get()
        pending.clear()  # dropping the parent's calls must not touch them

    assert _in_fork(work) == 0
    assert [call.get() for call in pending] == [x + 1 for x in range(40)]
    assert add.remote(1, 1) == 2


def test_a_fork_amid_calls_of_threads_and_loops_disturbs_nobody(executor: Served) -> None:
    add = executor.connect("add")
    stop = threading.Event()

    async def looping() -> int:
        done = 0
        while not stop.is_set():
            assert await asyncio.gather(*(add.remote.aio(done, x) for x in range(9))) == [
                done + x for x in range(9)
            ]
            done += 1
        return done

    def calling() -> int:
        done = 0
        while not stop.is_set():
            assert add.remote(done, 1) == done + 1
            done += 1
        return done

    def work() -> None:
        assert list(add.map(range(50), range(50))) == list(range(0, 100, 2))
        assert asyncio.run(_get_one(add)) == 3

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(calling) for _ in range(2)]
        running.append(threads.submit(lambda: asyncio.run(looping())))
        try:
            statuses = [_in_fork(work) for _ in range(5)]
        finally:
            stop.set()
        assert statuses == [0] * 5
        assert all(each.result(PATIENCE_S) > 0 for each in running)


async def _get_one(add: shmbatch.Function) -> Any:
    return await add.remote.aio(1, 2)


def _fork_worker(add: shmbatch.Function, number: int) -> int:
    return sum(add.map(range(number), itertools.repeat(1)))


def test_workers_of_a_forking_pool_have_connections_of_their_own(executor: Served) -> None:
    add = executor.connect("add")
    assert add.remote(1, 1) == 2
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.starmap(_fork_worker, [(add, number) for number in range(12)])
        pool.close()
        pool.join()
    assert sums == [sum(range(1, number + 1)) for number in range(12)]


def test_a_fork_inside_a_running_event_loop_connects_anew(executor: Served) -> None:
    add = executor.connect("add")

    async def main() -> None:
        assert await add.remote.aio(1, 1) == 2
        waiting = asyncio.create_task(add.remote.aio(2, 2))
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if add.remote(3, 3) == 6 else 1)
            except BaseException:
                os._exit(2)
        status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status[1]) == 0
        assert await waiting == 4

    asyncio.run(main())


def test_a_fork_in_the_middle_of_a_map_ends_quietly_in_the_child(executor: Served) -> None:
    add = executor.connect("add")
    results = add.map(range(100), range(100))
    assert next(results) == 0
    child = os.fork()
    if child == 0:
        try:
            results.close()
            os._exit(0)
        except BaseException:
            os._exit(2)
    status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    assert list(results) == [2 * x for x in range(1, 100)]
