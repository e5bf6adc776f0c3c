"""Transport `posix`: POSIX shared memory and named semaphores through posix_ipc.

The plain reference, for where memfd and futex are not to be had or not wanted: at most
``MAX_CAPACITY`` slots, processes of one user, one /dev/shm. One semaphore for each slot, one for a
connection's completions, one for the bell: hints to look again, never the truth, which stands in
the state words. A semaphore is posted only for an announced sleeper, and whoever wakes takes away
what nobody is owed, so a count left over costs one look.

Shared memory travels as a descriptor and loses its name at once. A semaphore can be opened by
name only: those of a segment have names until the producer has opened them, the bell's until the
executor closes. Names begin with ``NAME_PREFIX`` and their maker's pid; what a killed maker leaves
is swept when an executor of that app's name starts or is stopped.

What this transport does not promise, and `linux` does:

- A semaphore keeps its value in memory that both sides may write, and the C library believes what
  it reads there; and a descriptor that may be mapped for writing may be truncated as well. So a
  producer that overwrites a semaphore, or truncates what it was handed, can take the executor
  down. What it does to the segment itself is survived.
- The C library's timed wait goes by the wall clock. Whoever sleeps while that is set back sleeps
  on for as much, unless woken.
- A process killed inside of ``sem_open`` may leave ``sem.`` and six letters in /dev/shm, one page.
  They are not swept: another program's semaphore may be called so.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import posix_ipc

from ..errors import ConfigError, HandshakeError
from . import layout, leftovers
from ._core import PARKED, TICKET_SLOT_MASK, WAITER, Bell, ExecutorRing, ProducerRing
from .memory import check_memory
from .transport import Offer, map_shared

NAME_PREFIX = f"/{leftovers.PREFIX}"
MAX_CAPACITY = 64

_FOLDER = "/dev/shm"  # where the C library makes both
_STRAY_MAX = 1000  # counts taken away in one go; only a hostile producer leaves as many
_COMPLETED = 16  # bits of the completions word below the batches completed; see layout


def _name() -> str:
    return f"{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"


def _semaphore_names(base: str, count: int) -> list[str]:
    return [f"{base}_{number}" for number in range(count)]


def _check_room(nbytes: int) -> None:
    """Raise OSError unless memory and /dev/shm have room for so many bytes.

    Asked before, since to find out by taking means to fill /dev/shm under others.
    """
    check_memory(nbytes)
    room = os.statvfs(_FOLDER)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and nbytes > free:  # without blocks it has no limit of its own
        raise OSError(
            errno.ENOSPC,
            f"{_FOLDER} has {free} bytes left and {nbytes} are needed; enlarge it (of a container "
            f"with --shm-size), or use transport linux",
        )


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Make an OSError with its number of whatever posix_ipc raises."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # how posix_ipc says that there is no descriptor
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        raise
    except posix_ipc.Error as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


def _create_memory(nbytes: int) -> int:
    """Return a descriptor of zeroed, backed shared memory that has no name any more."""
    with _foreign_errors():
        memory = posix_ipc.SharedMemory(_name(), posix_ipc.O_CREX, mode=0o600)
    try:
        posix_ipc.unlink_shared_memory(memory.name)
        os.posix_fallocate(memory.fd, 0, nbytes)  # or a write could end in SIGBUS
        os.set_inheritable(memory.fd, False)
    except BaseException:
        memory.close_fd()
        raise
    return int(memory.fd)


def _create_semaphore(name: str) -> posix_ipc.Semaphore:
    with _foreign_errors():
        return posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600)


def _post(semaphore: posix_ipc.Semaphore, times: int = 1) -> None:
    try:
        for _ in range(times):
            semaphore.release()
    except OSError:
        pass  # somebody has filled it up: nobody sleeps on it for long


def _take(semaphore: posix_ipc.Semaphore, times: int) -> None:
    try:
        for _ in range(times):
            semaphore.acquire(0)
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        pass  # no more there


def _sleep(semaphore: posix_ipc.Semaphore, timeout_ns: int) -> bool:
    """Sleep until there is a count to take; False if the time was over or a signal came."""
    try:
        semaphore.acquire(timeout_ns / 1e9)
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        return False
    return True


class PosixSegment:
    """A segment that the executor created; see `transport.ExecutorSegment`."""

    wakes_in_core = False

    def __init__(self, nbytes: int, capacity: int, bell_fd: int, bell_name: str) -> None:
        self._nbytes = nbytes
        self._bell_fd = bell_fd
        self._bell_name = bell_name
        self._pid = os.getpid()
        self._base = _name()
        self._semaphores: list[posix_ipc.Semaphore] = []
        self._fd = -1
        count = capacity + 1  # the last one is for completions
        _check_room(nbytes + count * posix_ipc.PAGE_SIZE)
        self._fd = _create_memory(nbytes)
        try:
            self.memory = map_shared(self._fd, nbytes)
            for name in _semaphore_names(self._base, count):
                self._semaphores.append(_create_semaphore(name))
        except BaseException:
            self._close()
            raise

    def offer(self) -> Offer:
        message = {
            "transport": "posix",
            "nbytes": self._nbytes,
            "bell": self._bell_name,
            "semaphores": self._base,
            "count": len(self._semaphores),
        }
        return message, [self._fd, self._bell_fd]

    def handed_over(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        os.close(fd)
        if self._pid == os.getpid():  # not in a fork, whose parent's handshake may go on
            for semaphore in self._semaphores:
                try:
                    semaphore.unlink()
                except posix_ipc.ExistentialError:
                    pass  # the producer has done it

    def wake(self, ring: ExecutorRing, threads: int, slots: list[int], /) -> None:
        semaphores = self._semaphores
        for slot in slots:
            _post(semaphores[slot])
        if threads:
            _post(semaphores[-1], threads)

    def _close(self) -> None:
        # posix_ipc neither closes nor unlinks by itself.
        self.handed_over()
        while self._semaphores:
            self._semaphores.pop().close()

    def __del__(self) -> None:
        self._close()


class PosixExecutor:
    """The executor's half; see `transport.ExecutorTransport`."""

    name = "posix"
    max_capacity = MAX_CAPACITY

    def __init__(self) -> None:
        self._semaphore: posix_ipc.Semaphore | None = None
        self._pid = os.getpid()
        self._bell_fd = -1
        try:
            _check_room(layout.BELL_NBYTES + posix_ipc.PAGE_SIZE)
            self._bell_fd = _create_memory(layout.BELL_NBYTES)
            self.bell = Bell(map_shared(self._bell_fd, layout.BELL_NBYTES))
            self._semaphore = _create_semaphore(_name())
        except BaseException as error:
            if self._bell_fd >= 0:
                os.close(self._bell_fd)
            if isinstance(error, OSError) and error.errno != errno.EMFILE:
                raise ConfigError(f"transport posix cannot be used: {error.strerror}") from error
            raise

    def create(self, nbytes: int, capacity: int) -> PosixSegment:
        assert self._semaphore is not None
        return PosixSegment(nbytes, capacity, self._bell_fd, self._semaphore.name)

    def park(self, seen: int, timeout_ns: int, calls: int) -> int:
        bell, semaphore = self.bell, self._semaphore
        if semaphore is not None and timeout_ns > 0 and bell.arm(seen, PARKED, calls):
            try:
                if _sleep(semaphore, timeout_ns):
                    # Nobody else sleeps here: what is left was meant for sleeps that are over.
                    _take(semaphore, min(semaphore.value, _STRAY_MAX))
            finally:
                bell.disarm()
        return bell.look()

    def wake(self) -> None:
        if self._semaphore is not None:
            _post(self._semaphore)

    def close(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            os.close(self._bell_fd)
            if self._pid == os.getpid():
                try:
                    semaphore.unlink()
                except posix_ipc.ExistentialError:
                    pass  # somebody has cleared /dev/shm
            semaphore.close()


class _Sleepers:
    """A semaphore on which threads of this process sleep, each until something is over.

    A thread may take the count that was meant for another, or leave one behind because its time
    was up. So whoever was woken sees to it that there are as many counts as others here have
    something over and sleep on. Threads that do so at once may err, which delays somebody by one
    slice.
    """

    def __init__(self, name: str) -> None:
        with _foreign_errors():
            self._semaphore = posix_ipc.Semaphore(name)
        self._asleep: list[int] = []  # what each waits for; append and remove are atomic

    def sleep(self, what: int, is_over: Callable[[int], bool], timeout_ns: int) -> None:
        semaphore, asleep = self._semaphore, self._asleep
        asleep.append(what)
        try:
            # Asked once more: from here on others would leave this thread its count.
            if is_over(what) or not _sleep(semaphore, timeout_ns):
                return
        finally:
            asleep.remove(what)
        owed = sum(map(is_over, asleep.copy())) - semaphore.value
        if owed > 0:
            _post(semaphore, owed)
        elif owed < 0:
            _take(semaphore, min(-owed, _STRAY_MAX))

    def wake(self) -> None:
        """Wake one, who wakes the others for whom something is over."""
        if self._asleep:
            _post(self._semaphore)

    def close(self) -> None:
        self._semaphore.close()


class PosixProducer:
    """The producer's half; see `transport.ProducerTransport`."""

    parks_in_core = False

    def __init__(self, offer: dict[str, Any], fds: Sequence[int]) -> None:
        self._sleepers: list[_Sleepers] = []
        self._bell: posix_ipc.Semaphore | None = None
        segment_fd, bell_fd = fds
        self.memory = map_shared(segment_fd, offer["nbytes"])
        self.bell_memory = map_shared(bell_fd, layout.BELL_NBYTES)
        self._words = memoryview(self.memory)[: layout.INDICES].cast("I")
        names = _semaphore_names(offer["semaphores"], offer["count"])
        try:
            for name in names:
                self._sleepers.append(_Sleepers(name))
            with _foreign_errors():
                self._bell = posix_ipc.Semaphore(offer["bell"])
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise HandshakeError(
                f"cannot open a semaphore of the executor ({error.strerror}); both processes "
                f"must have the same {_FOLDER}, or use transport linux"
            ) from error
        for name in names:  # both ends hold them
            try:
                posix_ipc.unlink_semaphore(name)
            except posix_ipc.Error:
                pass  # the executor has done it, and is on its way out

    def wake_executor(self) -> None:
        if self._bell is not None:
            _post(self._bell)

    def park_slot(self, ring: ProducerRing, ticket: int, timeout_ns: int, /) -> bool:
        def is_over(ticket: int) -> bool:
            try:
                return ring.arm(ticket, 0) < 0
            except ValueError:
                return True  # another thread got the outcome

        if ring.arm(ticket, WAITER) < 0:
            return True
        self._sleepers[ticket & TICKET_SLOT_MASK].sleep(ticket, is_over, timeout_ns)
        return ring.arm(ticket, 0) < 0

    def park_completions(self, ring: ProducerRing, joined: int, timeout_ns: int) -> None:
        self._sleepers[-1].sleep(joined >> _COMPLETED, self._has_completed, timeout_ns)

    def wake_slot(self, ring: ProducerRing, ticket: int) -> None:
        self._sleepers[ticket & TICKET_SLOT_MASK].wake()

    def wake_completions(self, ring: ProducerRing) -> None:
        ring.wake_completions()  # for the count in the word; nobody sleeps on it
        self._sleepers[-1].wake()

    def _has_completed(self, since: int) -> bool:
        """Whether a batch was completed since the word said so many were."""
        return self._words[layout.COMPLETIONS // 4] >> _COMPLETED != since

    def __del__(self) -> None:
        for each in self._sleepers:
            each.close()
        if self._bell is not None:
            self._bell.close()
