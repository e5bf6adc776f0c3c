"""Both transports through the seam, with a producer that is a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import posix_ipc
import pytest

from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.errors import ConfigError
from shmbatch.protocol import control, layout
from shmbatch.protocol._core import PARKED, TAKEN, WAITER, Batch, ExecutorRing, Inbox
from shmbatch.protocol.posix import MAX_CAPACITY, NAME_PREFIX
from shmbatch.protocol.transport import (
    TRANSPORTS,
    ExecutorSegment,
    executor_transport,
    producer_transport,
)
from tests import processes
from tests.protocol.transport_peer import HOUR_NS, is_asleep
from tests.rings import ADD

pytestmark = [pytest.mark.parametrize("name", TRANSPORTS), pytest.mark.no_transport]

CAPACITY = 4
LATE_NS = 1 << 62


class Executor:
    """The executor's half of one connection, and the process at its other end."""

    def __init__(self, name: str, capacity: int = CAPACITY) -> None:
        self.transport = executor_transport(name)
        where = segment_layout(ADD, capacity)
        self.segment: ExecutorSegment = self.transport.create(where.nbytes, capacity)
        shared = ring_arguments(self.segment.memory, ADD, where)
        self.ring = ExecutorRing(*shared, layout.LAYOUT_VERSION)
        self.states = where.controls
        self.inbox = Inbox()
        self.inbox.attach(self.ring, 0)
        self.batch = Batch(CAPACITY)
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.protocol.transport_peer", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=processes.ROOT,
                env=processes.environment(),
            )

    def attach(self, capacity: int = CAPACITY) -> None:
        offer, fds = self.segment.offer()
        self.ask("attach", fds, offer=offer, capacity=capacity)
        self.segment.handed_over()
        self.segment.handed_over()  # idempotent

    def tell(self, kind: str, fds: list[int] | None = None, **fields: Any) -> None:
        control.send(self.sock, {"kind": kind, **fields}, fds or [])

    def hear(self) -> Any:
        processes.readable(self.sock.fileno(), "the producer's answer")
        message, _ = control.receive(self.sock, max_fds=0)
        return message["answer"]

    def ask(self, kind: str, fds: list[int] | None = None, **fields: Any) -> Any:
        self.tell(kind, fds, **fields)
        return self.hear()

    def take(self) -> int:
        self.inbox.drain(LATE_NS)
        return self.inbox.take(self.batch, CAPACITY, LATE_NS)

    def answer(self) -> list[tuple[int, list[int]]]:
        """Complete the batch with sums; wake those who sleep and return whom."""
        xs, ys = self.batch.gather([None, None])
        assert self.batch.scatter([x + y for x, y in zip(xs, ys, strict=True)])
        woken = []
        for ring, _, threads, slots in self.batch.complete() or ():
            self.segment.wake(ring, threads, slots)
            woken.append((threads, slots))
        return woken

    def asleep(self, announced: Any) -> None:
        """Wait until the producer has announced its sleep, and sleeps."""
        processes.wait_until(announced, "the producer announces its sleep")
        pid = self.process.pid
        processes.wait_until(lambda: is_asleep(pid, pid), "the producer sleeps")

    def word(self, offset: int) -> int:
        return int.from_bytes(self.segment.memory[offset : offset + 4], sys.byteorder)

    def close(self) -> None:
        self.sock.close()
        assert self.process.wait(processes.PATIENCE_S) == 0
        self.segment.handed_over()
        self.transport.close()
        self.transport.close()  # idempotent


@contextmanager
def serving(name: str, capacity: int = CAPACITY) -> Iterator[Executor]:
    executor = Executor(name, capacity)
    try:
        yield executor
    finally:
        executor.close()


