"""Who may come to an executor beside its own user, and which executors a producer believes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmbatch
from shmbatch import errors
from shmbatch.cli.admission import Admission
from shmbatch.protocol import access, directory
from shmbatch.protocol.access import Access
from shmbatch.protocol.control import Credentials
from tests import processes
from tests.processes import Program

pytestmark = pytest.mark.no_transport  # transport posix is for one user

# Numbers that no user or group of a machine has.
SOMEBODY, ANYBODY = 64_123, 64_124
GROUP, OTHER_GROUP = 64_200, 64_201

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="to be another user takes root; run the tests as root"
)

# Becomes one user after another, as uid:gid:groups, and says what each gets. What it imports it
# has to have before: the user who runs the tests may keep Python to itself.
VISITOR = """
import os, sys, shmbatch
from shmbatch.protocol import access
shmbatch.connect("visited.triple").remote(1)
shmbatch.statistics("visited")
def tried(what):
    try:
        return what()
    except shmbatch.errors.ShmbatchError as error:
        return f"{type(error).__name__}: {error}"
for each in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    uid, gid, *groups = map(int, each.split(":"))
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    print(tried(lambda: shmbatch.connect("visited.double", timeout=0).remote(21)), flush=True)
    counted = tried(lambda: shmbatch.statistics("visited")["functions"]["double"])
    print(counted if isinstance(counted, str) else counted["max_batch_size"], flush=True)
    os._exit(0)
"""
# Asks for a stop, as a client that is not ours would.
STOPPER = """
import os, sys
from tests.hostile.raw import Raw
uid = int(sys.argv[1])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
with Raw("visited") as raw:
    raw.send({"kind": sys.argv[2]})
    print(raw.said()[0]["message"], flush=True)
"""

# Has a function say whether its inputs are in memory that is shared, as two users.
SHOWER = """
import os, sys, numpy as np, shmbatch
uid, row = int(sys.argv[1]), np.ones(1000, np.float32)
print(shmbatch.connect("visited.keeps", arrays="numpy").remote(row, row), flush=True)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
print(shmbatch.connect("visited.keeps", arrays="numpy", wait="park").remote(row, row), flush=True)
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of sockets in a folder that others can reach."""
    folder = Path(tempfile.mkdtemp(prefix="shmb-access-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("SHMBATCH_DIR", str(folder / "d"))
    yield folder / "d"
    shutil.rmtree(folder)


def visit(*visitors: tuple[int, ...], code: str = VISITOR, trust: str = "") -> list[list[str]]:
    """Return what each visitor, as (uid, gid, further groups), gets for a call and a question."""
    told = [":".join(map(str, each)) for each in visitors]
    with Program(code, *told, SHMBATCH_TRUST=trust) as program:
        return [[program.line(), program.line()] for _ in visitors]


# ---- over real processes ---------------------------------------------------------------------


@needs_root
def test_a_user_who_is_let_in_calls_and_asks(home: Path) -> None:
    allowed = ("--allow-uid", str(SOMEBODY), "--allow-gid", str(GROUP))
    with processes.served("crash.py", "visited", *allowed) as executor:
        *let_in, kept_out = visit(
            (SOMEBODY, SOMEBODY),
            (ANYBODY, GROUP),
            (ANYBODY, ANYBODY, GROUP),  # a group beside its first one
            (ANYBODY, ANYBODY, OTHER_GROUP),
        )
        assert let_in == [["42", "8"]] * 3
        for line in kept_out:
            assert line.startswith("HandshakeError: the executor of 'visited' does not serve uid")
        admission = shmbatch.statistics("visited")["admission"]
        assert (admission["refused"], admission["expelled"]) == (2, 0)
        assert executor.connect("double").remote(1) == 2


@needs_root
@pytest.mark.slow
def test_a_user_who_is_let_in_cannot_change_what_a_function_looks_at(home: Path) -> None:
    with (
        processes.served("values.py", "visited", "--allow-uid", str(SOMEBODY)),
        Program(SHOWER, SOMEBODY) as shower,
    ):
        assert [shower.line(), shower.line()] == ["shared shared", "private private"]


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stop", "reload"])
def test_a_user_who_is_let_in_ends_nothing(home: Path, kind: str) -> None:
    with processes.served("crash.py", "visited", "--allow-uid", str(SOMEBODY)) as executor:
        with Program(STOPPER, SOMEBODY, kind) as stopper:
            refusal = stopper.line()
        assert "is for uid 0 to ask for" in refusal
        assert executor.connect("double").remote(1) == 2


@needs_root
@pytest.mark.slow
def test_one_group_has_the_socket_and_others_do_not_even_connect(home: Path) -> None:
    with processes.served("crash.py", "visited", "--allow-gid", str(GROUP)):
        assert home.stat().st_mode & 0o777 == 0o710
        assert (home / "visited.sock").stat().st_mode & 0o777 == 0o660
        member, other = visit((ANYBODY, GROUP), (ANYBODY, ANYBODY))
        assert member == ["42", "8"]
        for line in other:
            assert line.startswith(("HandshakeError", "ConfigError")), line


@needs_root
@pytest.mark.slow
def test_without_trust_an_executor_of_another_user_gets_no_input(home: Path) -> None:
    """It is root's here, whom everybody has to trust; so for these visitors root is another."""
    doubtful = VISITOR.replace("\nfor each", "\naccess.ROOT = -1\nfor each")
    visitor = (SOMEBODY, SOMEBODY)
    with processes.served("crash.py", "visited", "--allow-uid", str(SOMEBODY)):
        for trust, answer in ((f"{ANYBODY}", "ConfigError: directory "), (f"{ANYBODY}, 0", "42")):
            ((line, _),) = visit(visitor, code=doubtful, trust=trust)
            assert line.startswith(answer)


