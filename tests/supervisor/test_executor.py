"""An executor as its supervisor sees it: which cannot be watched, or says what is no message."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from shmbatch.errors import HandshakeError
from shmbatch.executor.obeying import Obedience
from shmbatch.protocol import control
from shmbatch.protocol.orders import Orders
from shmbatch.protocol.supervision import Supervisor
from shmbatch.supervisor import executor
from shmbatch.supervisor.executor import Executor, fork
from shmbatch.supervisor.signals import Signals
from tests import processes

pytestmark = pytest.mark.no_transport


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.leave()


def fork_one_that_stays(signals: Signals) -> None:
    if isinstance(fork(signals), socket.socket):
        while True:
            signal.pause()


def test_one_that_cannot_be_watched_is_not_left_to_itself(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pid: int) -> int:
        raise OSError(errno.ENFILE, "Too many open files in system")

    monkeypatch.setattr(executor.os, "pidfd_open", full)
    before = processes.descriptors()
    with pytest.raises(OSError, match="Too many open files in system"):
        fork_one_that_stays(signals)
    assert processes.children() == set()
    assert processes.descriptors() == before


def test_what_is_no_message_is_passed_over_and_what_follows_is_heard() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one = Executor(pid, ours)
    theirs.send(b"nonsense")
    socket.send_fds(
        theirs, [b"\x81\xa4kind\xa6reload"], [theirs.fileno()] * 2
    )  # for one we have no room
    control.send(theirs, {"kind": "draining"})
    assert [message["kind"] for message, _ in one.said()] == ["draining"]
    assert ours.fileno() in one.fds()
    theirs.close()
    assert list(one.said()) == []
    assert one.fds() == [one.pidfd]
    assert one.bury() == 0


def test_who_asks_for_a_reload_hears_of_a_supervisor_that_does_not_read() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = Supervisor(os.pidfd_open(os.getpid()), os.dup(ours.fileno()))
    orders = Orders(theirs, supervisor, keeper=os.getpid(), name=None, succeeds=False)
    obedience = Obedience(
        orders,
        None,  # type: ignore[arg-type] # is not asked
        drain=lambda: None,
        end=lambda status: None,
        replaced=lambda: None,
    )
    while orders.say("notify"):
        pass
    with pytest.raises(HandshakeError, match=rf"process {os.getpid()}\) does not read what it"):
        obedience.ask_for_reload(ours.fileno())
    orders.close()
    ours.close()
