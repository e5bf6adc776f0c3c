"""What is particular to transport `posix`: names, counts, a /dev/shm that is full."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import posix_ipc
import pytest

from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.errors import ConfigError, HandshakeError
from shmbatch.protocol import layout, posix
from shmbatch.protocol._core import THREAD, Batch, ExecutorRing, Inbox, ProducerRing
from shmbatch.protocol.posix import PosixExecutor, PosixProducer
from shmbatch.protocol.transport import executor_transport
from tests import processes
from tests.protocol.transport_peer import HOUR_NS, is_asleep
from tests.rings import ADD

pytestmark = pytest.mark.no_transport

CAPACITY = 4
SEM_VALUE_MAX = 0x7FFFFFFF


class Pair:
    """Both halves of one connection in this process."""

    def __init__(self) -> None:
        self.transport = PosixExecutor()
        where = segment_layout(ADD, CAPACITY)
        self.segment = self.transport.create(where.nbytes, CAPACITY)
        message, fds = self.segment.offer()
        self.files = [f"/dev/shm/sem.{message['semaphores'][1:]}_{i}" for i in range(CAPACITY + 1)]
        self.kept = [os.open(file, os.O_RDWR) for file in self.files]  # as a hostile one could
        self.producer = PosixProducer(message, fds)
        shared = ring_arguments(self.segment.memory, ADD, where)
        self.executor_ring = ExecutorRing(*shared, layout.LAYOUT_VERSION)
        self.ring = ProducerRing(
            *(*shared, self.producer.bell_memory, lambda sleeping: None, None)
        )
        self.inbox = Inbox()
        self.inbox.attach(self.executor_ring, 0)
        self.batch = Batch(CAPACITY)

    def submit(self) -> int:
        ticket = self.ring.submit((1, 2), 0)
        assert ticket >= 0
        return ticket

    def complete(self) -> None:
        """Run every waiting call, and wake who sleeps."""
        self.inbox.drain(1 << 62)
        assert self.inbox.take(self.batch, CAPACITY, 1 << 62)
        xs, ys = self.batch.gather([None, None])
        assert self.batch.scatter([x + y for x, y in zip(xs, ys, strict=True)])
        for ring, _, threads, slots in self.batch.complete() or ():
            self.segment.wake(ring, threads, slots)

    def count(self, semaphore: int) -> int:
        """The count of a slot's semaphore, or of the completions' (-1), in the C library's words:
        while nobody sleeps on it."""
        return int(struct.unpack("=I", os.pread(self.kept[semaphore], 4, 0))[0])

    def close(self) -> None:
        for fd in self.kept:
            os.close(fd)
        self.segment.handed_over()
        self.transport.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@contextmanager
def asleep(*sleeps: Callable[[], object]) -> Iterator[None]:
    """Have a thread for each of *sleeps*, asleep; at the end all must have woken."""
    started = [threading.Thread(target=sleep, daemon=True) for sleep in sleeps]
    for thread in started:
        thread.start()
    for thread in started:
        processes.wait_until(
            lambda at=thread: is_asleep(os.getpid(), at.native_id), "the thread sleeps"
        )
    yield
    for thread in started:
        thread.join(processes.PATIENCE_S)
        assert not thread.is_alive(), "nobody woke it"


# ---- names -----------------------------------------------------------------------------------


def test_a_segment_has_no_names_any_more_once_the_producer_has_opened_it() -> None:
    before = processes.shared_memory()
    transport = PosixExecutor()
    (bell,) = processes.shared_memory() - before
    segment = transport.create(4096, CAPACITY)
    assert len(processes.shared_memory() - before) == CAPACITY + 2

    producer = PosixProducer(*segment.offer())

    assert processes.shared_memory() - before == {bell}
    segment.handed_over()
    transport.close()
    assert processes.shared_memory() == before
    producer.wake_executor()  # nobody is there


def test_a_fork_that_drops_its_copy_takes_no_names_away() -> None:
    transport = PosixExecutor()
    segment = transport.create(4096, CAPACITY)
    named = processes.shared_memory()

    child = os.fork()
    if child == 0:
        segment.__del__()
        transport.close()
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    assert processes.shared_memory() == named
    segment.handed_over()
    transport.close()


def test_a_producer_that_cannot_find_the_names_says_what_must_be_shared() -> None:
    transport = PosixExecutor()
    segment = transport.create(4096, CAPACITY)
    message, fds = segment.offer()
    descriptors = processes.descriptors()

    with pytest.raises(HandshakeError) as caught:
        PosixProducer(message | {"semaphores": "/shmbatch-0-none"}, fds)

    assert str(caught.value) == (
        "cannot open a semaphore of the executor (ExistentialError: No semaphore exists with the "
        "specified name); both processes must have the same /dev/shm, or use transport linux"
    )
    del caught
    assert processes.descriptors() == descriptors
    segment.handed_over()
    transport.close()


# ---- no room, no descriptors -----------------------------------------------------------------


def test_a_dev_shm_without_room_is_said_with_numbers_and_remedies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport = PosixExecutor()
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result((real.f_bsize, 4096, 16384, 700, 500, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)

    with pytest.raises(OSError, match="bytes left") as caught:
        transport.create(2_048_000, CAPACITY)

    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror == (
        "/dev/shm has 2048000 bytes left and 2068480 are needed; enlarge it (of a container with "
        "--shm-size), or use transport linux"
    )
    transport.create(2_048_000 - 5 * 4096, CAPACITY).handed_over()
    transport.close()


def test_a_dev_shm_that_is_full_serves_nobody_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs("/dev/shm")
    full = os.statvfs_result((real.f_bsize, 4096, 16384, 700, 1, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(ConfigError) as caught:
        executor_transport("posix")
    assert str(caught.value) == (
        "transport posix cannot be used: /dev/shm has 4096 bytes left and 8192 are needed; "
        "enlarge it (of a container with --shm-size), or use transport linux"
    )


@pytest.mark.parametrize("fails", range(CAPACITY + 1))
def test_a_semaphore_that_cannot_be_made_leaves_none_of_the_others(
    fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = PosixExecutor()
    create = posix._create_semaphore
    left = iter(range(fails))

    def creates(name: str) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(name)

    monkeypatch.setattr(posix, "_create_semaphore", creates)
    before = processes.shared_memory(), processes.descriptors()

    with pytest.raises(OSError, match="No space left on device"):
        transport.create(4096, CAPACITY)

    assert (processes.shared_memory(), processes.descriptors()) == before
    transport.close()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Have room for *count* more descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    taken.append(os.dup(2))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


NEEDED = {"linux": 2, "posix": 3}


@pytest.mark.parametrize("name", NEEDED)
def test_without_descriptors_nothing_is_made_and_nothing_is_left(name: str) -> None:
    transport = executor_transport(name)
    before = processes.shared_memory(), processes.descriptors()
    for count in range(NEEDED[name]):
        with descriptors_left(count), pytest.raises(OSError, match="Too many open files"):
            transport.create(4096, CAPACITY)
        with descriptors_left(count), pytest.raises(OSError, match="Too many open files"):
            executor_transport(name)
        assert (processes.shared_memory(), processes.descriptors()) == before
    with descriptors_left(NEEDED[name]):
        transport.create(4096, CAPACITY).handed_over()
    transport.close()


def test_a_producer_without_descriptors_leaves_nothing_open() -> None:
    transport = PosixExecutor()
    segment = transport.create(4096, CAPACITY)
    before = processes.descriptors()
    for count in range(3):
        with descriptors_left(count), pytest.raises(OSError, match="Too many open files"):
            PosixProducer(*segment.offer())
    assert processes.descriptors() == before
    producer = PosixProducer(*segment.offer())
    producer.wake_executor()
    segment.handed_over()
    transport.close()


SMALL = """
import os
import room
from shmbatch import errors

