"""Which function is said to take too long, and how the core ends the process then."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from shmbatch.protocol import _core
from tests import processes
from tests.processes import PATIENCE_S

MS = 1_000_000
FOR_EVER_NS = 3600 * 1000 * MS


class Dog:
    """A watchdog of this process, with patience enough never to bite."""

    def __init__(self, grace_ns: int = FOR_EVER_NS, patience_ns: int = FOR_EVER_NS) -> None:
        self.out, self.into = os.pipe()
        self.sock = listening()
        self.core = _core.Watchdog(self.into, self.sock.fileno(), 0, grace_ns, patience_ns)

    def add(self, limit_ms: int, *, on_device: bool = False) -> int:
        return self.core.add(limit_ms * MS, b"", b"bites\n", on_device)

    def barks(self, within_s: float) -> bool:
        return bool(select.select([self.out], [], [], within_s)[0])

    def barked_at(self) -> int:
        """Return which function was the first over its limit."""
        assert self.barks(PATIENCE_S)
        return self.core.accept()

    def close(self) -> None:
        self.core.close()
        self.sock.close()
        os.close(self.out)
        os.close(self.into)


def listening() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind("")  # to a name that the kernel chooses
    return sock


def awaits(dog: Dog, *numbers: int) -> None:
    """Have async functions begin an execution each, and suspend."""
    for number in numbers:
        dog.core.enter(number)
        dog.core.leave(number, True, False)


@pytest.fixture
def dog() -> Iterator[Dog]:
    dog = Dog()
    yield dog
    dog.close()


def test_nobody_is_over_a_limit_when_nothing_runs_or_nothing_has_one(dog: Dog) -> None:
    free, mine = dog.add(0), dog.add(300)
    dog.core.enter(mine)
    dog.core.leave(mine, False, False)
    dog.core.enter(free)
    assert not dog.barks(0.4)
    assert dog.core.accept() == -1


def test_what_is_in_flight_goes_on_until_it_is_done(dog: Dog) -> None:
    mine, other = dog.add(200), dog.add(300)
    awaits(dog, mine, other)
    dog.core.done(mine, False)
    assert dog.barked_at() == other


def test_clocks_stand_still_while_another_function_keeps_the_thread(dog: Dog) -> None:
    mine, other = dog.add(200), dog.add(300)
    awaits(dog, mine)
    dog.core.enter(other)
    assert dog.barked_at() == other


def test_they_stand_still_while_it_delivers_its_results(dog: Dog) -> None:
    mine, other, timer = dog.add(250), dog.add(0), dog.add(175)
    awaits(dog, mine)
    dog.core.enter(other)
    assert not dog.barks(0.15)
    dog.core.done(other, False)
    awaits(dog, timer)  # which is over sooner, as that time has not counted
    assert dog.barked_at() == timer


def test_it_wakes_for_a_function_whose_limit_is_shorter_than_all_before(dog: Dog) -> None:
    slow = dog.add(3_600_000)
    awaits(dog, slow)
    assert not dog.barks(0.05)  # it has looked at that one, and sleeps
    quick = dog.add(5)
    dog.core.enter(quick)
    assert dog.barked_at() == quick


def test_it_wakes_from_a_sleep_for_good(dog: Dog) -> None:
    mine = dog.add(5)
    assert not dog.barks(0.03)
    dog.core.enter(mine)
    assert dog.barked_at() == mine


def test_numbers_that_it_did_not_give_are_refused(dog: Dog) -> None:
    for number in (0, -1):
        with pytest.raises(IndexError):
            dog.core.enter(number)
        with pytest.raises(IndexError):
            dog.core.leave(number, False, False)
        with pytest.raises(IndexError):
            dog.core.done(number, False)


# ---- on a device, which does one batch after the other ----


def lands(dog: Dog, *numbers: int) -> None:
    """Have functions launch a batch each, in this order."""
    for number in numbers:
        dog.core.enter(number)
        dog.core.leave(number, True, True)


def test_on_a_device_a_batch_has_time_only_when_those_before_it_are_done(dog: Dog) -> None:
    long, short = dog.add(0, on_device=True), dog.add(50, on_device=True)
    lands(dog, long, short)
    assert not dog.barks(0.1)  # it cannot even begin
    dog.core.done(long, False)
    assert dog.barked_at() == short


def test_and_then_it_has_all_of_its_time(dog: Dog) -> None:
    long, short = dog.add(0, on_device=True), dog.add(250, on_device=True)
    timer = dog.add(175)
    lands(dog, long, short)
    assert not dog.barks(0.15)
    dog.core.done(long, False)
    awaits(dog, timer)
    assert dog.barked_at() == timer


def test_the_first_on_a_device_is_the_one_that_takes_too_long(dog: Dog) -> None:
    long, short = dog.add(300, on_device=True), dog.add(50, on_device=True)
    lands(dog, long, short)
    assert dog.barked_at() == long


def test_a_second_batch_of_a_function_comes_behind_those_between(dog: Dog) -> None:
    twice, between = dog.add(50, on_device=True), dog.add(300, on_device=True)
    lands(dog, twice, between, twice)
    dog.core.done(twice, True)
    assert dog.barked_at() == between


def test_a_batch_that_is_done_says_the_same_of_those_before_it(dog: Dog) -> None:
    """Completed is what the loop looks at first, in whichever order they were launched."""
    first, second, third = (dog.add(limit, on_device=True) for limit in (300, 300, 100))
    lands(dog, first, second, third)
    dog.core.done(second, False)
    dog.core.done(first, False)
    assert dog.barked_at() == third


def test_code_that_waits_for_the_device_may_wait_for_others_there(dog: Dog) -> None:
    """As `.item()` does in a function whose kernels are behind another one's."""
    long, short = dog.add(3_600_000, on_device=True), dog.add(50, on_device=True)
    on_cpu = dog.add(50)
    lands(dog, long)
    dog.core.enter(short)
    assert not dog.barks(0.1)
    dog.core.leave(short, True, True)
    dog.core.enter(on_cpu)  # and it does not wait for the device
    assert dog.barked_at() == on_cpu