def test_calls_and_results_cross_between_two_processes(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        for number in range(20):
            tickets = [executor.ask("submit", x=number, y=i) for i in range(CAPACITY)]
            assert executor.ask("submit", x=0, y=0) == -1  # full
            assert executor.take() == CAPACITY
            assert executor.answer() == []  # nobody sleeps
            results = [executor.ask("poll", ticket=ticket) for ticket in tickets]
            assert results == [number + i for i in range(CAPACITY)]


def test_a_producer_asleep_on_its_call_is_woken(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        ticket = executor.ask("submit", x=40, y=2)
        executor.tell("sleep_on_slot", ticket=ticket)
        executor.asleep(lambda: executor.word(executor.states) & WAITER)

        assert executor.take() == 1
        assert executor.word(executor.states) & 7 == TAKEN
        assert executor.answer() == [(0, [0])]

        result, naps = executor.hear()
        assert result == 42
        assert naps >= 1


def test_a_producer_asleep_on_completions_is_woken(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        ticket = executor.ask("submit", x=40, y=2)
        executor.tell("sleep_on_completions", ticket=ticket)
        executor.asleep(lambda: executor.word(layout.COMPLETIONS))

        assert executor.take() == 1
        assert executor.answer() == [(1, [])]

        result, naps = executor.hear()
        assert result == 42
        assert naps >= 1


def test_the_executor_asleep_on_the_bell_is_woken_by_a_call(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        bell = executor.transport.bell
        seen = bell.look()
        pid, thread = os.getpid(), threading.get_native_id()
        executor.tell("submit_to_a_sleeper", x=40, y=2, pid=pid, thread=thread)

        while executor.transport.park(seen, HOUR_NS, 1) == seen:
            pass

        ticket = executor.hear()
        assert executor.take() == 1
        executor.answer()
        assert executor.ask("poll", ticket=ticket) == 42


def test_the_executor_asleep_on_the_bell_is_woken_by_its_own_thread(name: str) -> None:
    transport = executor_transport(name)
    bell = transport.bell
    seen = bell.look()
    sleeper = threading.get_native_id()

    def wake() -> None:
        while not is_asleep(os.getpid(), sleeper):
            pass
        assert bell.ring() == PARKED
        transport.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    while transport.park(seen, HOUR_NS, 1) == seen:
        pass
    thread.join()
    transport.close()


def test_a_park_that_nobody_ends_comes_back_by_itself(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        ticket = executor.ask("submit", x=40, y=2)
        assert executor.ask("park_briefly", ticket=ticket)
        bell = executor.transport.bell
        seen = bell.look()
        for timeout_ns in (1000, 0, -1):
            assert executor.transport.park(seen, timeout_ns, 1) == seen


def test_a_wake_that_nobody_needed_costs_one_look(name: str) -> None:
    """Semaphores keep it, futexes forget it; neither makes anybody believe that he is done."""
    with serving(name) as executor:
        executor.attach()
        ticket = executor.ask("submit", x=40, y=2)
        executor.segment.wake(executor.ring, 3, [0, 0])
        executor.transport.wake()
        executor.tell("sleep_on_slot", ticket=ticket)
        executor.asleep(lambda: executor.word(executor.states) & WAITER)

        assert executor.take() == 1
        executor.answer()

        assert executor.hear()[0] == 42


def test_nothing_has_a_name_once_both_ends_hold_it(name: str) -> None:
    before = processes.shared_memory()
    with serving(name) as executor:
        if name == "linux":
            assert processes.shared_memory() == before
        executor.attach()
        left = processes.shared_memory() - before
        # The bell's semaphore keeps its name for producers to come.
        assert len(left) <= (0 if name == "linux" else 1)
    assert processes.shared_memory() == before


def test_a_connection_whose_handshake_failed_leaves_nothing(name: str) -> None:
    before = processes.shared_memory()
    with serving(name):
        pass  # never attached
    assert processes.shared_memory() == before


def test_two_producers_share_the_bell_and_nothing_else(name: str) -> None:
    with serving(name) as executor:
        executor.attach()
        where = segment_layout(ADD, CAPACITY)
        other = executor.transport.create(where.nbytes, CAPACITY)
        offer, fds = other.offer()
        _, first_fds = executor.segment.offer()
        assert os.fstat(fds[0]).st_ino not in {os.fstat(fds[1]).st_ino}
        assert fds[1] == first_fds[1]
        producer = producer_transport(offer, fds)
        producer.memory[-1] = 1
        assert executor.segment.memory[-1] == 0
        executor.transport.bell.ring()
        assert producer.bell_memory[0] == 4
        other.handed_over()


def test_what_was_handed_over_cannot_be_resized(name: str) -> None:
    """With `posix` it can: that is the price of the plain reference."""
    with serving(name) as executor:
        _, fds = executor.segment.offer()
        if name == "linux":
            assert executor.ask("resize", fds) == [["PermissionError"] * 3] * 2
            executor.attach()
            assert executor.ask("submit", x=1, y=2) == 1 << 17
        else:
            assert os.fstat(fds[0]).st_nlink == 0


def test_a_segment_is_zero_and_as_large_as_it_was_asked_for(name: str) -> None:
    transport = executor_transport(name)
    segment = transport.create(1 << 20, 1)

    assert len(segment.memory) == 1 << 20
    assert segment.memory[:] == bytes(1 << 20)
    _, (fd, _) = segment.offer()
    assert os.fstat(fd).st_size == 1 << 20
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20  # backed, so that no write can fail later
    assert not os.get_inheritable(fd)
    segment.handed_over()
    transport.close()


def test_a_segment_that_has_no_room_leaves_nothing(name: str) -> None:
    transport = executor_transport(name)
    before = processes.shared_memory()
    descriptors = processes.descriptors()

    # No bytes at all are refused by the same call that refuses too many, and harm nobody.
    with pytest.raises(OSError, match="Invalid argument"):
        transport.create(0, 1)

    assert processes.shared_memory() == before
    assert processes.descriptors() == descriptors
    transport.close()


def test_a_transport_says_how_many_slots_it_has(name: str) -> None:
    transport = executor_transport(name)

    assert transport.name == name
    assert transport.max_capacity == (MAX_CAPACITY if name == "posix" else 1 << 17)
    where = segment_layout(ADD, MAX_CAPACITY)
    segment = transport.create(where.nbytes, MAX_CAPACITY)
    segment.handed_over()
    transport.close()


def test_an_unknown_transport_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^transport is 'tcp'; it must be one of linux, posix$"):
        executor_transport("tcp")
    with pytest.raises(ConfigError, match=r"^the executor offers transport 'tcp', unknown here$"):
        producer_transport({"transport": "tcp"}, [])


def test_names_of_semaphores_begin_so_that_they_can_be_swept(name: str) -> None:
    transport = executor_transport(name)
    segment = transport.create(4096, 2)
    offer, _ = segment.offer()

    names = []
    if name == "posix":
        names = [f"{offer['semaphores']}_{number}" for number in range(3)] + [offer["bell"]]
    assert all(each.startswith(NAME_PREFIX) for each in names)

    segment.handed_over()
    transport.close()
    for each in names:
        with pytest.raises(posix_ipc.ExistentialError):
            posix_ipc.Semaphore(each)
