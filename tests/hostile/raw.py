"""What a producer shares with the executor, written to as a test likes: no client is between."""

from __future__ import annotations

import os
import struct
from typing import Any

from shmbatch.contract.signature import Signature
from shmbatch.contract.wire import segment_layout
from shmbatch.protocol import layout
from shmbatch.protocol._core import PARKED, READY, Bell
from shmbatch.protocol.layout import Layout
from shmbatch.protocol.transport import ProducerTransport, producer_transport
from tests.executor import talking


class Segment:
    """The words of a segment, and the bell."""

    def __init__(self, transport: ProducerTransport, where: Layout) -> None:
        self.transport, self.where = transport, where
        self.memory, self.bell_memory = transport.memory, transport.bell_memory
        self._generation = 77

    def ring(self) -> None:
        if Bell(self.bell_memory).ring() & PARKED:
            self.transport.wake_executor()

    def write(self, offset: int, word: int) -> None:
        struct.pack_into("=I", self.memory, offset, word & 0xFFFFFFFF)

    def read(self, offset: int) -> int:
        word: int = struct.unpack_from("=I", self.memory, offset)[0]
        return word

    def publish(self, *slots: int, state: int = READY) -> None:
        """Put *slots* into the ring, as a producer does, whether it may or not."""
        mask = (1 << (self.where.capacity - 1).bit_length()) - 1
        tail = self.read(layout.TAIL)
        self._generation += 1
        for at, slot in enumerate(slots):
            self.write(layout.INDICES + 4 * ((tail + at) & mask), slot)
            if slot < self.where.capacity:
                self.write(self.state_at(slot), self._generation << 8 | state)
        self.write(layout.TAIL, tail + len(slots))

    def state_at(self, slot: int) -> int:
        return self.where.controls + layout.CONTROL_NBYTES * slot + layout.CONTROL_STATE


class Raw(talking.Raw):
    """One connection to the executor of a name; what it leaves open, `close` closes."""

    def __init__(self, name: str) -> None:
        self.fds: list[int] = []
        super().__init__(name)

    def hear(self, max_fds: int = 8) -> tuple[dict[str, Any], list[int]]:
        message, fds = super().hear(max_fds)
        self.fds += fds
        return message, fds

    def said(self) -> list[dict[str, Any]]:
        """Wait until the executor has hung up; return what it said before."""
        said = []
        while True:
            try:
                said.append(self.hear()[0])
            except (EOFError, ConnectionError):
                return said

    def segment(self, function: str) -> Segment:
        """Attach to *function*, as far as the welcome, and map its segment."""
        welcome = self.ask(talking.attach(function=function))
        assert welcome["kind"] == "welcome", welcome
        self.loop_fd = self.fds[1]
        signature = Signature.from_message(welcome["signature"])
        return Segment(
            producer_transport(welcome["offer"], self.fds[-2:]),
            segment_layout(signature, welcome["capacity"]),
        )

    def attach(self, function: str) -> Segment:
        segment = self.segment(function)
        self.send({"kind": "attached"})
        return segment

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())

    def __exit__(self, *exc_info: object) -> None:
        self.close()