with room.app.run(transport="posix"):
    assert room.small.remote(20) == 21
    free = os.statvfs("/dev/shm").f_bavail
    try:
        room.large.remote(0)
    except errors.HandshakeError as error:
        print(error)
    assert os.statvfs("/dev/shm").f_bavail == free
    assert room.small.remote(21) == 22
print(os.listdir("/dev/shm"))
"""

ROOM = """
import numpy as np
from jaxtyping import UInt8
import shmbatch

app = shmbatch.App()

@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def small(xs: list[int]) -> list[int]:
    return [x + 1 for x in xs]

@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, slots=8)
def large(xs: list[int]) -> UInt8[np.ndarray, "batch 1000000"]:
    return [np.zeros(1_000_000, np.uint8) for x in xs]
"""


def test_in_a_small_dev_shm_what_fits_is_served(tmp_path: Path) -> None:
    """A /dev/shm of 4 MB, in a mount namespace of its own as containers have it."""
    (tmp_path / "room.py").write_text(ROOM)
    (tmp_path / "main.py").write_text(SMALL)
    enter = "mount -t tmpfs -o size=4m none /dev/shm && "
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshared, enter + "true"], capture_output=True).returncode:
        pytest.skip("this machine gives nobody a mount namespace")
    result = subprocess.run(
        [*unshared, f"{enter} exec {sys.executable} {tmp_path / 'main.py'}"],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE_S,
    )
    assert result.returncode == 0, result.stderr
    refused, left = result.stdout.splitlines()
    assert "has no room for 8 slots (8" in refused
    assert "bytes left and 8" in refused
    assert "or use transport linux; give the function fewer with slots=" in refused
    assert left == "[]"


# ---- counts ----------------------------------------------------------------------------------


def test_counts_left_over_at_the_bell_cost_one_look() -> None:
    transport = PosixExecutor()
    semaphore = transport._semaphore
    for _ in range(500):
        transport.wake()
    assert semaphore.value == 500
    transport.park(transport.bell.look(), HOUR_NS, 1)
    assert semaphore.value == 0
    transport.close()


def test_counts_left_over_in_a_slot_cost_one_look(pair: Pair) -> None:
    ticket = pair.submit()
    pair.segment.wake(pair.executor_ring, 0, [0] * 500)
    assert pair.count(0) == 500
    assert not pair.producer.park_slot(pair.ring, ticket, HOUR_NS)
    assert pair.count(0) == 0
    with asleep(lambda: pair.producer.park_slot(pair.ring, ticket, HOUR_NS)):
        pair.complete()
    assert pair.count(0) == 0


def test_counts_left_over_for_completions_cost_one_look(pair: Pair) -> None:
    pair.segment.wake(pair.executor_ring, 500, [])
    assert pair.count(-1) == 500
    joined = pair.ring.join_completions(THREAD)
    pair.producer.park_completions(pair.ring, joined, HOUR_NS)
    assert pair.count(-1) == 0
    pair.submit()
    with asleep(lambda: pair.producer.park_completions(pair.ring, joined, HOUR_NS)):
        pair.complete()
    pair.ring.leave_completions(THREAD)


def test_all_threads_that_sleep_on_one_call_are_woken(pair: Pair) -> None:
    ticket = pair.submit()

    def sleep() -> None:
        assert pair.producer.park_slot(pair.ring, ticket, HOUR_NS)

    with asleep(*[sleep] * 5):
        pair.complete()
    assert pair.count(0) == 0


def test_threads_that_sleep_on_an_older_call_of_a_slot_get_the_count_that_is_theirs(
    pair: Pair,
) -> None:
    """A count taken by a thread that waits for the slot's next call is given back."""
    first = pair.submit()

    def sleep() -> None:
        with pytest.raises(ValueError, match="over"):
            pair.producer.park_slot(pair.ring, first, HOUR_NS)

    with asleep(sleep):
        # Nobody is woken by this; the outcome is taken by somebody else, the slot used again.
        pair.inbox.drain(1 << 62)
        assert pair.inbox.take(pair.batch, CAPACITY, 1 << 62)
        assert pair.batch.scatter([3])
        pair.batch.complete()
        assert pair.ring.poll(first, 0) == 3
        others = [pair.submit() for _ in range(CAPACITY)]
        (again,) = [each for each in others if each & 0x1FFFF == first & 0x1FFFF]
        # One count comes, and whichever of the two takes it, the older sleeper is awake then.
        with asleep(lambda: pair.producer.park_slot(pair.ring, again, HOUR_NS)):
            pair.segment.wake(pair.executor_ring, 0, [first & 0x1FFFF])
            processes.wait_until(
                lambda: first not in pair.producer._sleepers[first & 0x1FFFF]._asleep, "it wakes"
            )
            pair.complete()


