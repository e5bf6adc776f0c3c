"""An execution that takes too long ends the executor, whatever it holds, and nothing else does."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import shmbatch
from shmbatch import errors
from shmbatch.contract.failing import failure_options
from shmbatch.executor.watchdog import watchdog_over
from shmbatch.protocol import _core, owners
from tests import processes
from tests.processes import Gate, Served, Supervised

STUCK = "stuck.py"
LIMIT_S, PATIENT_S = 0.8, 2.5  # of its functions
MS = 1_000_000
WHY = "has taken longer than its execution_timeout, 0.8 s"


@pytest.fixture
def stuck(gate: Gate) -> Iterator[Served]:
    executor = Served(STUCK, "stuck")
    yield executor
    executor.kill()


def cause(function: str, pid: int, of: str) -> str:
    return (
        f"executor of 'stuck.{of}' (process {pid}) died: an execution of stuck.{function} {WHY}; "
        "calls that it had taken may or may not have run"
    )


# ---- in processes of their own ----------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        "holds",
        pytest.param("waits", marks=pytest.mark.slow),
        pytest.param("awaits", marks=pytest.mark.slow),
    ],
)
def test_everybody_is_told_why_and_the_status_is_1(stuck: Served, function: str) -> None:
    called = stuck.connect(function)
    assert called.remote(0) == 0
    waiting = stuck.connect("never").spawn(1)
    pid = stuck.pid
    with pytest.raises(errors.ExecutorGone) as caught:
        called.remote(-1)
    assert str(caught.value) == cause(function, pid, function)
    with pytest.raises(errors.ExecutorGone) as caught:
        waiting.get()
    assert str(caught.value) == cause(function, pid, "never")
    assert stuck.wait() == 1
    assert f"an execution of stuck.{function} {WHY}" in stuck.logged
    if function != "awaits":  # the loop's thread was inside of it, so its stack says where
        assert f"in {function}\n" in stuck.logged
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
def test_time_in_which_the_executor_was_stopped_does_not_count(stuck: Served, gate: Gate) -> None:
    call = stuck.connect("gated").spawn(1)
    gate.arrived()
    stuck.signal(signal.SIGSTOP)
    select.select([], [], [], 1.3 * PATIENT_S)  # that it does nothing, needs time to be seen
    stuck.signal(signal.SIGCONT)
    gate.open()
    assert call.get() == 1
    stuck.stop()


# ---- the core's part --------------------------------------------------------------------------


class Dog:
    """A watchdog of this process, with patience enough never to bite."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(f"\0shmbatch-test-{os.getpid()}-{id(self)}")
        self.core = _core.Watchdog(self.into, self.sock.fileno(), 0, 3600 * 1000 * MS)

    def barks(self, within_s: float) -> bool:
        return bool(select.select([self.out], [], [], within_s)[0])

    def close(self) -> None:
        self.core.close()
        self.sock.close()
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def dog() -> Iterator[Dog]:
    dog = Dog()
    yield dog
    dog.close()


PATIENCE_S = processes.PATIENCE_S


def test_it_names_the_function_that_is_over_its_limit(dog: Dog) -> None:
    other, mine = dog.core.add(3600 * 1000 * MS, b"", b""), dog.core.add(5 * MS, b"", b"")
    dog.core.enter(other)
    dog.core.leave(other, True)
    dog.core.enter(mine)
    assert dog.barks(PATIENCE_S)
    assert dog.core.accept() == mine


def test_nobody_is_over_a_limit_when_nothing_runs_or_nothing_has_one(dog: Dog) -> None:
    free, mine = dog.core.add(0, b"", b""), dog.core.add(100 * MS, b"", b"")
    dog.core.enter(mine)
    dog.core.leave(mine, False)
    dog.core.enter(free)
    assert not dog.barks(0.15)
    assert dog.core.accept() == -1


def test_what_is_in_flight_goes_on_until_it_is_done(dog: Dog) -> None:
    mine = dog.core.add(100 * MS, b"", b"")
    dog.core.enter(mine)
    dog.core.leave(mine, True)
    dog.core.done(mine, False)
    assert not dog.barks(0.15)
    dog.core.enter(mine)
    dog.core.leave(mine, True)
    assert dog.barks(PATIENCE_S)


def test_clocks_stand_still_while_another_function_keeps_the_thread(dog: Dog) -> None:
    mine, other = dog.core.add(100 * MS, b"", b""), dog.core.add(0, b"", b"")
    dog.core.enter(mine)
    dog.core.leave(mine, True)
    dog.core.enter(other)
    assert not dog.barks(0.15)
    dog.core.leave(other, False)
    dog.core.done(mine, False)
    assert not dog.barks(0.15)


def test_it_wakes_for_a_function_whose_limit_is_shorter_than_all_before(dog: Dog) -> None:
    slow = dog.core.add(3600 * 1000 * MS, b"", b"")
    dog.core.enter(slow)
    dog.core.leave(slow, True)
    assert not dog.barks(0.05)  # it has looked at that one, and sleeps
    quick = dog.core.add(5 * MS, b"", b"")
    dog.core.enter(quick)
    assert dog.barks(PATIENCE_S)
    assert dog.core.accept() == quick


def test_it_wakes_from_a_sleep_for_good(dog: Dog) -> None:
    mine = dog.core.add(5 * MS, b"", b"")
    assert not dog.barks(0.03)
    dog.core.enter(mine)
    assert dog.barks(PATIENCE_S)


def test_numbers_that_it_did_not_give_are_refused(dog: Dog) -> None:
    for number in (0, -1):
        with pytest.raises(IndexError):
            dog.core.enter(number)
        with pytest.raises(IndexError):
            dog.core.leave(number, False)
        with pytest.raises(IndexError):
            dog.core.done(number, False)


def test_a_fork_of_the_process_has_no_thread_to_end(dog: Dog) -> None:
    child = os.fork()
    if child == 0:
        try:
            dog.core.close()
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_executor_without_limits_has_no_watchdog() -> None:
    free = SimpleNamespace(definition=SimpleNamespace(failing=failure_options()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        functions: Any = [free, free]
        assert watchdog_over(functions, listener, lambda stuck: None) is None
