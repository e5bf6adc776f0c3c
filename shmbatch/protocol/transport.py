"""The seam between the protocol and what an operating system offers to sleep on.

Two transports stand behind it: `linux` (sealed memfd, futex words) and `posix` (POSIX shared
memory and semaphores). A transport creates a segment, parks a thread on a slot, on a
connection's completions or on the bell, and wakes those that the core names. It decides nothing:
states, announcements and who must be woken are the core's business, and every park may end early,
because whoever parks looks again. That is why a semaphore with a stray count in it is harmless.

::

    executor process                                  producer process
    ----------------                                  ----------------
    ExecutorTransport.create() -> ExecutorSegment
        ExecutorSegment.offer() --- handshake ----->  attach(offer, fds) -> ProducerTransport
        ExecutorSegment.handed_over()
    ExecutorTransport.park()     <------------------  ProducerTransport.wake_executor()
    ExecutorSegment.wake()       ------------------>  ProducerTransport.park_slot(),
                                                      .park_completions()
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError
from .settings import setting

if TYPE_CHECKING:  # the command line names the transports and needs no core for that
    from ._core import Bell, ExecutorRing, ProducerRing

TRANSPORTS = ("linux", "posix")

# What goes into the handshake: a message of primitives, and descriptors.
Offer = tuple[dict[str, Any], list[int]]


def transport_name(name: str | None) -> str:
    """Return *name*, else what SHMBATCH_TRANSPORT says, else ``"linux"``.

    Raises:
        ConfigError: it is none of `TRANSPORTS`.
    """
    return setting("transport", name, TRANSPORTS)


class ExecutorSegment(Protocol):
    """One producer's segment, as the executor that created it sees it."""

    memory: mmap.mmap
    wakes_in_core: bool  # `wake` is what the core does itself

    def offer(self) -> Offer:
        """Return what the producer needs to attach: this segment and the bell."""

    def handed_over(self) -> None:
        """Drop descriptors and names that only the handshake needed; idempotent."""

    def wake(self, ring: ExecutorRing, threads: int, slots: list[int], /) -> None:
        """Wake *threads* sleepers on completions and all sleepers on *slots*."""


class ExecutorTransport(Protocol):
    """The executor's half: owns the bell, creates segments."""

    name: str
    bell: Bell
    max_capacity: int  # most slots a segment of this transport can have

    def create(self, nbytes: int, capacity: int) -> ExecutorSegment:
        """Create a zeroed, fully backed segment.

        Raises:
            OSError: no memory for it (ENOMEM, ENOSPC) or no descriptor (EMFILE).
        """

    def park(self, seen: int, timeout_ns: int, calls: int) -> int:
        """Sleep while the bell reads *seen*, until so many *calls* have rung it, at most
        *timeout_ns*; return what it reads. May return early."""

    def wake(self) -> None:
        """Wake the executor out of `park`, from another of its threads."""

    def close(self) -> None:
        """Remove what has a name; idempotent. Mapped memory lives on with its users."""


class ProducerTransport(Protocol):
    """The producer's half of one connection."""

    memory: mmap.mmap
    bell_memory: mmap.mmap
    parks_in_core: bool  # `park_slot` is what the core does itself

    def wake_executor(self) -> None:
        """Wake the executor out of `ExecutorTransport.park`."""

    def park_slot(self, ring: ProducerRing, ticket: int, timeout_ns: int, /) -> bool:
        """Sleep until the ticket's call is done, at most *timeout_ns*; say whether it is.

        May return early. Raises ValueError once the ticket is over.
        """

    def park_completions(self, ring: ProducerRing, joined: int, timeout_ns: int) -> None:
        """Sleep until some call of the connection is done; may return early."""

    def wake_slot(self, ring: ProducerRing, ticket: int) -> None:
        """Wake this process's threads out of `park_slot`: the ticket's call is over."""

    def wake_completions(self, ring: ProducerRing) -> None:
        """Wake this process's threads out of `park_completions`: a slot is free."""


def map_shared(fd: int, nbytes: int) -> mmap.mmap:
    """Map shared memory, page tables filled: the first call must not pay for page faults."""
    return mmap.mmap(fd, nbytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)


def executor_transport(name: str) -> ExecutorTransport:
    """Create the executor's half of the transport called *name*.

    Raises:
        ConfigError: there is no such transport, or it cannot be used here.
        OSError: no descriptor for it (EMFILE).
    """
    if transport_name(name) == "linux":
        from .linux import LinuxExecutor

        return LinuxExecutor()
    from .posix import PosixExecutor

    return PosixExecutor()


def producer_transport(offer: dict[str, Any], fds: Sequence[int]) -> ProducerTransport:
    """Attach to what an executor offered. The caller keeps and closes *fds*.

    Raises:
        ConfigError: the transport is unknown here.
        HandshakeError: what was offered cannot be found from here.
        OSError: no memory for it (ENOMEM) or no descriptor (EMFILE).
    """
    if offer["transport"] == "linux":
        from .linux import LinuxProducer

        return LinuxProducer(offer, fds)
    if offer["transport"] == "posix":
        from .posix import PosixProducer

        return PosixProducer(offer, fds)
    raise ConfigError(f"the executor offers transport {offer['transport']!r}, unknown here")