def test_a_count_for_completions_reaches_those_who_slept_when_there_was_one(pair: Pair) -> None:
    """However many sleepers come later and take it."""
    pair.submit()
    joined = pair.ring.join_completions(THREAD)

    def sleep(since: int) -> None:
        pair.producer.park_completions(pair.ring, since, HOUR_NS)

    with asleep(lambda: sleep(joined)):
        pair.inbox.drain(1 << 62)
        assert pair.inbox.take(pair.batch, CAPACITY, 1 << 62)
        assert pair.batch.scatter([3])
        ((_, _, threads, _),) = pair.batch.complete()
        assert threads == 1
        later = pair.ring.join_completions(THREAD)
        assert later >> 16 != joined >> 16
        with asleep(lambda: sleep(later)):
            pair.segment.wake(pair.executor_ring, threads, [])
            bed = pair.producer._sleepers[-1]
            processes.wait_until(lambda: joined >> 16 not in bed._asleep, "the first one wakes")
            pair.submit()
            pair.complete()
    pair.ring.leave_completions(THREAD)
    pair.ring.leave_completions(THREAD)


def test_whose_time_was_up_leaves_the_call_as_it_was(pair: Pair) -> None:
    ticket = pair.submit()
    assert not pair.producer.park_slot(pair.ring, ticket, 1000)
    assert pair.producer._sleepers[0]._asleep == []
    pair.complete()  # a count for nobody
    assert pair.count(0) == 1
    assert pair.ring.poll(ticket, 0) == 3
    again = [pair.submit() for _ in range(CAPACITY)]
    for each in again:
        assert not pair.producer.park_slot(pair.ring, each, 1000)
    assert pair.count(0) == 0


def test_semaphores_that_a_producer_has_filled_up_hurt_nobody(pair: Pair) -> None:
    for fd in pair.kept:
        os.pwrite(fd, struct.pack("=I", SEM_VALUE_MAX), 0)
    bell = posix_ipc.Semaphore(pair.transport._semaphore.name)
    with Path(f"/dev/shm/sem.{bell.name[1:]}").open("r+b", buffering=0) as file:
        file.write(struct.pack("=I", SEM_VALUE_MAX))
    assert bell.value == SEM_VALUE_MAX

    pair.segment.wake(pair.executor_ring, 255, list(range(CAPACITY)))
    pair.producer.wake_executor()
    pair.transport.wake()
    seen = pair.transport.bell.look()
    pair.transport.park(seen, HOUR_NS, 1)  # comes back, and takes only so many away
    assert SEM_VALUE_MAX > bell.value > SEM_VALUE_MAX - 2000
    ticket = pair.submit()
    assert not pair.producer.park_slot(pair.ring, ticket, HOUR_NS)
    pair.complete()
    assert pair.ring.poll(ticket, 0) == 3
    bell.close()
