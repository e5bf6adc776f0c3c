"""An execution that takes too long ends the executor, whatever it holds, and nothing else does."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
from stuck import LIMIT_S, PATIENT_S

import shmbatch
from shmbatch import errors
from shmbatch.contract.failing import failure_options
from shmbatch.executor import watchdog
from shmbatch.executor.watchdog import Watchdog, watchdog_over
from shmbatch.protocol import owners
from tests import processes
from tests.processes import Gate, Served, Supervised

STUCK = "stuck.py"
WHY = f"has taken longer than its execution_timeout, {LIMIT_S} s"


@pytest.fixture
def stuck(gate: Gate) -> Iterator[Served]:
    executor = Served(STUCK, "stuck")
    yield executor
    executor.kill()


def cause(function: str, pid: int, of: str) -> str:
    return (
        f"executor of 'stuck.{of}' (process {pid}) died: an execution of stuck.{function} {WHY}; "
    )


# ---- in processes of their own ----------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        "holds",
        pytest.param("waits", marks=pytest.mark.slow),
        pytest.param("awaits", marks=pytest.mark.slow),
        pytest.param("delivers", marks=pytest.mark.slow),
    ],
)
def test_everybody_is_told_why_and_the_status_is_1(stuck: Served, function: str) -> None:
    called = stuck.connect(function)
    assert called.remote(0) == 0
    waiting = stuck.connect("never").spawn(1)
    pid = stuck.pid
    with pytest.raises(errors.ExecutorGone) as caught:
        called.remote(-1)
    assert str(caught.value).startswith(cause(function, pid, function))
    with pytest.raises(errors.ExecutorGone) as caught:
        waiting.get()
    assert str(caught.value).startswith(cause(function, pid, "never"))
    assert stuck.wait() == 1
    assert f"an execution of stuck.{function} {WHY}" in stuck.logged
    if function != "awaits":  # the loop's thread was inside of it, so its stack says where
        place = "__reduce__" if function == "delivers" else function
        assert f"in {place}\n" in stuck.logged
        assert "stuck.py" in stuck.logged
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.stop("stuck")  # sweeps the name, which is free
    assert owners.owners() == []


@pytest.mark.slow
def test_what_takes_less_is_left_alone_however_often_and_beside_what_takes_more(
    stuck: Served,
) -> None:
    unlimited, awaits = stuck.connect("unlimited"), stuck.connect("awaits")
    running = awaits.spawn(LIMIT_S / 4)  # in flight while the loop's thread is elsewhere
    assert unlimited.remote(7) == 7
    assert running.get() == LIMIT_S / 4
    assert list(awaits.map([0.0] * 50)) == [0.0] * 50
    stuck.stop()


@pytest.mark.slow
def test_a_plain_method_has_a_limit_too(stuck: Served) -> None:
    with pytest.raises(errors.ExecutorGone, match=f"stuck.Plain.stops {WHY}"):
        stuck.connect("Plain.stops").remote(1)
    assert stuck.wait() == 1


@pytest.mark.slow
def test_a_queue_made_later_has_the_limit_of_its_function(stuck: Served) -> None:
    waits = stuck.connect("waits").with_batching(max_batch_size=2)
    assert waits.remote(1) == 1
    with pytest.raises(errors.ExecutorGone, match=WHY):
        waits.remote(-1)
    assert stuck.wait() == 1


@pytest.mark.slow
def test_a_supervised_executor_is_replaced(gate: Gate) -> None:
    executor = Supervised(STUCK, "stuck")
    try:
        for function in ("waits", "holds"):
            called = executor.connect(function)
            before = executor.executor_pid
            with pytest.raises(errors.ExecutorGone, match=f"stuck.{function} {WHY}"):
                called.remote(-1)
            assert called.remote(2) == 2
            assert executor.executor_pid != before
    finally:
        executor.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "runs"), [(1.3, 0), (0.8, 0.4)])
def test_time_in_which_the_executor_was_stopped_does_not_count(
    stuck: Served, gate: Gate, stopped: float, runs: float
) -> None:
    call = stuck.connect("gated").spawn(1)
    gate.arrived()
    stuck.signal(signal.SIGSTOP)
    select.select([], [], [], stopped * PATIENT_S)  # that it does nothing, needs time to be seen
    stuck.signal(signal.SIGCONT)
    select.select([], [], [], runs * PATIENT_S)
    gate.open()
    assert call.get() == 1
    stuck.stop()


@pytest.mark.slow
def test_time_in_which_it_was_stopped_before_the_watchdog_awoke_does_not_count(
    stuck: Served,
) -> None:
    freezes = stuck.connect("freezes")
    assert freezes.remote(-1) == -1
    select.select([], [], [], 3 * LIMIT_S)  # with nothing to do, the watchdog goes to sleep
    call = freezes.spawn(1)
    processes.wait_until(lambda: stuck.is_stopped, "it is stopped")
    select.select([], [], [], 1.5 * LIMIT_S)
    stuck.signal(signal.SIGCONT)
    assert call.get() == 1
    stuck.stop()


# ---- in this process -------------------------------------------------------------------------


@pytest.mark.no_transport
def test_it_ends_though_a_fork_has_copies_of_all_that_it_holds() -> None:
    """As worker processes do that a function has forked, and that stay."""
    out, into = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # to a name that the kernel chooses
        ends = Watchdog(listener, lambda stuck: None)
        child = os.fork()
        if child == 0:
            try:
                os.close(into)
                os.read(out, 1)
            finally:
                os._exit(0)
        ends.close()
    os.close(into)
    os.close(out)
    os.waitpid(child, 0)


@pytest.mark.no_transport
def test_a_signal_that_c_code_handles_is_left_to_it() -> None:
    before = watchdog._stacks_signal()
    try:
        # Of it the signal module knows nothing.
        assert signal.getsignal(before) is signal.SIG_DFL
        other = watchdog._stacks_signal()
        assert other not in (0, before)
        faulthandler.unregister(other)
    finally:
        faulthandler.unregister(before)


@pytest.mark.no_transport
def test_code_without_line_numbers_has_a_place_in_the_stack() -> None:
    def here() -> Any:
        return watchdog._stack(threading.get_ident())

    without = FunctionType(here.__code__.replace(co_linetable=b""), here.__globals__)
    lines = {each.f_code: line for each, line in traceback.walk_tb(without())}
    assert lines[without.__code__] == here.__code__.co_firstlineno


@pytest.mark.no_transport
def test_an_executor_without_limits_has_no_watchdog() -> None:
    free = SimpleNamespace(definition=SimpleNamespace(failing=failure_options()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        functions: Any = [free, free]
        assert watchdog_over(functions, listener, lambda stuck: None) is None
