"""A line alone: what it takes over, how long it waits for a death, and who reads it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shmbatch.client import line as lines
from shmbatch.client.line import Line
from shmbatch.client.listener import Listener
from shmbatch.protocol.linux import LinuxExecutor
from tests import processes


class Offered:
    """What an executor offers, and the end of its socket."""

    def __init__(self) -> None:
        transport = LinuxExecutor()
        segment = transport.create(4096, 1)
        self.offer, memory = segment.offer()
        self.theirs, loop_socket = socket.socketpair()
        self.fds = [os.pidfd_open(os.getpid()), loop_socket.detach(), *map(os.dup, memory)]
        segment.handed_over()
        transport.close()

    def line(self) -> Line:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        try:
            return Line(ours, {"pid": os.getpid(), "offer": self.offer}, self.fds)
        except OSError:
            ours.close()
            raise

    def close(self) -> None:
        self.theirs.close()
        while self.fds:
            os.close(self.fds.pop())


@pytest.fixture
def offered() -> Iterator[Offered]:
    offered = Offered()
    yield offered
    offered.close()


def test_what_is_no_socket_wakes_nobody_and_is_not_kept_open(offered: Offered) -> None:
    os.dup2(offered.fds[0], offered.fds[1])
    before = processes.descriptors()
    with pytest.raises(OSError, match="socket"):
        offered.line()
    assert processes.descriptors() == before


def test_an_executor_that_has_hung_up_is_given_time_to_die(
    offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has exit handlers to run, threads to join, a device to let go of."""
    at_ns = 10**18
    monkeypatch.setattr(lines, "now_ns", lambda: at_ns)
    line = offered.line()
    assert line.is_gone()
    assert line.may_die()
    at_ns += 9 * 10**9
    assert line.may_die()
    at_ns += 2 * 10**9
    assert not line.may_die()
    line.close_descriptors()


def test_a_line_that_is_let_go_of_while_a_loop_turns_to_it_is_not_read(offered: Offered) -> None:
    """Another thread moves to the next one just then."""
    first, second = offered.line(), offered.line()

    class Connection(SimpleNamespace):
        dead = is_orphaned = False
        looks = 0

        @property
        def line(self) -> Line:
            self.looks += 1
            if self.looks > 1:
                return second
            listener.let_go(first)  # which is closed by now
            return first

    connection: Any = Connection()
    listener = Listener(connection)

    async def listens() -> None:
        loop = listener._listen()
        assert listener._reading == {loop: second}
        listener.let_go(second)

    asyncio.run(listens())
    assert (first.pidfd, second.pidfd) == (-1, -1)


def test_a_loop_that_is_closed_before_it_lets_go_of_a_line_leaves_no_descriptor(
    offered: Offered,
) -> None:
    before = processes.descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def let_go_of() -> Listener:
        line = Line(ours, {"pid": os.getpid(), "offer": offered.offer}, offered.fds)
        connection: Any = SimpleNamespace(line=line, dead=False, is_orphaned=False)
        listener = Listener(connection)

        async def listens() -> None:
            listener._listen()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(listens())
        listener.let_go(line)  # when the loop runs again, which it does not
        loop.close()
        assert line.pidfd >= 0
        del connection.line
        return listener

    listener = let_go_of()
    gc.collect()
    theirs.close()
    assert ours.fileno() < 0
    assert not listener._reading
    assert processes.descriptors() == before
