"""What is known of a supervisor, and the name that it keeps."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmbatch.errors import NameTaken
from shmbatch.protocol import owners, ownership
from shmbatch.protocol.ownership import LOADING, SERVING, NameLock
from shmbatch.protocol.supervision import NOTICE_NBYTES, Notice, Supervisor
from tests.protocol.homes import (
    OWNER,
    Other,
    entries,
    home,
    no_descriptor_is_left,
    outside,
    taken_by,
)

__all__ = ["home", "no_descriptor_is_left", "outside"]  # fixtures


@pytest.fixture
def notice() -> Iterator[Notice]:
    notice = Notice()
    yield notice
    notice.unmap()
    os.close(notice.fd)


@pytest.fixture
def supervisor(notice: Notice) -> Iterator[Supervisor]:
    """This process, seen as one."""
    supervisor = Supervisor(os.pidfd_open(os.getpid()), os.dup(notice.fd))
    yield supervisor
    supervisor.close()


def test_a_supervisor_is_over_when_its_process_is_dead(notice: Notice) -> None:
    pid = os.fork()
    if not pid:
        try:
            signal.pause()
        finally:
            os._exit(2)
    supervisor = Supervisor(os.pidfd_open(pid), os.dup(notice.fd))
    assert not supervisor.is_over()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert supervisor.is_over()
    supervisor.close()
    supervisor.close()


def test_a_notice_is_empty_until_the_cause_is_written(
    notice: Notice, supervisor: Supervisor
) -> None:
    assert supervisor.cause() is None
    notice.write("it did not start")
    assert supervisor.cause() == "it did not start"


def test_a_cause_is_one_printable_line_that_fits(notice: Notice, supervisor: Supervisor) -> None:
    notice.write("two\nlines, a bell \a and no end" + "é" * NOTICE_NBYTES)
    cause = supervisor.cause()
    assert cause is not None
    assert cause.startswith("two lines, a bell ? and no endé")
    assert cause.isprintable()
    assert len(cause.encode()) <= NOTICE_NBYTES // 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x80", b"\n\n\n", b"\0after the end"])
def test_whatever_a_notice_holds_its_cause_is_printable(content: bytes) -> None:
    fd = os.memfd_create("notice")
    os.write(fd, content)
    supervisor = Supervisor(os.pidfd_open(os.getpid()), fd)
    assert (supervisor.cause() or "").isprintable()
    supervisor.close()


def test_what_is_no_notice_has_no_cause() -> None:
    for fd in (os.open("/", os.O_RDONLY), os.memfd_create("empty"), *os.pipe()):
        supervisor = Supervisor(os.pidfd_open(os.getpid()), fd)
        assert supervisor.cause() is None
        supervisor.close()


def again(fd: int) -> int:
    """Open the file of *fd* for writing, as anybody may try to who has it."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR)


@pytest.mark.parametrize(
    "write",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.truncate(fd, 0),
        lambda fd: mmap.mmap(fd, NOTICE_NBYTES),
        lambda fd: os.pwrite(again(fd), b"x", 0),
        lambda fd: mmap.mmap(again(fd), NOTICE_NBYTES),
        lambda fd: os.ftruncate(again(fd), 0),
        lambda fd: fcntl.fcntl(again(fd), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ],
)
def test_nobody_but_the_supervisor_can_write_a_notice(
    notice: Notice, supervisor: Supervisor, write: Callable[[int], object]
) -> None:
    notice.write("the truth")
    _, fd = supervisor.fds()
    pid = os.fork()  # not only in another process: also in one that inherits what this has
    if not pid:
        try:
            write(fd)
        except OSError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.fstat(fd).st_mode & 0o777 == 0o400  # so that another user cannot even try
    assert supervisor.cause() == "the truth"


