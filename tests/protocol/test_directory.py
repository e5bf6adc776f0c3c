"""Which directory the sockets are in, and that nobody else can get at it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from shmbatch.errors import ConfigError
from shmbatch.protocol import access, directory
from shmbatch.protocol.ownership import NameLock
from tests.protocol.homes import entries, home, no_descriptor_is_left, outside, serve

__all__ = ["home", "no_descriptor_is_left", "outside"]  # fixtures


def test_without_a_setting_the_runtime_directory_is_used_if_there_is_one(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "RUNTIME_ROOT", outside / "run")
    monkeypatch.setattr(directory, "FALLBACK_ROOT", outside)
    uid = os.geteuid()

    assert directory.directory(create=False) == outside / f"shmbatch-{uid}"
    (outside / "run" / str(uid)).mkdir(parents=True)
    assert directory.directory(create=False) == outside / "run" / str(uid) / "shmbatch"


def test_an_empty_setting_is_no_setting(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBATCH_DIR", "")

    assert directory.directory(create=False).name in ("shmbatch", f"shmbatch-{os.geteuid()}")


def test_it_is_created_for_its_owner_alone_and_only_when_asked(home: Path) -> None:
    assert directory.directory(create=False) == home
    assert not home.exists()

    old = os.umask(0)
    try:
        assert directory.directory(create=True) == home
    finally:
        os.umask(old)

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert directory.directory(create=True) == home
    assert directory.directory(create=False) == home


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o701, 0o730, 0o600, 0o000])
def test_another_mode_is_refused(home: Path, mode: int, create: bool) -> None:
    home.mkdir()
    home.chmod(mode)

    with pytest.raises(ConfigError) as refusal:
        directory.directory(create)

    assert str(refusal.value) == (
        f"directory '{home}' has mode {mode:04o} and must have 0700; "
        f"run `chmod 700 {home}`, or set SHMBATCH_DIR"
    )


@pytest.mark.parametrize("mode", [0o710, 0o711])
def test_one_that_an_executor_has_opened_for_others_is_fine(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)

    assert directory.directory(create=True) == home


def test_a_set_group_bit_that_the_parent_hands_down_is_fine(home: Path) -> None:
    home.parent.chmod(0o2700)

    assert directory.directory(create=True) == home
    assert home.stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("create", [True, False])
def test_a_directory_of_somebody_else_is_refused(
    home: Path, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(access, "ROOT", -1)  # as whom the tests may run

    with pytest.raises(ConfigError) as refusal:
        directory.directory(create)

    remedy = "" if create else f", or trust that user with SHMBATCH_TRUST={owner}"
    assert str(refusal.value) == (
        f"directory '{home}' belongs to uid {owner} and this is uid {owner + 1}; "
        f"set SHMBATCH_DIR to a directory of your own{remedy}"
    )


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("ending", ["", "/"])
@pytest.mark.parametrize("target", ["good", "missing"])
def test_a_symbolic_link_is_refused_wherever_it_leads(
    home: Path, create: bool, ending: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.parent / "good").mkdir(mode=0o700)
    home.symlink_to(home.parent / target)
    monkeypatch.setenv("SHMBATCH_DIR", f"{home}{ending}")

    with pytest.raises(
        ConfigError, match=r"' is a symbolic link; remove it, or set SHMBATCH_DIR$"
    ):
        directory.directory(create)

    assert not (home.parent / "missing").exists()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_refused(home: Path, create: bool) -> None:
    home.write_text("")

    with pytest.raises(
        ConfigError, match=r"' is not a directory; remove it, or set SHMBATCH_DIR$"
    ):
        directory.directory(create)


def test_a_relative_path_is_refused(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBATCH_DIR", "sockets")

    with pytest.raises(ConfigError, match=r"^SHMBATCH_DIR is 'sockets'; use an absolute path$"):
        directory.directory(create=True)


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_a_path_that_cannot_be_created_is_refused(
    outside: Path, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "file").write_text("")
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(outside / parent / "home"))

    with pytest.raises(
        ConfigError, match=r"^cannot use '.*home': .*; set SHMBATCH_DIR to a local"
    ):
        directory.directory(create=True)


def test_a_socket_path_of_107_bytes_can_be_bound_and_one_of_108_is_refused(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two bytes each, so that bytes and characters differ.
    room = 107 - len(os.fsencode(outside / "d")) - len("/aa.sock")
    home = outside / ("d" + "é" * (room // 2) + "x" * (room % 2))
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(home))
    directory.directory(create=True)

    path = directory.socket_path("aa")
    assert len(os.fsencode(path)) == 107
    serve(path).close()
    with pytest.raises(ConfigError) as refusal:
        directory.socket_path("aaa")

    assert str(refusal.value) == (
        f"socket path '{home}/aaa.sock' has 108 bytes and at most 107 fit; "
        f"set SHMBATCH_DIR to a shorter path, or choose a shorter name"
    )
    with pytest.raises(ConfigError, match=" has 108 bytes "):
        NameLock.claim("aaa")
    assert entries(home) == ["aa.sock"]


def test_a_socket_path_does_not_leave_the_directory(home: Path) -> None:
    for app in ("..", "../x", "a/b", ""):
        with pytest.raises(ConfigError, match=r"^app name is "):
            directory.socket_path(app)
