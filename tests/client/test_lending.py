"""Inputs written in place and results read in place: right, and no slot is ever lost for it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.protocol import ownership
from shmbatch.protocol._core import DONE
from tests import processes
from tests.processes import PATIENCE_S, Gate, Served, Supervised
from tests.programs import ran

ONES = np.ones((2, 3), np.float32)
PAIR = np.ones(2, np.float32)


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    with processes.served("lending.py", "lending") as executor:
        yield executor


@pytest.fixture
def scaled(executor: Served) -> Iterator[shmbatch.Function]:
    with all_slots_back(executor.connect("scaled")) as function:
        yield function


@pytest.fixture
def held(executor: Served, module_gate: Gate) -> Iterator[shmbatch.Function]:
    module_gate.reset()
    with all_slots_back(executor.connect("held")) as function:
        yield function


@contextmanager
def all_slots_back(function: shmbatch.Function) -> Iterator[shmbatch.Function]:
    yield function
    connection = function.connect()
    if connection.ring.free_slots < connection.capacity:
        gc.collect()  # a traceback may be a cycle
    processes.wait_until(
        lambda: connection.ring.free_slots == connection.capacity, "all slots are free"
    )


def free_slots(function: shmbatch.Function) -> int:
    return function.connect().ring.free_slots


def write(slot: Any, value: float = 1, by: float = 2.0) -> None:
    slot["frames"][...] = value
    slot["by"] = by
    slot["notes"] = {}


def finished(call: shmbatch.FunctionCall) -> shmbatch.FunctionCall:
    ring = call._connection.ring
    processes.wait_until(lambda: ring.state(call._ticket) == DONE, "the call is done")
    return call


# ---- reserve -------------------------------------------------------------------------------


def test_an_input_is_written_in_place_by_name_or_by_position(scaled: shmbatch.Function) -> None:
    with scaled.reserve() as slot:
        frames = slot["frames"]
        assert (frames.shape, frames.dtype, frames.flags.writeable) == ((2, 3), np.float32, True)
        assert slot[0] is frames
        frames[:] = 3
        slot["frames"] += 1
        slot[1] = 2  # an int is a float, as in any call
        slot["notes"] = {"x": 1}
        assert (slot["by"], slot[2]) == (2, {"x": 1})
        assert free_slots(scaled) == 7
        assert (slot.remote() == 8).all()
    with scaled.reserve() as slot:
        slot["frames"] = 2 * np.ones((3, 2), np.float32).T  # in any order of its bytes
        write_other = slot["frames"]
        write_other[0] = 0
        slot["by"], slot["notes"] = 1.0, {}
        call = slot.spawn()
    assert call.get().tolist() == [[0] * 3, [2] * 3]


def test_a_slot_comes_back_in_whatever_way_its_reservation_ends(
    scaled: shmbatch.Function,
) -> None:
    with scaled.reserve() as slot:
        frames = slot["frames"]
    assert free_slots(scaled) == 8
    assert not frames.flags.writeable
    with pytest.raises(ZeroDivisionError), scaled.reserve() as slot:
        slot["frames"][:] = 1 / 0
    assert free_slots(scaled) == 8
    entered = scaled.reserve()
    entered.__enter__()
    frames = entered["frames"]
    del entered  # as a generator does that is dropped
    assert free_slots(scaled) == 7
    frames[:] = 1  # nobody else has it meanwhile
    del frames
    assert free_slots(scaled) == 8
    scaled.reserve()
    assert free_slots(scaled) == 8


def test_a_reservation_is_called_once_and_only_inside(scaled: shmbatch.Function) -> None:
    reservation = scaled.reserve()
    assert repr(reservation) == "<Reservation of 'lending.scaled'>"
    with pytest.raises(errors.ConfigError, match="it has no slot before `with`"):
        reservation["by"] = 1.0
    with pytest.raises(errors.ConfigError, match="it has no slot before `with`"):
        reservation.remote()
    with reservation as slot:
        write(slot)
        frames = slot["frames"]
        assert (slot.remote() == 2).all()
        assert not frames.flags.writeable
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            frames.flags.writeable = True
        for use in (slot.remote, slot.spawn, lambda: slot["frames"]):
            with pytest.raises(errors.ConfigError, match="its call was made"):
                use()
    with pytest.raises(errors.ConfigError, match="entered before"):
        reservation.__enter__()
    with scaled.reserve() as slot:
        write(slot)
    with pytest.raises(errors.ConfigError, match="its `with` has ended"):
        slot.remote()


def test_what_does_not_fit_is_refused_as_in_any_call_and_may_be_mended(
    scaled: shmbatch.Function,
) -> None:
    with scaled.reserve() as slot:
        with pytest.raises(errors.InputTypeError, match="has no parameter 'frame'; it has frames"):
            slot["frame"]
        with pytest.raises(errors.InputTypeError, match="has no parameter 3"):
            slot[3] = 1
        with pytest.raises(errors.InputTypeError, match="must have dtype float32, got float64"):
            slot["frames"] = np.ones((2, 3))
        with pytest.raises(errors.ConfigError, match=r"'by' of .* is not an array"):
            slot["by"]
        slot["by"], slot["notes"] = "2", {}
        with pytest.raises(errors.InputTypeError, match="missing 'frames'"):
            slot.remote()
        slot["frames"][:] = 1
        with pytest.raises(errors.InputTypeError, match=r"parameter 'by' of .* must be a float"):
            slot.remote()
        slot["by"] = 2.0
        assert (slot.remote() == 2).all()
    with scaled.reserve() as slot:
        write(slot, by=-1.0)
        with pytest.raises(ValueError, match=r"by -1\.0"):
            slot.remote()


def test_a_reservation_may_go_to_other_threads_and_is_called_by_one_of_them(
    scaled: shmbatch.Function,
) -> None:
    for number in range(20):
        together = threading.Barrier(4)

        def call(slot: Any, together: threading.Barrier = together) -> Any:
            together.wait()
            with suppress(errors.ConfigError):
                return slot.remote()

        with scaled.reserve() as slot, ThreadPoolExecutor(4) as threads:
            threads.submit(write, slot, number).result()
            results = [each.result() for each in [threads.submit(call, slot) for _ in range(4)]]
        (result,) = [each for each in results if each is not None]
        assert (result == 2 * number).all()


def test_waiting_for_a_slot_to_reserve_obeys_the_handles_limits(
    held: shmbatch.Function, module_gate: Gate
) -> None:
    calls = [held.spawn(PAIR) for _ in range(2)]
    module_gate.arrived()
    with pytest.raises(errors.RingFull, match="all 2 slots"):
        held.with_options(timeout=0.01).reserve().__enter__()
    with pytest.raises(errors.DeadlineExceeded):
        held.with_options(deadline_ms=10).reserve().__enter__()
    with ThreadPoolExecutor(2) as threads:
        entered = threads.submit(held.reserve().__enter__)
        processes.wait_until(lambda: len(held.connect().slots) == 1, "it queues")
        module_gate.open(2)
        slot = entered.result(PATIENCE_S)
    slot[0][:] = 0
    assert slot.remote().tolist() == [1, 1]
    assert [call.get().tolist() for call in calls] == [[2, 2]] * 2
    module_gate.arrived()


# ---- borrow --------------------------------------------------------------------------------


def test_a_result_is_borrowed_where_it_stands(scaled: shmbatch.Function) -> None:
    call = scaled.spawn(ONES, 2.0, {})
    with call.borrow() as result:
        assert (result == 2).all()
        assert not result.flags.writeable
        assert free_slots(scaled) == 7
        row = result[1]
        assert repr(call) == "<FunctionCall 'lending.scaled' borrowed>"
        assert call.done()
        assert not call.cancel()
    del result
    for _ in range(20):  # its slot is nobody else's
        assert (scaled.remote(ONES, 3.0, {}) == 3).all()
    assert row.tolist() == [2] * 3
    assert free_slots(scaled) == 7
    for again in (call.get, lambda: call.borrow().__enter__(), lambda: asyncio.run(aio(call))):
        with pytest.raises(errors.ConfigError, match="was borrowed, which can be done once"):
            again()
    del row
    assert free_slots(scaled) == 8


async def aio(call: shmbatch.FunctionCall) -> Any:
    return await call.get.aio()


def test_what_is_no_array_or_was_copied_out_before_is_given_as_it_is(
    executor: Served, scaled: shmbatch.Function
) -> None:
    with executor.connect("lengths").spawn("abc").borrow() as length:
        assert length == 3
    call = scaled.spawn(ONES, 2.0, {})
    mine = call.get()
    with call.borrow() as result:
        assert np.shares_memory(mine, result)
        assert not result.flags.writeable
    mine[:] = 1  # is its owner's
    assert call.get() is mine
    ring = scaled.connect().ring
    calls = [finished(scaled.spawn(ONES, float(x), {})) for x in range(ring.free_slots)]
    assert (scaled.remote(ONES, 2.0, {}) == 2).all()  # which has made room
    for number, call in enumerate(calls):
        with call.borrow() as result:
            assert (result == number).all()
            assert not result.flags.writeable


def test_an_error_that_borrowing_raised_is_let_go_of(scaled: shmbatch.Function) -> None:
    """Its traceback has frames that have the call, which has the error."""
    late = scaled.with_options(deadline_ms=1e-6)

    def raised() -> weakref.ref[BaseException]:
        try:
            with late.spawn(ONES, 2.0, {}).borrow():
                pass
        except errors.DeadlineExceeded as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        assert raised()() is None
    finally:
        gc.enable()


def test_borrowing_raises_what_get_would(
    scaled: shmbatch.Function, held: shmbatch.Function, module_gate: Gate
) -> None:
    with pytest.raises(ValueError, match=r"by -1\.0"), scaled.spawn(ONES, -1.0, {}).borrow():
        pass
    calls = [held.spawn(PAIR), held.with_options(timeout=0.01).spawn(PAIR)]
    module_gate.arrived()
    with pytest.raises(errors.CallTimeout, match="the call goes on"), calls[0].borrow(0.01):
        pass
    with pytest.raises(errors.CallTimeout, match="is given up"), calls[1].borrow():
        pass
    calls[1].cancel()
    with ThreadPoolExecutor(2) as threads:
        got = threads.submit(calls[0].get)  # who is late is told why
        processes.wait_until(lambda: calls[0]._shared, "it waits")
        borrowed = threads.submit(calls[0].borrow().__enter__)
        module_gate.open()
        outcomes = [each.exception(PATIENCE_S) for each in (got, borrowed)]
    assert {type(each) for each in outcomes} <= {type(None), errors.ConfigError}
    if outcomes[1] is None:
        assert borrowed.result().tolist() == [2, 2]
    del got, borrowed


# ---- how many ------------------------------------------------------------------------------


def test_half_of_the_slots_are_never_lent(scaled: shmbatch.Function) -> None:
    reservations = [scaled.reserve() for _ in range(2)]
    for each in reservations:
        each.__enter__()
    borrowed = [scaled.spawn(ONES, 2.0, {}).borrow().__enter__() for _ in range(2)]
    assert free_slots(scaled) == 4
    with pytest.raises(errors.RingFull, match=r"4 of 8 slots for 'lending.scaled' are reserved"):
        scaled.reserve().__enter__()
    call = scaled.spawn(ONES, 5.0, {})
    with call.borrow() as result:  # a copy
        assert (result == 5).all()
        assert not result.flags.writeable
        assert free_slots(scaled) == 4
    assert (call.get() == 5).all()
    results = list(scaled.map([ONES] * 40, [3.0] * 40, [{}] * 40))  # nobody waits for ever
    assert all((each == 3).all() for each in results)
    del borrowed
    for each in reservations:
        each.__exit__(None, None, None)
    with scaled.reserve():
        pass


def test_the_only_slot_is_never_lent_whatever_is_let_go_of(executor: Served) -> None:
    alone = executor.connect("alone")
    with pytest.raises(errors.RingFull, match=r"0 of 1 slots .* may be; give the function more"):
        alone.reserve().__enter__()
    assert alone.remote(1.0) == 1.0


def test_whoever_waits_for_a_slot_is_told_of_one_that_was_lent(
    held: shmbatch.Function, module_gate: Gate
) -> None:
    with held.reserve() as slot:
        running = held.spawn(PAIR)
        module_gate.arrived()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(held.spawn, PAIR)
            processes.wait_until(lambda: len(held.connect().slots) == 1, "it queues")
            slot.__exit__(None, None, None)
            call = waiting.result(PATIENCE_S)
        module_gate.open(2)
        assert [each.get().tolist() for each in (running, call)] == [[2, 2]] * 2
    module_gate.arrived()


def test_nothing_is_left_of_many_of_them(scaled: shmbatch.Function) -> None:
    def use(number: int) -> None:
        with scaled.reserve() as slot:
            write(slot, number)
            if number % 4 == 0:
                return
            call = slot.spawn()
        if number % 4 == 1:
            call.cancel()
        elif number % 4 == 2:
            assert (call.get() == 2 * number).all()
        else:
            with call.borrow() as result:
                assert (result == 2 * number).all()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(use, range(300)))
    assert scaled.connect().stash == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_costs_no_slot(scaled: shmbatch.Function) -> None:
    """It comes between any two steps of Python."""

    class Interrupted(BaseException):
        pass

    def use() -> None:
        with scaled.reserve() as slot:
            write(slot)
            call = slot.spawn()
            with call.borrow():
                pass

    def interrupt(at: int) -> bool:
        """Interrupt at the n-th step; say whether there was one."""
        steps = itertools.count(1)
        last = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal last
            if "shmbatch" not in frame.f_code.co_filename:
                return None
            if sys.exc_info()[0] is not None:
                return trace  # which a tracer that raises has the interpreter never forget
            last = next(steps)
            if last == at:
                raise Interrupted
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            use()
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
        return last >= at

    interrupted = list(itertools.takewhile(interrupt, itertools.count(1)))
    assert len(interrupted) > 100
    assert (scaled.remote(ONES, 2.0, {}) == 2).all()  # the executor hears of what was given up


# ---- forks, and executors that end ---------------------------------------------------------


def test_a_forked_child_leaves_its_parents_slots_alone(scaled: shmbatch.Function) -> None:
    call = scaled.spawn(ONES, 2.0, {})
    with scaled.reserve() as slot, call.borrow() as result:
        write(slot, 4)
        child = os.fork()
        if child == 0:
            try:
                for use in (slot.remote, lambda: slot["frames"]):
                    with pytest.raises(errors.ConfigError, match="belongs to the parent process"):
                        use()
                slot.__exit__(None, None, None)
                assert (result == 2).all()
                with scaled.reserve() as own:
                    write(own, 5)
                    assert (own.remote() == 10).all()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (slot.remote() == 8).all()
    del result


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_memory_outlives_an_executor_that_nobody_follows(how: str, module_gate: Gate) -> None:
    with processes.served("lending.py", "alone") as executor:
        scaled = executor.connect("scaled")
        call = finished(scaled.spawn(ONES, 2.0, {}))
        late = finished(scaled.spawn(ONES, 3.0, {}))
        with scaled.reserve() as slot, call.borrow() as result:
            write(slot)
            if how == "killed":
                executor.kill()
                ownership.sweep()
            else:
                executor.stop()
            with late.borrow() as other:
                assert (other == 3).all()
            with pytest.raises((errors.ExecutorGone, errors.ExecutorClosed)):
                slot.remote()
            processes.hang_up()
            assert (result == 2).all()
            with pytest.raises(errors.ExecutorNotFound), scaled.reserve():
                pass
        assert (result == 2).all()


def test_the_next_executor_gets_what_was_written_for_the_one_before(
    module_gate: Gate,
) -> None:
    executor = Supervised("lending.py", "moves")
    try:
        with all_slots_back(executor.connect("scaled")) as scaled:
            call = finished(scaled.spawn(ONES, 2.0, {}))
            with scaled.reserve() as slot, scaled.reserve() as other, call.borrow() as result:
                write(slot, 3)
                write(other, 4)
                executor.kill_executor()
                assert (slot.remote() == 6).all()
                assert scaled.connect().ring.moves == 1
                assert (other["frames"] == 4).all()
                assert (other.remote() == 8).all()
                assert (result == 2).all()
                assert free_slots(scaled) == 8
            del result
    finally:
        executor.kill()


@pytest.mark.slow
def test_an_executor_that_replaces_another_gets_what_was_written(module_gate: Gate) -> None:
    executor = Supervised("dtypes.py", "replaced")
    try:
        added = executor.connect("added", arrays="numpy")
        with all_slots_back(added), added.reserve() as slot:
            slot["xs"][:] = 2
            slot["ys"][:] = 0x3F80
            slot["names"] = np.str_("x")
            assert ran("reload", "replaced").returncode == 0
            assert slot.remote().tolist() == [0x4040] * 4
    finally:
        executor.kill()
