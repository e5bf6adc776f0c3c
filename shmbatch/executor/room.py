"""How many producers an executor lets in, and how much memory it gives to them.

Memory is what a segment takes: of one producer, for one function. It is counted until the last
batch that uses it is done, which may be after the producer has left; and so is the producer, as
long as descriptors of its connection are open.
"""

from __future__ import annotations

import fcntl
import os
import resource
import weakref
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap

from ..errors import ConfigError, HandshakeError
from ..protocol.memory import total_nbytes

PRODUCERS_MAX = 4096
# Of one producer for one function, where slots= is not given.
PRODUCER_NBYTES = 256 << 20
STRANGERS_MAX = 256  # who are connected and have not attached

_DESCRIPTORS_EACH = 2  # a socket and a pidfd
_DESCRIPTORS_OWN = 128  # for the executor itself, and for what the functions open


@dataclass(frozen=True)
class Quotas:
    """What all producers may have together, and each of them; None for what fits the machine."""

    producers: int | None = None
    producer_nbytes: int | None = None
    nbytes: int | None = None


def strangers_within(descriptors: int) -> int:
    """Return how many may be connected unattached to an executor that may open so many."""
    return min(STRANGERS_MAX, max(8, descriptors // 16))


def producers_within(descriptors: int) -> int:
    """Return how many may be attached to an executor that may open so many; one at least."""
    return max(1, (descriptors - _taken(descriptors)) // _DESCRIPTORS_EACH)


def _taken(descriptors: int) -> int:
    """How many of them are for others than producers."""
    return _DESCRIPTORS_OWN + _DESCRIPTORS_EACH * strangers_within(descriptors)


class Room:
    """What is left of the quotas; `left` may be called from any thread.

    Args:
        app: the name that is served, for messages.

    Raises:
        ConfigError: this process may not open as many descriptors as the producers need.
    """

    def __init__(self, quotas: Quotas, app: str) -> None:
        self._app = app
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.strangers_max = strangers_within(descriptors)
        taken = _taken(descriptors)
        most = producers_within(descriptors)
        if quotas.producers is not None and quotas.producers > most:
            raise ConfigError(
                f"--max-producers {quotas.producers} needs "
                f"{taken + _DESCRIPTORS_EACH * quotas.producers} descriptors and this process may "
                f"open {descriptors}; raise `ulimit -n`, or use --max-producers {most}"
            )
        self.producers_max = min(PRODUCERS_MAX, most)
        if quotas.producers is not None:
            self.producers_max = quotas.producers
        self._descriptors = min(descriptors, taken + _DESCRIPTORS_EACH * self.producers_max)
        self.nbytes_max = total_nbytes() // 2 if quotas.nbytes is None else quotas.nbytes
        self._inside: set[Hashable] = set()
        self._nbytes = 0
        self._freed: deque[int] = deque()  # appended by whichever thread drops the last use

    def widen_descriptor_table(self) -> None:
        """Have the kernel make its table as large as all of them need.

        It would grow with the producers, whenever their number doubles, and each time keep
        whoever attaches then waiting for more than 10 ms in a process with threads.
        """
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):  # it grows later, then
            os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, self._descriptors - 1))
        os.close(null)

    @property
    def producers(self) -> int:
        """How many are attached, or have left and still have descriptors open."""
        return len(self._inside)

    @property
    def nbytes(self) -> int:
        """How much memory their segments take."""
        while self._freed:
            self._nbytes -= self._freed.popleft()
        return self._nbytes

    def check(self, nbytes: int, address: str) -> None:
        """Make sure that there is room for one more producer.

        Args:
            nbytes: what its segment takes.
            address: of the function that it attaches to, for the message.

        Raises:
            HandshakeError: there is none.
        """
        if self.producers >= self.producers_max:
            raise HandshakeError(
                f"the executor of {self._app!r} has {self.producers} producers and lets in "
                f"{self.producers_max}; have some leave, or start it with a larger "
                f"--max-producers"
            )
        if self.nbytes + nbytes > self.nbytes_max:
            raise HandshakeError(
                f"the executor of {self._app!r} has given {self.nbytes} bytes to {self.producers} "
                f"producers and gives {self.nbytes_max}; one more of '{address}' takes {nbytes}: "
                f"give the function fewer slots with slots=, or start it with a larger "
                f"--max-memory"
            )

    def taken(self, producer: Hashable, memory: mmap, nbytes: int) -> None:
        """Count a producer that is let in, and its segment until *memory* is no more."""
        self._inside.add(producer)
        self._nbytes += nbytes
        weakref.finalize(memory, self._freed.append, nbytes).atexit = False

    def left(self, producer: Hashable) -> None:
        """Count a producer no more whose descriptors are closed. Idempotent."""
        self._inside.discard(producer)


def check_segment(nbytes: int, slots: int, most: int, address: str) -> None:
    """Make sure that a segment of *nbytes* is not more than one producer may have.

    Raises:
        ConfigError: it is.
    """
    if nbytes > most:
        raise ConfigError(
            f"a producer of '{address}' takes {nbytes} bytes with {slots} slots, and "
            f"--max-memory-per-producer is {most}; use fewer slots= or smaller values, or allow "
            f"more"
        )
