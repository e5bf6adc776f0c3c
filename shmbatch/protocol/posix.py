"""Transport `posix`: POSIX shared memory and named semaphores through posix_ipc.

The plain reference. One semaphore for each slot, one for a connection's completions, one for the
bell: hints to look again, never the truth, which stands in the state words. So a semaphore is
posted only for an announced sleeper, and a count left over costs one look.

Shared memory travels as a descriptor and loses its name at once. A semaphore can only be opened
by name: those of a segment are unlinked when the handshake is over, the bell's when the executor
closes. A kill in between leaves a name that begins with ``NAME_PREFIX``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

import posix_ipc

from . import layout
from ._core import TICKET_SLOT_MASK, Bell, ExecutorRing, ProducerRing
from .names import SHARED_MEMORY_PREFIX
from .transport import Offer, map_shared

NAME_PREFIX = f"/{SHARED_MEMORY_PREFIX}"
MAX_CAPACITY = 64

_POSTS_MAX = 64  # a producer that fakes its count of sleepers gets no more than this


def _name() -> str:
    return f"{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"


def _create_memory(nbytes: int) -> int:
    """Return a descriptor of zeroed, backed shared memory that has no name any more."""
    memory = posix_ipc.SharedMemory(_name(), posix_ipc.O_CREX, mode=0o600)
    try:
        posix_ipc.unlink_shared_memory(memory.name)
        os.posix_fallocate(memory.fd, 0, nbytes)
        os.set_inheritable(memory.fd, False)
    except BaseException:
        memory.close_fd()
        raise
    return int(memory.fd)


def _acquire(semaphore: posix_ipc.Semaphore, timeout_ns: int) -> None:
    try:
        semaphore.acquire(timeout_ns / 1e9)
    except (posix_ipc.BusyError, posix_ipc.SignalError):
        pass  # the time is over, or a signal came: the caller looks again


class PosixSegment:
    """A segment that the executor created; see `transport.ExecutorSegment`."""

    def __init__(self, nbytes: int, capacity: int, bell_fd: int, bell_name: str) -> None:
        self._nbytes = nbytes
        self._bell_fd = bell_fd
        self._bell_name = bell_name
        self._semaphores: list[posix_ipc.Semaphore] = []
        self._named = False
        self._fd = _create_memory(nbytes)
        self._named = True
        try:
            self.memory = map_shared(self._fd, nbytes)
            for _ in range(capacity + 1):  # the last one is for completions
                self._semaphores.append(posix_ipc.Semaphore(_name(), posix_ipc.O_CREX, mode=0o600))
        except BaseException:
            self.handed_over()
            raise

    def offer(self) -> Offer:
        message = {
            "transport": "posix",
            "nbytes": self._nbytes,
            "bell": self._bell_name,
            "semaphores": [semaphore.name for semaphore in self._semaphores],
        }
        return message, [self._fd, self._bell_fd]

    def handed_over(self) -> None:
        if self._named:
            self._named = False
            os.close(self._fd)
            for semaphore in self._semaphores:
                semaphore.unlink()

    def wake(self, ring: ExecutorRing, threads: int, slots: Sequence[int]) -> None:
        for slot in slots:
            self._semaphores[slot].release()
        for _ in range(min(threads, _POSTS_MAX)):
            self._semaphores[-1].release()

    def __del__(self) -> None:
        # posix_ipc neither closes nor unlinks by itself.
        self.handed_over()
        for semaphore in self._semaphores:
            semaphore.close()


class PosixExecutor:
    """The executor's half; see `transport.ExecutorTransport`."""

    name = "posix"
    max_capacity = MAX_CAPACITY

    def __init__(self) -> None:
        self._bell_fd = _create_memory(layout.BELL_NBYTES)
        self.bell = Bell(map_shared(self._bell_fd, layout.BELL_NBYTES))
        self._semaphore: posix_ipc.Semaphore | None = posix_ipc.Semaphore(
            _name(), posix_ipc.O_CREX, mode=0o600
        )

    def create(self, nbytes: int, capacity: int) -> PosixSegment:
        assert self._semaphore is not None
        return PosixSegment(nbytes, capacity, self._bell_fd, self._semaphore.name)

    def park(self, armed: int, timeout_ns: int) -> None:
        if self._semaphore is not None and timeout_ns > 0:
            _acquire(self._semaphore, timeout_ns)

    def wake(self) -> None:
        if self._semaphore is not None:
            self._semaphore.release()

    def close(self) -> None:
        if self._semaphore is not None:
            os.close(self._bell_fd)
            self._semaphore.unlink()
            self._semaphore.close()
            self._semaphore = None


class PosixProducer:
    """The producer's half; see `transport.ProducerTransport`."""

    def __init__(self, offer: dict[str, Any], fds: Sequence[int]) -> None:
        segment_fd, bell_fd = fds
        self.memory = map_shared(segment_fd, offer["nbytes"])
        self.bell_memory = map_shared(bell_fd, layout.BELL_NBYTES)
        self._semaphores: list[posix_ipc.Semaphore] = []
        self._bell: posix_ipc.Semaphore | None = None
        for name in offer["semaphores"]:
            self._semaphores.append(posix_ipc.Semaphore(name))
        self._bell = posix_ipc.Semaphore(offer["bell"])

    def wake_executor(self) -> None:
        if self._bell is not None:
            self._bell.release()

    def park_slot(self, ring: ProducerRing, ticket: int, armed: int, timeout_ns: int) -> None:
        _acquire(self._semaphores[ticket & TICKET_SLOT_MASK], timeout_ns)

    def park_completions(self, ring: ProducerRing, joined: int, timeout_ns: int) -> None:
        _acquire(self._semaphores[-1], timeout_ns)

    def __del__(self) -> None:
        for semaphore in self._semaphores:
            semaphore.close()
        if self._bell is not None:
            self._bell.close()