def test_code_that_waits_for_the_device_does_not_wait_for_ever(dog: Dog) -> None:
    first, second = dog.add(50, on_device=True), dog.add(50, on_device=True)
    lands(dog, first)
    dog.core.enter(second)
    assert dog.barked_at() == second


def test_what_awaits_is_not_on_the_device_yet(dog: Dog) -> None:
    free, mine = dog.add(0, on_device=True), dog.add(50, on_device=True)
    lands(dog, free)
    awaits(dog, mine)
    assert dog.barked_at() == mine


# ---- its end, and that of the process ----


def in_a_fork(act: Callable[[], object], ends: str) -> int:
    """Return the status of a fork of this process that does something; it must end."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(2)
    fd = os.pidfd_open(child)
    try:
        processes.readable(fd, ends)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(fd)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def test_a_fork_of_the_process_has_no_thread_to_end(dog: Dog) -> None:
    def lets_go() -> None:
        dog.core.close()
        del dog.core

    assert in_a_fork(lets_go, "it is destroyed in a fork") == 0


def test_a_standard_error_that_nobody_reads_does_not_keep_it() -> None:
    def holds_the_gil() -> None:
        _, into = os.pipe()
        os.write(into, bytes(fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)))
        os.dup2(into, 2)
        dog = Dog(10 * MS)
        dog.core.enter(dog.add(5))
        ctypes.PyDLL(None).pause()

    assert in_a_fork(holds_the_gil, "it ends though nobody reads what it says") == 1


def test_it_goes_on_watching_when_python_has_taken_over_and_comes_to_no_end() -> None:
    def dies_and_does_not() -> None:
        dog = Dog(FOR_EVER_NS, 50 * MS)
        dog.core.enter(dog.add(5))
        os.close(2)
        assert dog.barked_at() == 0
        signal.pause()

    assert in_a_fork(dies_and_does_not, "it ends by itself") == 1
