"""Of all who want an executor started one does it; `tests/app/test_ensuring.py` has processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbatch.errors import ConfigError
from shmbatch.protocol.attempts import Attempt, Look
from shmbatch.protocol.directory import directory
from shmbatch.protocol.ownership import sweep


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of sockets; no descriptor is left."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with tempfile.TemporaryDirectory(prefix="shmbatch-test-") as path:
        monkeypatch.setenv("SHMBATCH_DIR", os.fspath(Path(path, "home")))
        yield Path(path, "home")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def entries(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


def test_it_is_the_first_ones_until_that_ends_and_then_over_for_all(home: Path) -> None:
    first, second, third = (Attempt("sums") for _ in range(3))
    assert entries(home) == ["sums.starting"]
    assert [each.look() for each in (first, second, first)] == [Look.OURS, Look.THEIRS, Look.OURS]
    first.end(b"no such model")
    assert entries(home) == []
    for each in (second, third):
        assert each.look() is Look.OVER
        assert each.look() is Look.OVER
        assert each.failure() == b"no such model"
        each.leave()


def test_who_comes_later_does_not_hear_of_it(home: Path) -> None:
    first, second = Attempt("sums"), Attempt("sums")
    assert first.look() is Look.OURS
    first.end(b"no such model")
    later = Attempt("sums")
    assert later.look() is Look.OURS
    assert later.failure() == b""
    assert second.look() is Look.OVER
    later.end()
    assert second.failure() == b"no such model"
    second.leave()


def test_one_that_succeeded_has_no_failure(home: Path) -> None:
    first, second = Attempt("sums"), Attempt("sums")
    assert first.look() is Look.OURS
    first.leave()
    assert (second.look(), second.failure()) == (Look.OVER, b"")
    second.leave()


def test_who_dies_is_succeeded_by_the_next_to_look(home: Path) -> None:
    first, second, third = (Attempt("sums") for _ in range(3))
    assert first.look() is Look.OURS
    first.close()  # as the kernel does
    assert (second.look(), third.look()) == (Look.OURS, Look.THEIRS)
    second.end()
    assert third.look() is Look.OVER
    third.leave()


def test_a_forked_child_has_no_part_in_it(home: Path) -> None:
    ours = Attempt("sums")
    assert ours.look() is Look.OURS
    go, went = os.pipe()
    child = os.fork()
    if not child:
        other = Attempt("sums")
        theirs = other.look() is Look.THEIRS
        ours.leave()
        left = entries(home)
        os.write(went, b"!")
        os._exit(0 if theirs and left == ["sums.starting"] else 1)
    assert os.read(go, 1) == b"!"
    ours.close()  # and no copy of the child's holds it
    other = Attempt("sums")
    assert other.look() is Look.OURS
    other.end()
    assert os.waitpid(child, 0)[1] == 0
    os.close(go)
    os.close(went)


def test_what_nobody_holds_is_swept_and_what_somebody_holds_is_not(home: Path) -> None:
    dead, held = Attempt("dead"), Attempt("held")
    assert held.look() is Look.OURS
    assert dead.look() is Look.OURS
    dead.close()
    (home / "not a name.starting").touch()
    sweep()
    assert entries(home) == ["held.starting", "not a name.starting"]
    held.end()


def test_one_that_was_swept_under_its_feet_is_over(home: Path) -> None:
    """It was opened, and nobody had locked it yet."""
    one = Attempt("sums")
    sweep()
    assert entries(home) == []
    assert (one.look(), one.failure()) == (Look.OVER, b"")
    one.leave()


def test_names_are_told_apart(home: Path) -> None:
    one, other = Attempt("one"), Attempt("other")
    assert (one.look(), other.look()) == (Look.OURS, Look.OURS)
    one.end()
    other.end()


def test_a_symbolic_link_is_refused(home: Path) -> None:
    directory(create=True)
    (home / "sums.starting").symlink_to(home / "target")
    with pytest.raises(ConfigError, match="cannot use"):
        Attempt("sums")
    assert not (home / "target").exists()
