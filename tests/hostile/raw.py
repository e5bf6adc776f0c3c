"""A producer that says and writes what a test has it say and write: no client is between."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from shmbatch.contract.signature import Signature
from shmbatch.contract.wire import segment_layout
from shmbatch.protocol import control, layout
from shmbatch.protocol._core import PARKED, READY, Bell
from shmbatch.protocol.directory import socket_path
from shmbatch.protocol.layout import Layout
from shmbatch.protocol.transport import producer_transport
from tests.processes import PATIENCE_S


class Raw:
    """One connection to the executor of a name; what it leaves open, `close` closes."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        self.fds: list[int] = []
        try:
            self.sock.connect(str(socket_path(name)))
        except BaseException:
            self.sock.close()
            raise

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.send_bytes(msgspec.msgpack.encode(message), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = struct.pack(f"{len(fds)}i", *fds)
        self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])

    def hear(self) -> dict[str, Any]:
        """Return the next message; its descriptors are in `fds`.

        Raises:
            EOFError: the executor has hung up, and all that it said was heard.
        """
        message, fds = control.receive(self.sock, 8)
        self.fds += fds
        return message

    def is_hung_up_on(self) -> list[dict[str, Any]]:
        """Wait until the executor has hung up; return what it said before."""
        said = []
        while True:
            try:
                said.append(self.hear())
            except (EOFError, ConnectionError):
                return said

    def ask(self, function: str) -> dict[str, Any]:
        """Ask to be attached to *function*, and return the answer."""
        self.send(
            {
                "kind": "attach",
                "version": layout.VERSION,
                "function": function,
                "signature": None,
            }
        )
        return self.hear()

    def attach(self, function: str) -> None:
        """Attach to *function*, and map its segment; sets `memory`, `where` and `bell`."""
        welcome = self.ask(function)
        assert welcome["kind"] == "welcome", welcome
        self.loop_fd = self.fds[1]
        self.transport = producer_transport(welcome["offer"], self.fds[-2:])
        self.memory = self.transport.memory
        self.bell_memory = self.transport.bell_memory
        self.where: Layout = segment_layout(
            Signature.from_message(welcome["signature"]), welcome["capacity"]
        )
        self.generation = 77

    def attached(self) -> None:
        self.send({"kind": "attached"})

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
        self.generation += 1
        for at, slot in enumerate(slots):
            self.write(layout.INDICES + 4 * ((tail + at) & mask), slot)
            if slot < self.where.capacity:
                self.write(self.state_at(slot), self.generation << 8 | state)
        self.write(layout.TAIL, tail + len(slots))

    def state_at(self, slot: int) -> int:
        return self.where.controls + layout.CONTROL_NBYTES * slot + layout.CONTROL_STATE

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
