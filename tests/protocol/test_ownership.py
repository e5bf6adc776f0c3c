"""One live owner per name, whoever comes, dies or sweeps at the same time."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from shmbatch.errors import ConfigError, NameTaken
from shmbatch.protocol import ownership
from shmbatch.protocol.directory import socket_path
from shmbatch.protocol.ownership import NameLock
from tests.protocol.homes import (
    OWNER,
    Other,
    entries,
    home,
    no_descriptor_is_left,
    outside,
    serve,
    taken_by,
)

__all__ = ["home", "no_descriptor_is_left", "outside"]  # fixtures


def test_a_claimed_name_has_a_lock_file_with_the_pid_that_cleaners_leave_alone(home: Path) -> None:
    with NameLock.claim("sums") as lock:
        assert lock.socket_path == socket_path("sums") == home / "sums.sock"
        assert entries(home) == ["sums.lock"]
        assert (home / "sums.lock").read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE((home / "sums.lock").stat().st_mode) == 0o1600
    assert entries(home) == []


def test_nothing_of_the_text_of_an_earlier_owner_is_left(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "sums.lock").write_text("12345678901234567890\n")

    with NameLock.claim("sums"):
        assert (home / "sums.lock").read_text() == f"{os.getpid()}\n"


def test_a_name_has_one_owner(home: Path) -> None:
    with NameLock.claim("sums"), NameLock.claim("other"), Other(OWNER, "sums") as second:
        assert second.finish() == taken_by(os.getpid())


def test_a_second_claim_in_the_process_is_refused_and_does_not_free_the_first(home: Path) -> None:
    """The kernel would grant it, and would free the name when either descriptor is closed."""
    alias = home.parent / "alias"
    alias.symlink_to(home.parent)
    with NameLock.claim("sums"):
        for path in (home, alias / "home"):
            os.environ["SHMBATCH_DIR"] = os.fspath(path)
            with pytest.raises(NameTaken) as refusal:
                NameLock.claim("sums")
            assert str(refusal.value) == taken_by(os.getpid())
        with Other(OWNER, "sums") as second:
            assert second.finish() == taken_by(os.getpid())


def test_the_refusal_names_the_owner_and_not_what_an_earlier_one_left(home: Path) -> None:
    home.mkdir(mode=0o700)
    with Other(OWNER, "sums") as owner:
        assert owner.line() == "claimed"
        (home / "sums.lock").write_text("1\n")

        with pytest.raises(NameTaken) as refusal:
            NameLock.claim("sums")

    assert str(refusal.value) == taken_by(owner.pid)


def test_close_gives_the_name_back_once(home: Path) -> None:
    lock = NameLock.claim("sums")
    serve(lock.socket_path).close()

    lock.close()
    assert entries(home) == []
    with Other(OWNER, "sums") as second:
        assert second.line() == "claimed"
        lock.close()
        assert entries(home) == ["sums.lock", "sums.sock"]
        second.finish()
    assert entries(home) == []
    NameLock.claim("sums").close()


def test_a_signal_handler_may_close_a_lock_that_is_being_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = NameLock.claim("sums")
    remove = ownership.remove

    def interrupted(path: Path) -> None:
        lock.close()
        remove(path)

    monkeypatch.setattr(ownership, "remove", interrupted)

    lock.close()

    assert entries(home) == []


def test_a_killed_owner_is_succeeded_although_its_child_lives_on(home: Path) -> None:
    """The child has the lock file and the listening socket open, and the lock is free."""
    script = OWNER.replace(
        'print("claimed"', "import os; child = os.fork(); child and print(child"
    )
    with Other(script, "sums") as owner:
        child = os.pidfd_open(int(owner.line()))
        try:
            with pytest.raises(NameTaken):
                NameLock.claim("sums")
            assert entries(home) == ["sums.lock", "sums.sock"]
            owner.process.kill()
            owner.process.wait()

            with NameLock.claim("sums") as lock:
                assert entries(home) == ["sums.lock"]
                assert (home / "sums.lock").read_text() == f"{os.getpid()}\n"
                serve(lock.socket_path).close()
        finally:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
    assert entries(home) == []


def test_a_forked_child_neither_owns_nor_removes_what_its_parent_claimed(home: Path) -> None:
    script = """
import os, sys
from shmbatch.errors import NameTaken
from shmbatch.protocol import ownership
lock = ownership.NameLock.claim("sums")
child = os.fork()
if not child:
    lock.close()
    try:
        ownership.NameLock.claim("sums")
    except NameTaken as error:
        refused = f"process {os.getppid()};" in str(error)
    with ownership.NameLock.claim("mine"):
        os._exit(0 if refused and ownership.sweep() == [] else 1)
