"""Transport `linux`: sealed memfds to share, futexes to sleep on.

A memfd has no name that could be left behind, is not bound by the size of ``/dev/shm``, and once
sealed cannot be truncated under a reader. The words that announce sleepers are themselves the
futexes, so park and wake need nothing but the core's own system calls.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Any

from . import layout
from ._core import MAX_CAPACITY, Bell, ExecutorRing, ProducerRing
from .memory import check_memory
from .transport import Offer, map_shared


def _create(name: str, nbytes: int) -> int:
    """Return a memfd of *nbytes* zeroed, backed bytes whose size can never change again.

    ``posix_fallocate`` makes a lack of memory an OSError now instead of a SIGBUS later.

    Raises:
        OSError: there is no memory for it, or no descriptor.
    """
    check_memory(nbytes)
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, nbytes)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


class LinuxSegment:
    """A segment that the executor created; see `transport.ExecutorSegment`."""

    wakes_in_core = True

    def __init__(self, nbytes: int, bell_fd: int) -> None:
        self._nbytes = nbytes
        self._bell_fd = bell_fd
        self._fd = _create("shmbatch-segment", nbytes)
        try:
            self.memory = map_shared(self._fd, nbytes)
        except BaseException:
            self.handed_over()
            raise

    def offer(self) -> Offer:
        return {"transport": "linux", "nbytes": self._nbytes}, [self._fd, self._bell_fd]

    def handed_over(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    wake = staticmethod(ExecutorRing.wake)


class LinuxExecutor:
    """The executor's half; see `transport.ExecutorTransport`."""

    name = "linux"
    max_capacity = MAX_CAPACITY

    def __init__(self) -> None:
        self._bell_fd = _create("shmbatch-bell", layout.BELL_NBYTES)
        try:
            self.bell = Bell(map_shared(self._bell_fd, layout.BELL_NBYTES))
        except BaseException:
            self.close()
            raise
        self.park = self.bell.park
        self.wake = self.bell.wake

    def create(self, nbytes: int, capacity: int) -> LinuxSegment:
        return LinuxSegment(nbytes, self._bell_fd)

    def close(self) -> None:
        if self._bell_fd >= 0:
            os.close(self._bell_fd)
            self._bell_fd = -1


class LinuxProducer:
    """The producer's half; see `transport.ProducerTransport`."""

    parks_in_core = True

    def __init__(self, offer: dict[str, Any], fds: Sequence[int]) -> None:
        segment_fd, bell_fd = fds
        self.memory = map_shared(segment_fd, offer["nbytes"])
        self.bell_memory = map_shared(bell_fd, layout.BELL_NBYTES)
        self.wake_executor = Bell(self.bell_memory).wake

    park_slot = staticmethod(ProducerRing.park_slot)

    def park_completions(self, ring: ProducerRing, joined: int, timeout_ns: int) -> None:
        ring.park_completions(joined, timeout_ns)

    def wake_slot(self, ring: ProducerRing, ticket: int) -> None:
        ring.wake_slot(ticket)

    def wake_completions(self, ring: ProducerRing) -> None:
        ring.wake_completions()
