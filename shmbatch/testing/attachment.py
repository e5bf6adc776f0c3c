"""Both ends of one producer's connection in this process, over memory of its own."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..client.results import finisher
from ..contract.packing import Arguments
from ..contract.wire import ring_arguments
from ..protocol import layout
from ..protocol._core import TICKET_SLOT_MASK, ExecutorRing, ProducerRing
from .poller import VirtualPoller

if TYPE_CHECKING:
    from ..executor.served import ServedFunction


class Attachment:
    """What a producer and the loop share; as the loop sees it, also segment and socket."""

    def __init__(
        self, served: ServedFunction, poller: VirtualPoller, gone: Callable[[], object]
    ) -> None:
        signature, where = served.definition.signature, served.layout
        self.function = served
        self.since_ns = 0
        self.violated = False
        self.attached = True  # until the loop has let go of it
        self.arguments = Arguments(signature, served.address)
        self._controls = where.controls
        self._gone = gone
        self._memory = mmap.mmap(-1, where.nbytes)
        shared = ring_arguments(self._memory, signature, where)
        finish = finisher(signature.result, "native", served.address)
        self.ring = ExecutorRing(*(*shared, layout.LAYOUT_VERSION))
        served.lend(self.ring, self._memory)
        self.producer = ProducerRing(*(*shared, poller.memory, poller.woken, finish))

    @property
    def segment(self) -> Any:
        return self

    @property
    def sock(self) -> Any:
        return self

    def submit(self, values: tuple[Any, ...], at_ns: int, deadline_ns: int) -> int:
        """Publish a call at a virtual time; return its ticket, or SUBMIT_... (< 0)."""
        ticket = self.producer.submit(values, 0, deadline_ns)
        if ticket >= 0:  # the core took the real time
            control = self._controls + layout.CONTROL_NBYTES * slot_of(ticket)
            struct.pack_into("=Q", self._memory, control + layout.CONTROL_PUBLISHED_NS, at_ns)
        return ticket

    def wake(self, ring: ExecutorRing, threads: int, slots: Sequence[int]) -> None:
        pass  # nobody sleeps

    def send(self, data: bytes, flags: int) -> int:
        return len(data)

    def close(self) -> None:
        self.attached = False
        self._gone()


def slot_of(ticket: int) -> int:
    """Return the slot in which a ticket's call lives."""
    return ticket & TICKET_SLOT_MASK