assert os.waitpid(child, 0)[1] == 0
print("ready", flush=True)
sys.stdin.read()
lock.close()
"""
    with Other(script) as parent:
        assert parent.line() == "ready"
        assert "sums.lock" in entries(home)
        with pytest.raises(NameTaken) as refusal:
            NameLock.claim("sums")
        assert str(refusal.value) == taken_by(parent.pid)
        parent.finish()
    assert ownership.sweep() == ["mine"]
    assert entries(home) == []


def test_a_fork_amid_a_claim_leaves_the_child_able_to_claim(home: Path) -> None:
    script = """
import os, threading
from shmbatch.protocol import ownership
held, done = threading.Event(), threading.Event()
def hold():
    with ownership._mutex:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if not child:
    ownership.NameLock.claim("sums").close()
    os._exit(0)
print(os.waitpid(child, 0)[1])
done.set()
thread.join()
"""
    with Other(script) as parent:
        assert parent.finish() == "0"


@pytest.mark.parametrize("kind", ["symlink", "directory"])
def test_a_lock_file_that_is_none_is_refused_and_left_alone(home: Path, kind: str) -> None:
    home.mkdir(mode=0o700)
    (home.parent / "target").write_text("precious")
    if kind == "symlink":
        (home / "sums.lock").symlink_to(home.parent / "target")
    else:
        (home / "sums.lock").mkdir()

    with pytest.raises(ConfigError, match=r"^cannot use '.*sums\.lock': .*; set SHMBATCH_DIR"):
        NameLock.claim("sums")

    assert ownership.sweep() == []
    assert entries(home) == ["sums.lock"]
    assert (home.parent / "target").read_text() == "precious"


def test_a_claim_that_cannot_remove_the_old_socket_takes_nothing(home: Path) -> None:
    (home / "sums.sock").mkdir(parents=True)
    home.chmod(0o700)

    with pytest.raises(ConfigError, match=r"^cannot use "):
        NameLock.claim("sums")

    (home / "sums.sock").rmdir()
    with Other(OWNER, "sums") as other:
        assert other.line() == "claimed"
        other.finish()


# At the same time.

ROUNDS = 40


def test_of_several_processes_at_once_exactly_one_gets_each_name(home: Path) -> None:
    script = f"""
import os, sys
from shmbatch.errors import NameTaken
from shmbatch.protocol.ownership import NameLock
print("ready", flush=True)
os.read(int(sys.argv[1]), 1)  # all see the end of this pipe at once
locks = []
for number in range({ROUNDS}):
    try:
        locks.append(NameLock.claim(f"name-{{number}}"))
        print("got", number)
    except NameTaken:
        pass
print("end", flush=True)
sys.stdin.read()
"""
    gate, opener = os.pipe()
    racers = [Other(script, str(gate), pass_fds=[gate]) for _ in range(4)]
    os.close(gate)
    for racer in racers:
        assert racer.line() == "ready"
    os.close(opener)

    got: list[str] = []
    for racer in racers:
        while (line := racer.line()) != "end":
            got.append(line)
    for racer in racers:
        racer.finish()

    assert sorted(got) == sorted(f"got {number}" for number in range(ROUNDS))


def test_owners_that_come_and_go_amid_sweepers_are_never_two(home: Path) -> None:
    """Each owner leaves a mark while it owns; sometimes it goes away as if it had been killed."""
    owner = """
import os, sys
from shmbatch.errors import NameTaken
from shmbatch.protocol import ownership
mark = sys.argv[1]
owned = 0
while owned < 60:
    try:
        lock = ownership.NameLock.claim("sums")
    except NameTaken as error:
        assert sys.argv[2] not in str(error), error
        continue
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    os.unlink(mark)
    owned += 1
    if owned % 3:
        lock.close()
    else:  # what the kernel does at its death
        ownership._held.clear()
        os.close(lock._fd)
print("owned", owned)
"""
    sweeper = """
import sys, threading
from shmbatch.protocol import ownership
ended = threading.Thread(target=sys.stdin.read)
ended.start()
while ended.is_alive():
    ownership.sweep()