# A supervisor of a name: its first child owns it and dies, its second one owns it and stays.
KEEPER = """
import os, signal, sys
from shmbatch.protocol.keeping import NameKeeper
from shmbatch.protocol.ownership import NameLock
supervisor = os.getpid()

def child():
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        if keeper is not None:
            keeper.close()
        lock = NameLock.claim(sys.argv[1], keeper=supervisor)
        lock.note("serving")
        os.write(into, b"!")
        signal.pause()
    os.read(out, 1)
    return pid

keeper = None
first = child()
keeper = NameKeeper(sys.argv[1])
print("kept", flush=True)
sys.stdin.readline()
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
print("between", flush=True)
sys.stdin.readline()
second = child()
print(second, flush=True)
sys.stdin.readline()
os.kill(second, signal.SIGKILL)
os.waitpid(second, 0)
keeper.close()
"""


def go_on(other: Other) -> None:
    assert other.process.stdin is not None
    other.process.stdin.write("\n")
    other.process.stdin.flush()


def test_a_kept_name_is_nobody_elses_between_two_owners(home: Path) -> None:
    with Other(KEEPER, "sums") as supervisor:
        assert supervisor.line() == "kept"
        first = owners.owner("sums")
        assert first is not None
        assert (first.state, first.keeper) == (SERVING, supervisor.pid)
        assert first.pid != supervisor.pid

        go_on(supervisor)
        assert supervisor.line() == "between"
        between = owners.owner("sums")
        assert between is not None
        assert (between.pid, between.keeper) == (supervisor.pid, supervisor.pid)
        assert between.state == LOADING
        assert ownership.sweep() == []
        with pytest.raises(NameTaken) as refusal:
            NameLock.claim("sums")
        assert str(refusal.value) == taken_by(supervisor.pid)
        assert entries(home) == ["sums.lock"]

        go_on(supervisor)
        second = int(supervisor.line())
        found = owners.owner("sums")
        assert found is not None
        assert (found.pid, found.keeper, found.state) == (second, supervisor.pid, SERVING)
        supervisor.finish()
    assert entries(home) == []


# Keeps a name that somebody else owns.
KEEPING = """
import sys
from shmbatch.protocol.keeping import NameKeeper
keeper = NameKeeper(sys.argv[1])
print("kept", flush=True)
sys.stdin.read()
keeper.close()
"""


def test_an_owner_leaves_the_entries_of_a_kept_name_to_its_keeper(home: Path) -> None:
    lock = NameLock.claim("sums")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(lock.socket_path))
        with Other(KEEPING, "sums") as supervisor:
            assert supervisor.line() == "kept"
            lock.close()
            assert entries(home) == ["sums.lock", "sums.sock"]
            supervisor.finish()
    assert entries(home) == []


def test_an_owner_whose_keeper_has_died_removes_the_entries(home: Path) -> None:
    with NameLock.claim("sums"), Other(KEEPING, "sums") as supervisor:
        assert supervisor.line() == "kept"
        supervisor.process.kill()
        supervisor.process.wait()
    assert entries(home) == []


def test_what_a_dead_keeper_kept_is_swept(home: Path) -> None:
    with Other(KEEPER, "sums") as supervisor:
        supervisor.line()
        go_on(supervisor)
        supervisor.line()
        (home / "sums.next").touch()
        supervisor.process.kill()
        supervisor.process.wait()
    assert entries(home) == ["sums.lock", "sums.next"]
    assert ownership.sweep() == ["sums"]
    assert entries(home) == []


def test_a_keeper_does_not_remove_what_somebody_owns(home: Path) -> None:
    with Other(OWNER, "sums") as owner:
        assert owner.line() == "claimed"
        with Other(KEEPING, "sums") as supervisor:
            assert supervisor.line() == "kept"
            supervisor.finish()
        assert entries(home) == ["sums.lock", "sums.sock"]
        owner.finish()


def test_who_succeeds_a_killed_owner_leaves_its_socket_to_be_replaced(home: Path) -> None:
    with Other(OWNER, "sums") as owner:
        assert owner.line() == "claimed"
        owner.process.kill()
        owner.process.wait()
        with NameLock.claim("sums", succeeds=True):
            assert entries(home) == ["sums.lock", "sums.sock"]
