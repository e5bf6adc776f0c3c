"""What lock files say of those who hold them."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from shmbatch.errors import ConfigError
from shmbatch.protocol import owners, ownership
from shmbatch.protocol.clock import now_ns
from shmbatch.protocol.directory import directory
from shmbatch.protocol.ownership import NameLock
from tests.protocol.homes import OWNER, Other, home, no_descriptor_is_left, outside

__all__ = ["home", "no_descriptor_is_left", "outside"]  # fixtures


def test_where_nobody_is_there_is_no_owner(home: Path) -> None:
    assert owners.owner("sums") is None
    assert owners.owners() == []
    directory(create=True)
    (home / "sums.lock").write_text("1\nserving\n5\n/sums.py")  # of a dead one
    assert owners.owner("sums") is None
    assert owners.owners() == []
    assert (home / "sums.lock").exists(), "to look is not to sweep"


def test_an_owner_says_what_it_does_and_since_when(home: Path) -> None:
    file = Path("/a folder/with\na line.py")
    before_ns = now_ns()
    with NameLock.claim("sums") as lock:
        found = owners.owner("sums")
        assert found == owners.Owner("sums", os.getpid(), ownership.LOADING, None, None)
        for state in (ownership.LOADING, ownership.SERVING, ownership.DRAINING):
            lock.note(state, file)
            found = owners.owner("sums")
            assert found is not None
            assert (found.pid, found.state, found.file) == (os.getpid(), state, str(file))
            assert found.since_ns is not None
            assert before_ns <= found.since_ns <= now_ns()
        assert owners.owners() == [found]
        with Other(OWNER, "sums") as second:
            assert "already served" in second.finish(), "to look has freed nothing"
    lock.note(ownership.SERVING, file)  # does nothing
    assert owners.owner("sums") is None


def test_another_process_is_known_by_what_the_kernel_says(home: Path) -> None:
    directory(create=True)
    with Other(OWNER, "sums") as other:
        assert other.line() == "claimed"
        assert owners.owner("sums") == owners.Owner(
            "sums", other.pid, ownership.LOADING, None, None
        )
        # Not yet its own: what the last owner noted is no news of this one.
        (home / "sums.lock").write_text("1\ndraining\n5\n/sums.py")
        assert owners.owner("sums") == owners.Owner(
            "sums", other.pid, ownership.LOADING, None, None
        )
        (home / "sums.lock").write_text(f"{other.pid}\ndraining\n5\n")
        assert owners.owner("sums") == owners.Owner("sums", other.pid, ownership.DRAINING, 5, None)
        other.finish()
    assert owners.owner("sums") is None


@pytest.mark.parametrize(
    "text", ["", "{pid}", "{pid}\nflying\n5\nx", "{pid}\nserving\nx\nx", "\xff"]
)
def test_what_cannot_be_read_is_an_owner_all_the_same(home: Path, text: str) -> None:
    with NameLock.claim("sums"), Other(OWNER, "other") as other:
        assert other.line() == "claimed"
        (home / "other.lock").write_text(text.format(pid=other.pid), encoding="latin-1")
        found = owners.owner("other")
        assert found == owners.Owner("other", other.pid, ownership.LOADING, None, None)
        assert [each.app for each in owners.owners()] == ["other", "sums"]
        other.finish()


def test_a_lock_file_that_is_none_is_refused(home: Path) -> None:
    directory(create=True)
    (home / "sums.lock").symlink_to(home / "target")
    with pytest.raises(ConfigError, match="cannot use"):
        owners.owner("sums")


def test_among_all_of_them_what_is_no_lock_file_is_passed_over(home: Path) -> None:
    with NameLock.claim("sums"), socket.socket(socket.AF_UNIX) as sock:
        (home / "folder.lock").mkdir()
        (home / "link.lock").symlink_to(home / "target")
        sock.bind(str(home / "socket.lock"))
        assert [each.app for each in owners.owners()] == ["sums"]


def test_among_all_of_them_none_is_passed_over_for_want_of_descriptors(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    directory(create=True)
    (home / "sums.lock").touch()
    monkeypatch.setattr(ownership, "open_lock", exhausted)
    with pytest.raises(ConfigError, match="Too many open files; raise the limit"):
        owners.owners()