"""
    with Other(sweeper) as sweeping:
        owners = [
            Other(owner, os.fspath(home.parent / "mark"), f"process {sweeping.pid};")
            for _ in range(3)
        ]
        assert [other.finish() for other in owners] == ["owned 60"] * 3
        sweeping.finish()
    ownership.sweep()
    assert entries(home) == []


class Interference:
    """Do something between the opening of a lock file and its locking, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deed: Any, *, blocking: bool) -> None:
        self._deeds = [deed]
        self._blocking = blocking
        self._lockf = fcntl.lockf
        monkeypatch.setattr(fcntl, "lockf", self)

    def __call__(self, fd: int, command: int, *rest: int) -> None:
        if self._deeds and self._blocking != bool(command & fcntl.LOCK_NB):
            self._deeds.pop()()
        self._lockf(fd, command, *rest)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_lock_file_removed_before_it_is_locked_is_made_again(
    home: Path, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Interference(monkeypatch, (home / "sums.lock").unlink, blocking=blocking)

    with NameLock.claim("sums"):
        assert entries(home) == ["sums.lock"]
        with Other(OWNER, "sums") as second:
            assert second.finish() == taken_by(os.getpid())


@pytest.mark.parametrize("blocking", [False, True])
def test_a_lock_file_replaced_by_another_owner_is_respected(
    home: Path, blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = []

    def replace() -> None:
        (home / "sums.lock").unlink()
        others.append(Other(OWNER, "sums"))
        assert others[0].line() == "claimed"

    Interference(monkeypatch, replace, blocking=blocking)

    with pytest.raises(NameTaken) as refusal:
        NameLock.claim("sums")

    assert str(refusal.value) == taken_by(others[0].pid)
    assert entries(home) == ["sums.lock", "sums.sock"]
    others[0].finish()


def test_a_sweeper_at_the_name_is_waited_for_and_not_taken_for_an_owner(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import sys
from shmbatch.protocol import ownership
remove = ownership.remove
def remove_when_told(path):
    print("has it", flush=True)
    sys.stdin.read()
    remove(path)
ownership.remove = remove_when_told
print(ownership.sweep())
"""
    home.mkdir(mode=0o700)
    (home / "sums.lock").write_text("1\n")
    with Other(script) as sweeper:
        assert sweeper.line() == "has it"
        assert sweeper.process.stdin is not None
        Interference(monkeypatch, sweeper.process.stdin.close, blocking=True)

        with NameLock.claim("sums"):
            assert sweeper.line() == "['sums']"
            assert entries(home) == ["sums.lock"]
            assert (home / "sums.lock").read_text() == f"{os.getpid()}\n"
        sweeper.process.stdin = None


def test_who_lost_the_lock_file_does_not_remove_the_socket_of_a_successor(home: Path) -> None:
    """As after a cleaner that does not honour the sticky bit."""
    lock = NameLock.claim("sums")
    (home / "sums.lock").unlink()
    with Other(OWNER, "sums") as successor:
        assert successor.line() == "claimed"

        lock.close()

        assert entries(home) == ["sums.lock", "sums.sock"]
        successor.finish()


# Sweeping.


def test_sweeping_removes_what_dead_owners_left_and_nothing_else(home: Path) -> None:
    home.mkdir(mode=0o700)
    for name in ("notes.txt", "not a name.lock", "orphan.sock", "stale.lock"):
        (home / name).write_text("")
    with Other(OWNER, "dead") as dead, Other(OWNER, "live") as live, NameLock.claim("ours"):
        assert [dead.line(), live.line()] == ["claimed", "claimed"]
        dead.process.kill()
        dead.process.wait()

        assert ownership.sweep() == ["dead", "stale"]

        kept = ["live.lock", "live.sock", "not a name.lock", "notes.txt", "orphan.sock"]
        assert entries(home) == sorted([*kept, "ours.lock"])
        with Other(OWNER, "ours") as second:
            assert second.finish() == taken_by(os.getpid(), "ours")
        with Other(OWNER, "live") as second:
            assert second.finish() == taken_by(live.pid, "live")
        assert ownership.sweep() == []
        live.finish()


def test_a_sweeper_that_came_late_does_not_remove_a_new_owner(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening and locking, another sweeper removed the file, and a new owner came."""
    home.mkdir(mode=0o700)
    (home / "sums.lock").write_text("1\n")
    others = []

    def replace() -> None:
        (home / "sums.lock").unlink()
        others.append(Other(OWNER, "sums"))
        assert others[0].line() == "claimed"

    Interference(monkeypatch, replace, blocking=False)

    assert ownership.sweep() == []
    assert entries(home) == ["sums.lock", "sums.sock"]
    others[0].finish()


def test_sweeping_an_absent_directory_does_nothing(home: Path) -> None:
    assert ownership.sweep() == []
    assert not home.exists()


def test_sweeping_a_directory_of_somebody_else_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o700)
    (home / "sums.lock").write_text("1\n")
    owner = os.geteuid()
    if owner == 0:  # whom everybody trusts
        os.chown(home, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(ConfigError, match=" belongs to uid "):
        ownership.sweep()

    assert entries(home) == ["sums.lock"]


def test_two_threads_never_both_get_a_name(home: Path) -> None:
    """The kernel makes no difference between threads of one process."""
    barrier = threading.Barrier(4)
    locks: list[NameLock] = []

    def race() -> None:
        barrier.wait()
        for number in range(50):
            try:
                locks.append(NameLock.claim(f"name-{number}"))
            except NameTaken:
                pass
            ownership.sweep()

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(lock.app for lock in locks) == sorted(f"name-{n}" for n in range(50))
    for lock in locks:
        lock.close()
    assert entries(home) == []