# ---- what is refused at the start ------------------------------------------------------------


@pytest.mark.parametrize(
    ("uids", "gids", "transport", "reason"),
    [
        (("nobody-of-that-name",), (), "linux", "--allow-uid names user 'nobody-of-that-name'"),
        (("",), (), "linux", "--allow-uid names user ''"),
        ((), ("4294967295",), "linux", "--allow-gid names group '4294967295'"),
        (("1",), (), "posix", "do not go with transport posix"),
    ],
)
def test_a_start_that_lets_in_whom_it_cannot_is_refused(
    uids: tuple[str, ...], gids: tuple[str, ...], transport: str, reason: str
) -> None:
    with pytest.raises(errors.ConfigError, match=reason):
        Admission(uids, gids, None, None, None).check(transport)


def test_a_directory_that_nobody_else_can_reach_is_refused(home: Path) -> None:
    home.parent.chmod(0o700)
    home.mkdir(mode=0o700)
    with pytest.raises(errors.ConfigError, match=r"let nobody in: .* mode 0700; set SHMBATCH"):
        Access(frozenset({SOMEBODY})).open_directory(home)


# ---- how far directory and socket are opened --------------------------------------------------


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@needs_root
def test_the_directory_is_opened_as_far_as_needed_and_stays_open(home: Path) -> None:
    home.mkdir(mode=0o700)
    Access().open_directory(home)
    assert mode(home) == 0o700
    for gid, after in ((GROUP, 0o710), (GROUP, 0o710), (OTHER_GROUP, 0o711), (GROUP, 0o711)):
        Access(gids=frozenset({gid})).open_directory(home)
        assert (mode(home), home.stat().st_gid) == (after, GROUP)
    assert directory.directory(create=True) == home


@needs_root
@pytest.mark.parametrize(
    ("who", "directory_mode", "socket_mode"),
    [
        (Access(), 0o700, 0o600),
        (Access(gids=frozenset({GROUP})), 0o710, 0o660),
        (Access(gids=frozenset({GROUP, OTHER_GROUP})), 0o711, 0o666),
        (Access(uids=frozenset({SOMEBODY})), 0o711, 0o666),
        (Access(frozenset({SOMEBODY}), frozenset({GROUP})), 0o711, 0o666),
    ],
)
def test_permissions_are_as_coarse_as_they_have_to_be(
    home: Path, who: Access, directory_mode: int, socket_mode: int
) -> None:
    home.mkdir(mode=0o700)
    who.open_directory(home)
    path = home / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        who.open_socket(path)
    assert (mode(home), mode(path)) == (directory_mode, socket_mode)


def test_a_group_that_cannot_be_given_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chown(path: object, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    home.mkdir(mode=0o700)
    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(errors.ConfigError, match=r"to gid 64200, as --allow-gid wants: Operation"):
        Access(gids=frozenset({GROUP})).open_directory(home)


# ---- who is let in -----------------------------------------------------------------------------


def test_who_is_let_in_is_decided_by_user_and_by_all_groups() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine = os.geteuid()
    with ours, theirs:
        nobody = Access()
        assert nobody.admits(ours, Credentials(1, mine, 5))
        assert not nobody.admits(ours, Credentials(1, mine + 1, 5))
        some = Access(frozenset({SOMEBODY}), frozenset({GROUP}))
        assert some.admits(ours, Credentials(1, SOMEBODY, 5))
        assert some.admits(ours, Credentials(1, ANYBODY, GROUP))
        assert not some.admits(ours, Credentials(1, ANYBODY, SOMEBODY))
        assert not some.admits(ours, Credentials(1, GROUP, ANYBODY))


# ---- whom a producer believes ------------------------------------------------------------------


def test_a_producer_believes_its_own_user_and_root_and_whom_it_was_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = os.geteuid()
    assert access.is_trusted(mine)
    assert access.is_trusted(0)
    assert not access.is_trusted(SOMEBODY)
    monkeypatch.setenv("SHMBATCH_TRUST", f" {SOMEBODY} ,,root")
    assert access.is_trusted(SOMEBODY)
    assert not access.is_trusted(ANYBODY)
    monkeypatch.setenv("SHMBATCH_TRUST", "nobody-of-that-name")
    with pytest.raises(
        errors.ConfigError, match="SHMBATCH_TRUST names user 'nobody-of-that-name'"
    ):
        access.is_trusted(SOMEBODY)


@needs_root
def test_a_squatters_directory_is_not_looked_into(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o711)
    os.chown(home, SOMEBODY, SOMEBODY)
    with pytest.raises(errors.ConfigError, match=f"belongs to uid {SOMEBODY} and this is uid 0"):
        directory.socket_path("sums")
    monkeypatch.setenv("SHMBATCH_TRUST", str(SOMEBODY))
    assert directory.socket_path("sums") == home / "sums.sock"
    with pytest.raises(errors.ConfigError, match=r"set SHMBATCH_DIR to a directory of your own$"):
        directory.directory(create=True)  # to serve there would be another thing
    home.chmod(0o1777)
    with pytest.raises(errors.ConfigError, match="has mode 0777, so that others than uid 64123"):
        directory.socket_path("sums")
