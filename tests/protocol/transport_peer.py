"""The producer process of test_transports: does what it is told over a socket.

python -m tests.protocol.transport_peer FD
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.protocol import control
from shmbatch.protocol._core import PARKED, PENDING, THREAD, ProducerRing
from shmbatch.protocol.transport import producer_transport
from tests.rings import ADD

HOUR_NS = 3600 * 10**9


def is_asleep(pid: int, thread: int) -> bool:
    """Whether a thread sleeps in the kernel."""
    stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


class Peer:
    def __init__(self, offer: dict[str, Any], fds: list[int], capacity: int) -> None:
        self.transport = producer_transport(offer, fds)
        where = segment_layout(ADD, capacity)
        shared = ring_arguments(self.transport.memory, ADD, where)
        self.ring = ProducerRing(*shared, self.transport.bell_memory, self.wake, None)
        self.woke = 0

    def wake(self, sleeping: int) -> None:
        self.woke += 1
        assert sleeping == PARKED
        self.transport.wake_executor()

    def submit(self, message: dict[str, Any]) -> Any:
        return self.ring.submit((message["x"], message["y"]), 0)

    def submit_to_a_sleeper(self, message: dict[str, Any]) -> Any:
        """Submit once the executor's thread sleeps, not before."""
        while not is_asleep(message["pid"], message["thread"]):
            pass
        return self.submit(message)

    def sleep_on_slot(self, message: dict[str, Any]) -> Any:
        ticket = message["ticket"]
        naps = 1
        while not self.transport.park_slot(self.ring, ticket, HOUR_NS):
            naps += 1
        return [self.ring.poll(ticket, 0), naps]

    def sleep_on_completions(self, message: dict[str, Any]) -> Any:
        ticket = message["ticket"]
        naps = 0
        while True:
            joined = self.ring.join_completions(THREAD)
            outcome = self.ring.poll(ticket, 0)
            if outcome is PENDING:
                self.transport.park_completions(self.ring, joined, HOUR_NS)
                naps += 1
            self.ring.leave_completions(THREAD)
            if outcome is not PENDING:
                return [outcome, naps]

    def park_briefly(self, message: dict[str, Any]) -> Any:
        """Parks without anybody to end them come back by themselves."""
        ticket = message["ticket"]
        if self.transport.park_slot(self.ring, ticket, 1000):
            return False
        joined = self.ring.join_completions(THREAD)
        self.transport.park_completions(self.ring, joined, 1000)
        self.ring.leave_completions(THREAD)
        return self.ring.poll(ticket, 0) is PENDING

    def poll(self, message: dict[str, Any]) -> Any:
        return self.ring.poll(message["ticket"], 0)


def resize(fd: int) -> list[str]:
    """Try to change the size of what was handed over; return what came of it."""
    results = []
    for nbytes in (0, 64, 1 << 24):
        try:
            os.ftruncate(fd, nbytes)
            results.append("done")
        except OSError as error:
            results.append(type(error).__name__)
    return results


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        peer: Peer | None = None
        while True:
            try:
                message, fds = control.receive(sock, max_fds=8)
            except EOFError:
                return
            if message["kind"] == "attach":
                peer = Peer(message["offer"], fds, message["capacity"])
                answer: Any = None
            elif message["kind"] == "resize":
                answer = [resize(fd) for fd in fds]
            else:
                answer = getattr(peer, message["kind"])(message)
            for fd in fds:
                os.close(fd)
            control.send(sock, {"kind": "done", "answer": answer})


if __name__ == "__main__":
    main()
