"""One reload after another: who has asked for it, what it took, and who is told."""

from __future__ import annotations

import logging
import socket

from ..protocol import orders
from .executor import Executor

log = logging.getLogger("shmbatch.supervisor")


class Reload:
    """The reload that is wanted, or under way, and the sockets of those who wait for its end.

    Who asks while one is under way waits for another one: the file that is being loaded may be
    older than the wish.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self._next: list[socket.socket] = []
        self._now: list[socket.socket] = []
        self._leaving: tuple[Executor, Executor] | None = None  # who is replaced by whom

    def ask(self, fd: int | None = None) -> None:
        """Want one; *fd* is the socket of whoever is to be told, and is taken over."""
        self.is_wanted = True
        if fd is not None:
            self._next.append(socket.socket(fileno=fd))

    def begin(self) -> None:
        """Begin the one that is wanted."""
        self.is_wanted = False
        self._now += self._next
        self._next = []

    def taken(self, successor: Executor, replaced: Executor) -> None:
        """The successor has the name; it is over when the other one accepts nobody any more."""
        self._leaving = replaced, successor

    def released(self, replaced: Executor, at_ns: int) -> None:
        """One accepts nobody any more since *at_ns*. Idempotent."""
        if self._leaving is not None and self._leaving[0] is replaced:
            successor, self._leaving = self._leaving[1], None
            self.succeed(successor, at_ns)

    def succeed(self, successor: Executor, released_ns: int) -> None:
        """Tell those who wait what it took.

        Args:
            released_ns: when the one before accepted nobody any more, or died.
        """
        assert successor.ready_ns is not None
        assert successor.taken_ns is not None
        log.info("reloaded: process %d took over", successor.pid)
        self._tell(
            {
                "kind": "reloaded",
                "pid": successor.pid,
                "load_ns": successor.ready_ns - successor.since_ns,
                "gap_ns": max(0, successor.taken_ns - released_ns),
            }
        )

    def fail(self, error: str, message: str) -> None:
        """Tell those who wait why it has failed."""
        self._tell({"kind": "refused", "error": error, "message": message})

    def give_up(self, message: str) -> None:
        """Tell all, also those whose turn has not come, that nothing is reloaded any more."""
        self.begin()
        self.fail("ExecutorClosed", message)

    def close(self) -> None:
        """Close what this process has of those who wait, without a word."""
        for sock in (*self._now, *self._next):
            sock.close()

    def _tell(self, message: dict[str, object]) -> None:
        told, self._now = self._now, []
        for sock in told:
            with sock:
                orders.send(sock, message)
