"""What each caller gets when things go wrong: docs/explanation/guarantees.md, row by row."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import outcomes as outcomes_app
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.protocol._core import OPEN
from tests import processes
from tests.processes import PATIENCE_S, Gate, Program, Served

FAULTY = "outcomes.py"


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    """One executor for the tests that let it live."""
    with processes.served(FAULTY, "outcomes") as executor:
        yield executor


@pytest.fixture
def mortal(gate: Gate) -> Iterator[Served]:
    """An executor for one test, which may do with it what it likes."""
    executor = Served(FAULTY, "mortal")
    yield executor
    executor.kill()
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.stop("mortal")  # sweeps the name that a killed one leaves


def outcomes(function: shmbatch.Function, *inputs: int) -> list[Any]:
    """Call *function* once for each input, all in one batch; return results or exceptions."""
    pending = [function.spawn(x) for x in inputs]
    found: list[Any] = []
    for call in pending:
        try:
            found.append(call.get(timeout=PATIENCE_S))
        except Exception as error:
            found.append(error)
    return found


# ---- the function goes wrong -----------------------------------------------------------------


def test_a_raised_exception_reaches_every_caller_as_its_own_instance(executor: Served) -> None:
    found = outcomes(executor.connect("raises"), 0, 5, 6, 7)
    assert [repr(error) for error in found] == ["ValueError('all are bad', [0, 5, 6, 7])"] * 4
    assert len({id(error) for error in found}) == 4
    for error in found:
        (note,) = error.__notes__
        assert note.startswith("executor traceback:\n")
        assert "outcomes.py" in note
        assert 'raise ValueError("all are bad", sorted(xs))' in note


def test_an_exception_whose_class_is_here_is_rebuilt(executor: Served) -> None:
    (error, *_) = outcomes(executor.connect("raises"), 1, 5, 6, 7)
    assert type(error) is outcomes_app.Spoiled
    assert str(error) == "went off"
    assert "went off" in error.__notes__[0]


def test_an_exception_whose_class_is_not_here_is_named(executor: Served) -> None:
    code = """
import shmbatch
raises = shmbatch.connect("outcomes.raises")
pending = [raises.spawn(x) for x in (1, 5, 6, 7)]
for call in pending:
    try:
        call.get()
    except shmbatch.errors.RemoteError as error:
        print(error, len(error.__notes__))
