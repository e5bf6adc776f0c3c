"""Making calls: one, many, from threads, event loops and forks, against a real executor."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import calls
import pytest

import shmbatch
from shmbatch import errors
from tests import processes
from tests.processes import PATIENCE_S, Gate, Program, Served


@pytest.fixture(scope="module", params=["linux", "posix"])
def executor(request: pytest.FixtureRequest, module_gate: Gate) -> Iterator[Served]:
    """One executor for all tests of this module, under each transport."""
    with processes.served(
        "calls.py", "calls", "--transport", request.param, SHMBATCH_TEST_SELF="calls.add"
    ) as executor:
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


def test_get_with_a_timeout_keeps_the_call(executor: Served, module_gate: Gate) -> None:
    call = executor.connect("held").spawn(4)
    module_gate.arrived()
    with pytest.raises(errors.CallTimeout, match=r"'calls.held' gave no result in time"):
        call.get(timeout=0.01)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    module_gate.open()
    assert call.get() == 40


def test_awaiting_get_with_a_timeout_keeps_the_call(executor: Served, module_gate: Gate) -> None:
    async def main() -> int:
        call = await executor.connect("held").spawn.aio(4)
        await asyncio.to_thread(module_gate.arrived)
        with pytest.raises(errors.CallTimeout):
            await call.get.aio(timeout=0.01)
        module_gate.open()
        result: int = await call.get.aio(timeout=PATIENCE_S)
        return result

    assert asyncio.run(main()) == 40


def test_a_timeout_before_launch_means_that_the_call_never_runs(executor: Served) -> None:
    pair = executor.connect("pair")
    with pytest.raises(errors.CallTimeout):
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
    with pytest.raises(errors.CallTimeout):
        call.get(timeout=PATIENCE_S)
    with pytest.raises(errors.CallTimeout):
        call.get()  # it is over
    assert call.done()


def test_a_cancelled_call_never_runs(executor: Served) -> None:
    pair = executor.connect("pair")
    call = pair.spawn(1)
    assert call.cancel() is True
    with pytest.raises(errors.CallCancelled, match="the call was cancelled"):
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
        assert asyncio.run(wait_for_it()) == "the call was cancelled"
        assert in_thread.result(PATIENCE_S) == "the call was cancelled"


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


# ---- more calls than slots -------------------------------------------------------------------


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


# ---- maps ------------------------------------------------------------------------------------


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
        processes.wait_until(lambda: executor.statistics("add")["calls_done"] > done, "it ran")
        yield 2
        assert seen == [2]
        yield 3

    done = executor.statistics("add")["calls_done"]
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
