"""One live owner per name, whoever comes, dies or sweeps at the same time."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmbatch
from shmbatch.errors import ConfigError, NameTaken
from shmbatch.protocol import names
from shmbatch.protocol.names import Address, NameLock


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose path is short, with no setting that leads elsewhere."""
    for variable in ("SHMBATCH_DIR", "SHMBATCH_NAMES"):
        monkeypatch.setenv(variable, "")  # so that it is put back, whatever a test makes of it
        monkeypatch.delenv(variable)
    with tempfile.TemporaryDirectory(prefix="shmbatch-test-") as path:
        yield Path(path)


@pytest.fixture
def home(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of sockets, here and in all children; not created yet."""
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(outside / "home"))
    return outside / "home"


def entries(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir())


def serve(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.fspath(path))
    listener.listen()
    return listener


class Other:
    """Another process that runs *script* and speaks in lines."""

    def __init__(self, script: str, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(shmbatch.__path__[0]).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).rstrip("\n")

    def finish(self) -> str:
        """Let it go on, and return the rest of what it says."""
        said, _ = self.process.communicate("")
        assert self.process.returncode == 0
        return str(said).rstrip("\n")

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()


# Claims a name, says so, and holds it until its input ends.
OWNER = """
import socket, sys
from shmbatch.errors import NameTaken
from shmbatch.protocol.names import NameLock
try:
    lock = NameLock.claim(sys.argv[1])
except NameTaken as error:
    sys.exit(print(error))
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(str(lock.socket_path))
sock.listen()
print("claimed", flush=True)
sys.stdin.read()
lock.close()
"""


def taken_by(pid: int, app: str = "sums") -> str:
    return (
        f"name '{app}' is already served by process {pid}; "
        f"stop it with `shmbatch stop {app}` or choose another --name"
    )


# What a name is.


@pytest.mark.parametrize("text", ["a", "Z9", "_", "-", "run-1a2b", "x" * 40])
def test_letters_digits_and_two_signs_make_a_name(text: str) -> None:
    assert names.check_name(text, "name") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 41,
        "a.b",
        "a/b",
        "..",
        "a b",
        "a\n",
        "\na",
        "naïve",
        "\u0661",
        "a\0",
        "a=b",
        "a,b",
    ],
)
def test_anything_else_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        names.check_name(text, "app name")

    assert str(refusal.value) == (
        f"app name is {text!r}; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
    )


@pytest.mark.parametrize("thing", [None, 5, b"sums", ["sums"], "x" * 1_000_000])
def test_what_a_peer_may_send_instead_of_a_name_is_refused_in_few_words(thing: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        names.check_name(thing, "app name")

    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("text", "app", "function"),
    [("sums.batch_add", "sums", "batch_add"), ("sums.Model.run", "sums", "Model.run")],
)
def test_an_address_is_an_app_and_a_function(text: str, app: str, function: str) -> None:
    address = Address.parse(text)

    assert address == Address(app, function)
    assert str(address) == text
    assert pickle.loads(pickle.dumps(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sums", "address 'sums' names no function; write 'app.function' or 'app.Class.method'"),
        ("", "address '' names no function; write 'app.function' or 'app.Class.method'"),
        ("sums.", "function name is ''; a name is "),
        (".add", "app name is ''; a name is "),
        ("sums..add", "class name is ''; a name is "),
        ("sums.Model.", "function name is ''; a name is "),
        ("sums.a.b.c", "class name is 'a.b'; a name is "),
        ("../x.add", "app name is ''; a name is "),
        ("sums.a/b", "function name is 'a/b'; a name is "),
    ],
)
def test_other_addresses_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Address.parse(text)

    assert str(refusal.value).startswith(message)


# Private names.


def test_an_app_means_itself_until_a_private_name_is_advertised(home: Path) -> None:
    assert names.resolve("sums") == "sums"
    names.advertise("sums", "run-1")
    names.advertise("other", "run-2")
    names.advertise("sums", "run-3")

    assert [names.resolve(app) for app in ("sums", "other", "third")] == [
        "run-3",
        "run-2",
        "third",
    ]
    with Other("from shmbatch.protocol.names import resolve; print(resolve('sums'))") as child:
        assert child.finish() == "run-3"


def test_a_withdrawn_name_leaves_no_trace(home: Path) -> None:
    names.advertise("sums", "run-1")
    names.advertise("other", "run-2")

    names.withdraw("sums")
    names.withdraw("sums")

    assert names.resolve("sums") == "sums"
    assert os.environ["SHMBATCH_NAMES"] == "other=run-2"
    names.withdraw("other")
    assert "SHMBATCH_NAMES" not in os.environ


@pytest.mark.parametrize("text", ["sums", "sums=", "=run-1", "sums=a=b", "sums=../x", "a=b,c"])
def test_a_malformed_setting_is_refused(
    text: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_NAMES", text)

    with pytest.raises(ConfigError, match=r"^(app|private) name .*in SHMBATCH_NAMES is '.*'; a "):
        names.resolve("sums")


def test_only_names_are_resolved_and_advertised(home: Path) -> None:
    for refused in (
        lambda: names.resolve("a/b"),
        lambda: names.advertise("a,b", "run-1"),
        lambda: names.advertise("sums", "run-1,other=x"),
    ):
        with pytest.raises(ConfigError):
            refused()
    assert "SHMBATCH_NAMES" not in os.environ


# The directory.


def test_without_a_setting_the_runtime_directory_is_used_if_there_is_one(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "RUNTIME_ROOT", outside / "run")
    monkeypatch.setattr(names, "FALLBACK_ROOT", outside)
    uid = os.geteuid()

    assert names.directory(create=False) == outside / f"shmbatch-{uid}"
    (outside / "run" / str(uid)).mkdir(parents=True)
    assert names.directory(create=False) == outside / "run" / str(uid) / "shmbatch"


def test_an_empty_setting_is_no_setting(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBATCH_DIR", "")

    assert names.directory(create=False).name in ("shmbatch", f"shmbatch-{os.geteuid()}")


def test_it_is_created_for_its_owner_alone_and_only_when_asked(home: Path) -> None:
    assert names.directory(create=False) == home
    assert not home.exists()

    old = os.umask(0)
    try:
        assert names.directory(create=True) == home
    finally:
        os.umask(old)

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert names.directory(create=True) == home
    assert names.directory(create=False) == home


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o701, 0o710, 0o600, 0o000])
def test_another_mode_is_refused(home: Path, mode: int, create: bool) -> None:
    home.mkdir()
    home.chmod(mode)

    with pytest.raises(ConfigError) as refusal:
        names.directory(create)

    assert str(refusal.value) == (
        f"directory '{home}' has mode {mode:04o} and must have 0700; "
        f"run `chmod 700 {home}`, or set SHMBATCH_DIR"
    )


def test_a_set_group_bit_that_the_parent_hands_down_is_fine(home: Path) -> None:
    home.parent.chmod(0o2700)

    assert names.directory(create=True) == home
    assert home.stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("create", [True, False])
def test_a_directory_of_somebody_else_is_refused(
    home: Path, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(ConfigError) as refusal:
        names.directory(create)

    assert str(refusal.value) == (
        f"directory '{home}' belongs to uid {owner} and this is uid {owner + 1}; "
        f"set SHMBATCH_DIR to a directory of your own"
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
        names.directory(create)

    assert not (home.parent / "missing").exists()


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_refused(home: Path, create: bool) -> None:
    home.write_text("")

    with pytest.raises(
        ConfigError, match=r"' is not a directory; remove it, or set SHMBATCH_DIR$"
    ):
        names.directory(create)


def test_a_relative_path_is_refused(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBATCH_DIR", "sockets")

    with pytest.raises(ConfigError, match=r"^SHMBATCH_DIR is 'sockets'; use an absolute path$"):
        names.directory(create=True)


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_a_path_that_cannot_be_created_is_refused(
    outside: Path, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "file").write_text("")
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(outside / parent / "home"))

    with pytest.raises(
        ConfigError, match=r"^cannot use '.*home': .*; set SHMBATCH_DIR to a local"
    ):
        names.directory(create=True)


def test_a_socket_path_of_107_bytes_can_be_bound_and_one_of_108_is_refused(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two bytes each, so that bytes and characters differ.
    room = 107 - len(os.fsencode(outside / "d")) - len("/aa.sock")
    home = outside / ("d" + "é" * (room // 2) + "x" * (room % 2))
    monkeypatch.setenv("SHMBATCH_DIR", os.fspath(home))
    names.directory(create=True)

    path = names.socket_path("aa")
    assert len(os.fsencode(path)) == 107
    serve(path).close()
    with pytest.raises(ConfigError) as refusal:
        names.socket_path("aaa")

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
            names.socket_path(app)


# One owner.


def test_a_claimed_name_has_a_lock_file_with_the_pid_that_cleaners_leave_alone(home: Path) -> None:
    with NameLock.claim("sums") as lock:
        assert lock.socket_path == names.socket_path("sums") == home / "sums.sock"
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
        for directory in (home, alias / "home"):
            os.environ["SHMBATCH_DIR"] = os.fspath(directory)
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
    remove = names._remove

    def interrupted(path: Path) -> None:
        lock.close()
        remove(path)

    monkeypatch.setattr(names, "_remove", interrupted)

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
from shmbatch.protocol import names
lock = names.NameLock.claim("sums")
child = os.fork()
if not child:
    lock.close()
    try:
        names.NameLock.claim("sums")
    except NameTaken as error:
        refused = f"process {os.getppid()};" in str(error)
    with names.NameLock.claim("mine"):
        os._exit(0 if refused and names.sweep() == [] else 1)
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
    assert names.sweep() == ["mine"]
    assert entries(home) == []


def test_a_fork_amid_a_claim_leaves_the_child_able_to_claim(home: Path) -> None:
    script = """
import os, threading
from shmbatch.protocol import names
held, done = threading.Event(), threading.Event()
def hold():
    with names._mutex:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if not child:
    names.NameLock.claim("sums").close()
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

    assert names.sweep() == []
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
from shmbatch.protocol.names import NameLock
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
from shmbatch.protocol import names
mark = sys.argv[1]
owned = 0
while owned < 60:
    try:
        lock = names.NameLock.claim("sums")
    except NameTaken as error:
        assert sys.argv[2] not in str(error), error
        continue
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    os.unlink(mark)
    owned += 1
    if owned % 3:
        lock.close()
    else:  # what the kernel does at its death
        names._held.clear()
        os.close(lock._fd)
print("owned", owned)
"""
    sweeper = """
import sys, threading
from shmbatch.protocol import names
ended = threading.Thread(target=sys.stdin.read)
ended.start()
while ended.is_alive():
    names.sweep()
"""
    with Other(sweeper) as sweeping:
        owners = [
            Other(owner, os.fspath(home.parent / "mark"), f"process {sweeping.pid};")
            for _ in range(3)
        ]
        assert [other.finish() for other in owners] == ["owned 60"] * 3
        sweeping.finish()
    names.sweep()
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
from shmbatch.protocol import names
remove = names._remove
def remove_when_told(path):
    print("has it", flush=True)
    sys.stdin.read()
    remove(path)
names._remove = remove_when_told
print(names.sweep())
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

        assert names.sweep() == ["dead", "stale"]

        kept = ["live.lock", "live.sock", "not a name.lock", "notes.txt", "orphan.sock"]
        assert entries(home) == sorted([*kept, "ours.lock"])
        with Other(OWNER, "ours") as second:
            assert second.finish() == taken_by(os.getpid(), "ours")
        with Other(OWNER, "live") as second:
            assert second.finish() == taken_by(live.pid, "live")
        assert names.sweep() == []
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

    assert names.sweep() == []
    assert entries(home) == ["sums.lock", "sums.sock"]
    others[0].finish()


def test_sweeping_an_absent_directory_does_nothing(home: Path) -> None:
    assert names.sweep() == []
    assert not home.exists()


def test_sweeping_a_directory_of_somebody_else_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(mode=0o700)
    (home / "sums.lock").write_text("1\n")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(ConfigError, match=" belongs to uid "):
        names.sweep()

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
            names.sweep()

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(lock.app for lock in locks) == sorted(f"name-{n}" for n in range(50))
    for lock in locks:
        lock.close()
    assert entries(home) == []