"""
    with Program(code) as program:
        assert [program.line() for _ in range(4)] == ["outcomes.Spoiled: went off 1"] * 4


def test_even_system_exit_of_the_function_is_an_outcome(executor: Served) -> None:
    found = outcomes(executor.connect("raises"), 2, 5, 6, 7)
    assert [str(error) for error in found] == ["builtins.SystemExit: 3"] * 4
    assert outcomes(executor.connect("double"), 4) == [8]


def test_a_huge_message_is_cut(executor: Served) -> None:
    found = outcomes(executor.connect("raises"), 4, 5, 6, 7)
    for error in found:
        assert type(error) is RuntimeError
        assert str(error).startswith("\N{GREEK SMALL LETTER LAMDA}" * 100)
        assert str(error).endswith("[...]")


def test_an_exception_object_in_the_list_reaches_its_caller_alone(executor: Served) -> None:
    found = outcomes(executor.connect("picky"), 1, -2, 3, -4)
    assert [found[0], found[2]] == [1, 3]
    assert [repr(found[1]), repr(found[3])] == [
        "ValueError('-2 is negative')",
        "ValueError('-4 is negative')",
    ]


@pytest.mark.parametrize(
    ("way", "got"),
    [
        (0, "list of length 3"),
        (1, "list of length 5"),
        (2, "tuple"),
        (3, "NoneType"),
        (4, "int"),
        (5, "dict"),
        (6, "generator"),
        (7, "str"),
        (8, "list of length 0"),
        (9, "ndarray of length 4"),
    ],
)
def test_what_is_no_list_of_one_result_an_input_fails_the_whole_batch(
    executor: Served, way: int, got: str
) -> None:
    found = outcomes(executor.connect("misshapen"), way, 20, 30, 40)
    assert [type(error) for error in found] == [errors.BatchResultError] * 4
    assert {str(error) for error in found} == {
        f"'outcomes.misshapen' returned a {got} for 4 inputs; "
        f"it must return a list of length 4, one int each"
    }


def test_a_result_that_does_not_fit_fails_its_caller_alone(executor: Served) -> None:
    misfits = executor.connect("misfits")
    found = outcomes(misfits, 0, 1, 2, 3)
    assert found[0] == 0
    assert [type(error) for error in found[1:]] == [errors.ResultError] * 3
    assert [str(error) for error in found[1:]] == [
        "result 1 of outcomes.misfits must be an int, got str 'one'; "
        "use int(value) if that is what you mean",
        "result 2 of outcomes.misfits must be an int, got None; "
        "use int(value) if that is what you mean",
        "result 3 of outcomes.misfits must be an int, got float 2.5; "
        "use int(value) if that is what you mean",
    ]
    found = outcomes(misfits, 4, 5, 6, 7)
    assert str(found[0]) == (
        "result 0 of outcomes.misfits must be an int from -2**63 to 2**63 - 1, "
        "got int 9223372036854775808"
    )
    assert "got bool True" in str(found[1])
    assert found[2:] == [6, -(2**63)]


def test_a_stack_is_split_into_rows(executor: Served) -> None:
    stacks = executor.connect("stacks")
    for way in (0, 5):
        found = outcomes(stacks, way, 0)
        assert [row.tolist() for row in found] == [[0, 1, 2], [3, 4, 5]]
        assert all(row.dtype == np.float32 and row.flags.owndata for row in found)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (
            1,
            "result stack of outcomes.stacks must have dtype float32, got float64; "
            "use .astype('float32')",
        ),
        (2, r"result stack of outcomes.stacks must have shape (2, 3), got (2, 4); "),
    ],
)
def test_a_stack_of_wrong_rows_is_a_result_error_to_all(
    executor: Served, way: int, message: str
) -> None:
    found = outcomes(executor.connect("stacks"), way, 0)
    assert [type(error) for error in found] == [errors.ResultError] * 2
    assert all(str(error).startswith(message) for error in found)


@pytest.mark.parametrize(("way", "got"), [(3, "ndarray of length 3"), (4, "float32")])
def test_a_stack_of_wrong_length_is_a_batch_result_error(
    executor: Served, way: int, got: str
) -> None:
    found = outcomes(executor.connect("stacks"), way, 0)
    assert {str(error) for error in found} == {
        f"'outcomes.stacks' returned a {got} for 2 inputs; "
        f"it must return a list or stack of length 2, one array each"
    }


def test_a_list_of_rows_is_judged_row_by_row(executor: Served) -> None:
    stacks = executor.connect("stacks")
    first, second = outcomes(stacks, 6, 0)
    assert first.tolist() == [0, 0, 0]
    assert type(second) is errors.ResultError
    assert "must have shape (3,), got (4,)" in str(second)
    first, second = outcomes(stacks, 7, 0)
    assert first.tolist() == [0, 0, 0]
    assert repr(second) == "ValueError('second')"


# ---- timeouts --------------------------------------------------------------------------------


def test_a_late_result_is_dropped_and_batch_mates_are_untouched(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    ring = held.connect().ring
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    hasty = held.with_options(timeout=0.01).spawn(2)
    mate = held.spawn(3)
    module_gate.open()
    assert module_gate.arrived() == [2, 3]
    with pytest.raises(errors.CallTimeout):
        hasty.get()
    capacity = held.connect().capacity
    assert first.get() == 10
    assert ring.free_slots == capacity - 2  # the abandoned one may still be written to
    module_gate.open()
    assert mate.get() == 30
    assert ring.free_slots == capacity
    with pytest.raises(errors.CallTimeout):
        hasty.get()


def test_a_reused_slot_never_gets_a_late_result(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held")
    double = held.with_options(timeout=0)
    for x in range(1, 200, 2):
        call = held.spawn(x)
        assert module_gate.arrived() == [x]
        assert call.cancel() is False
        del call
        with pytest.raises(errors.CallTimeout):
            double.remote(-1)
        after = held.spawn(x + 1)
        module_gate.open(2)
        assert module_gate.arrived() == [x + 1]
        assert after.get() == 10 * (x + 1)


# ---- the executor ends -----------------------------------------------------------------------


def test_every_kind_of_waiter_hears_of_the_executors_death(mortal: Served) -> None:
    never = mortal.connect("never")
    ready = threading.Barrier(4)

    def in_thread() -> Any:
        call = never.spawn(1)
        ready.wait(PATIENCE_S)
        return call.get()

    def in_remote() -> Any:
        ready.wait(PATIENCE_S)
        return never.remote(1)

    async def waits() -> Any:
        task = asyncio.create_task(never.remote.aio(1))
        await asyncio.sleep(0)
        await asyncio.to_thread(ready.wait, PATIENCE_S)
        return await task

    with ThreadPoolExecutor(3) as threads:
        waiting = [
            threads.submit(in_thread),
            threads.submit(in_remote),
            threads.submit(lambda: asyncio.run(waits())),
        ]
        ready.wait(PATIENCE_S)
        mortal.process.kill()
        for each in waiting:
            error = each.exception(PATIENCE_S)
            assert isinstance(error, errors.ExecutorGone | errors.ExecutorNotFound), error
            assert f"(process {mortal.pid}) died" in str(error) or "no executor" in str(error)


def test_a_call_that_is_only_asked_whether_it_is_done_hears_of_the_executors_death(
    mortal: Served,
) -> None:
    call = mortal.connect("never").spawn(1)
    mortal.process.kill()
    processes.wait_until(call.done, "the call is done")
    with pytest.raises(errors.ExecutorGone):
        call.get(timeout=0)


def test_a_finished_result_is_delivered_after_the_executors_death(mortal: Served) -> None:
    call = mortal.connect("double").spawn(4)
    processes.wait_until(
        lambda: mortal.statistics("double")["calls_done"] == 1, "the call is done"
    )
    mortal.kill()
    assert call.get() == 8


def test_the_first_call_after_a_death_raises_and_the_next_connects_anew(
    mortal: Served, gate: Gate
) -> None:
    double = mortal.connect("double")
    assert double.remote(1) == 2
    mortal.kill()
    with pytest.raises(
        errors.ExecutorGone, match=rf"'mortal.double' \(process {mortal.pid}\) died"
    ):
        double.remote(2)
    with pytest.raises(errors.ExecutorNotFound, match="no executor serves 'mortal'; start one"):
        double.remote(3)
    with processes.served(FAULTY, "mortal"):
        assert double.remote(4) == 8


def test_calls_of_an_app_whose_executor_died_are_over_when_it_is_left(gate: Gate) -> None:
    async def awaited(call: shmbatch.FunctionCall) -> Any:
        return await call.get.aio()

    with outcomes_app.app.run() as running:
        finished = outcomes_app.double.spawn(4)
        assert outcomes_app.double.remote(5) == 10
        pending = [outcomes_app.never.spawn(x) for x in range(2)]
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
    assert asyncio.run(awaited(finished)) == 8
    with pytest.raises(errors.ExecutorGone):
        asyncio.run(awaited(pending[0]))
    with pytest.raises(errors.ExecutorGone):
        pending[1].get()


def test_who_waits_for_a_slot_hears_of_the_death(mortal: Served, gate: Gate) -> None:
    held = mortal.connect("held")
    pending = [held.spawn(x) for x in range(held.connect().capacity)]
    gate.arrived()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(held.remote.aio(x)) for x in range(3)]
        await asyncio.sleep(0)
        mortal.process.kill()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(held.remote, x) for x in range(2)]
        heard = [*asyncio.run(main()), *(each.exception(PATIENCE_S) for each in waiting)]
    # A thread that was late to call found the connection dead already.
    assert {type(error) for error in heard} <= {errors.ExecutorGone, errors.ExecutorNotFound}
    assert {type(error) for error in heard[:3]} == {errors.ExecutorGone}
    for call in pending:
        with pytest.raises(errors.ExecutorGone):
            call.get()


def test_a_draining_executor_finishes_what_was_published(mortal: Served, gate: Gate) -> None:
    held, never = mortal.connect("held"), mortal.connect("never")
    running = held.spawn(1)
    assert gate.arrived() == [1]
    waiting = [held.spawn(x) for x in (2, 3)]
    undue = [never.spawn(x) for x in (4, 5)]
    mortal.signal(signal.SIGTERM)
    gate.open(2)
    assert running.get() == 10
    assert [call.get() for call in waiting] == [20, 30]
    assert [call.get() for call in undue] == [4, 5]
    assert mortal.wait() == 0
    with pytest.raises(errors.ExecutorClosed, match="takes no more calls; it is stopping"):
        held.remote(6)
    with pytest.raises(errors.ExecutorNotFound):
        held.remote(7)


def test_a_draining_executor_refuses_new_calls(mortal: Served, gate: Gate) -> None:
    held, double = mortal.connect("held"), mortal.connect("double")
    running = [held.spawn(1)]
    assert gate.arrived() == [1]
    running.append(held.spawn(2))
    mortal.signal(signal.SIGINT)
    gate.open()
    assert gate.arrived() == [2]  # it drains now
    for made in (double.remote, double.spawn, lambda x: list(double.map([x]))):
        with pytest.raises(errors.ExecutorClosed):
            made(3)

    async def main() -> None:
        with pytest.raises(errors.ExecutorClosed):
            await double.remote.aio(3)

    asyncio.run(main())
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.connect("mortal.total", timeout=0)
    gate.open()
    assert [call.get() for call in running] == [10, 20]
    assert mortal.wait() == 0


def test_who_waits_for_a_slot_of_a_draining_executor_is_told(mortal: Served, gate: Gate) -> None:
    held = mortal.connect("held")
    capacity = held.connect().capacity
    pending = [held.spawn(0) for _ in range(capacity)]
    gate.arrived()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(held.remote.aio(x)) for x in range(5)]
        await asyncio.sleep(0)
        mortal.signal(signal.SIGTERM)
        gate.open(capacity)
        return await asyncio.gather(*tasks, return_exceptions=True)

    for outcome in asyncio.run(main()):
        # One that found a slot before the executor saw the signal has its result.
        assert isinstance(outcome, errors.ExecutorClosed | int), outcome
    assert [call.get() for call in pending] == [0] * capacity


def test_a_map_into_a_drain_yields_what_was_published_and_then_raises(
    mortal: Served, gate: Gate
) -> None:
    held = mortal.connect("held")
    ring = held.connect().ring

    def inputs() -> Iterator[int]:
        yield 1
        assert gate.arrived() == [1]
        yield from (2, 3)
        mortal.signal(signal.SIGTERM)
        gate.open(2)
        processes.wait_until(lambda: ring.status != OPEN, "the executor drains")
        yield from itertools.count(4)

    results = held.map(inputs())
    assert [next(results) for _ in range(3)] == [10, 20, 30]
    with pytest.raises(errors.ExecutorClosed):
        next(results)


def test_an_async_map_into_a_drain_yields_what_was_published_and_then_raises(
    mortal: Served, gate: Gate
) -> None:
    held = mortal.connect("held")
    ring = held.connect().ring

    async def inputs() -> AsyncIterator[int]:
        yield 1
        assert await asyncio.to_thread(gate.arrived) == [1]
        for x in (2, 3):
            yield x
        mortal.signal(signal.SIGTERM)
        gate.open(2)
        processes.wait_until(lambda: ring.status != OPEN, "the executor drains")
        for x in itertools.count(4):
            yield x

    async def main() -> None:
        results = held.map.aio(inputs(), return_exceptions=True)
        assert [await anext(results) for _ in range(3)] == [10, 20, 30]
        # By now the executor may have come to its end, and nobody may serve the name.
        with pytest.raises((errors.ExecutorClosed, errors.ExecutorNotFound)):
            await anext(results)

    asyncio.run(main())


def test_a_caller_hears_at_the_deadline_though_the_executor_is_stopped(mortal: Served) -> None:
    double = mortal.connect("double")
    hasty = double.with_options(deadline_ms=20)
    mortal.signal(signal.SIGSTOP)
    try:
        with pytest.raises(errors.DeadlineExceeded):
            hasty.remote(1)
        with pytest.raises(errors.DeadlineExceeded):
            asyncio.run(awaited(hasty))
    finally:
        mortal.signal(signal.SIGCONT)
    assert double.remote(2) == 4


async def awaited(double: shmbatch.Function) -> Any:
    return await double.remote.aio(1)


def test_a_second_signal_ends_the_executor_at_once(mortal: Served, gate: Gate) -> None:
    call = mortal.connect("held").spawn(1)
    assert gate.arrived() == [1]
    for _ in range(2):
        mortal.signal(signal.SIGTERM)
        # A signal that is pending already is not counted twice.
        processes.wait_until(lambda: not _pending(mortal.pid, signal.SIGTERM), "it is delivered")
    assert mortal.wait() == 128 + signal.SIGTERM
    with pytest.raises(errors.ExecutorGone):
        call.get()


def _pending(pid: int, number: int) -> bool:
    try:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
            masks = [line.split()[1] for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    except FileNotFoundError:
        return False
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_stop_waits_until_the_executor_is_gone(mortal: Served) -> None:
    undue = mortal.connect("never").spawn(4)
    shmbatch.stop("mortal")
    assert undue.get() == 4
    assert mortal.process.poll() is not None or mortal.wait() == 0


def test_stop_now_loses_what_waits(mortal: Served) -> None:
    undue = mortal.connect("never").spawn(4)
    shmbatch.stop("mortal", now=True)
    with pytest.raises(errors.ExecutorGone):
        undue.get()


# ---- a producer dies -------------------------------------------------------------------------

PRODUCER = """
import sys, shmbatch
held = shmbatch.connect(sys.argv[1] + ".held")
pending = [held.spawn(int(x)) for x in sys.argv[2:]]
print("published", flush=True)
sys.stdin.readline()
"""


def test_a_dead_producers_waiting_calls_never_run(executor: Served, module_gate: Gate) -> None:
    held = executor.connect("held")
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    with Program(PRODUCER, "outcomes", 7, 8) as producer:
        assert producer.line() == "published"
        mine = held.spawn(2)
        producer.kill()
        executor.statistics("held")  # answered after the death has been noticed
    module_gate.open()
    assert first.get() == 10
    assert module_gate.arrived() == [2]
    module_gate.open()
    assert mine.get() == 20
    processes.wait_until(
        lambda: executor.statistics("held")["producers"] == 1, "the dead one is detached"
    )


def test_a_producer_that_dies_in_a_batch_leaves_its_batch_mates_alone(
    executor: Served, module_gate: Gate
) -> None:
    held = executor.connect("held")
    first = held.spawn(1)
    assert module_gate.arrived() == [1]
    with Program(PRODUCER, "outcomes", 7, 8) as producer:
        assert producer.line() == "published"
        mine = held.spawn(2)
        module_gate.open()
        assert sorted(module_gate.arrived()) == [2, 7, 8]
        producer.kill()
    module_gate.open()
    assert first.get() == 10
    assert mine.get() == 20
