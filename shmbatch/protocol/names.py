"""Who serves a name: where its socket is, which process owns it, and what a name may look like.

Every user has one directory, and every served name has two entries in it::

    <directory>/              SHMBATCH_DIR, /run/user/<uid>/shmbatch or /tmp/shmbatch-<uid>; 0700
        sums.lock             locked by its owner for as long as that lives; holds the owner's pid
        sums.sock             where producers connect; the owner binds it

The locks are POSIX record locks: the kernel frees them when the owner dies, however it dies, and
no forked child inherits them. Two bytes of the lock file have a meaning::

    byte   name    locked by
    ----   -----   ---------------------------------------------------------------------
       0   CLAIM   the owner, from the moment it asks for the name
       1   OWN     the owner, from the moment it has it; or a sweeper, while it removes

They are two so that a sweeper is never mistaken for an owner: who finds CLAIM taken is refused,
who finds OWN taken while holding CLAIM waits for a sweeper to finish.

I1  The two entries of a name are only removed by a process that holds its OWN.
I2  A process owns a name while it holds OWN of the file that *is* at ``<name>.lock``. So the path
    is looked at again after locking: between open and lock the file may have been removed.
I3  A process that owns a name never opens that lock file again: closing any of its descriptors
    would free the locks. Hence the table of names held by this process.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import ConfigError, NameTaken

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,40}")
SOCKET_PATH_LIMIT = 107  # bytes; sun_path of sockaddr_un has 108, the last of them zero

# `run` serves an app under a private name, and tells its children so: "sums=run-1a2b,other=..."
_PRIVATE_NAMES = "SHMBATCH_NAMES"

SHARED_MEMORY_PREFIX = "shmbatch-"  # of what transport `posix` names, followed by a pid

RUNTIME_ROOT = Path("/run/user")
FALLBACK_ROOT = Path("/tmp")
_SHARED_MEMORY = Path("/dev/shm")

CLAIM, OWN = 0, 1
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
# The sticky bit tells systemd-tmpfiles to leave an old file alone; without it a lock held for
# ten days in /tmp would lose its name. Source: XDG Base Directory Specification, runtime files.
_LOCK_MODE = 0o1600
_FLOCK = "hhqqi0q"  # struct flock: type, whence, start, length, pid; padded at its end

_mutex = threading.RLock()  # re-entrant, since a signal handler may close a lock being closed
_held: set[Path] = set()  # I3


def _forget_after_fork() -> None:
    """In a forked child: nothing is held, and no other thread is left to leave the mutex."""
    global _mutex
    _mutex = threading.RLock()
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def check_name(text: str, what: str) -> str:
    """Return *text* if it may be (a part of) a name, else raise `ConfigError` about *what*."""
    if not isinstance(text, str) or not NAME_PATTERN.fullmatch(text):
        raise ConfigError(
            f"{what} is {str(text)[:60]!r}; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
        )
    return text


@dataclass(frozen=True, slots=True)
class Address:
    """What a producer connects to: the app's name, and ``function`` or ``Class.method``.

    Raises:
        ConfigError: a part is missing, is one too many, or is not a name.
    """

    app: str
    function: str

    def __post_init__(self) -> None:
        check_name(self.app, "app name")
        class_name, dot, function = self.function.rpartition(".")
        if dot:
            check_name(class_name, "class name")
        check_name(function, "function name")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``sums.batch_add`` or ``sums.Class.method``."""
        app, dot, function = text.partition(".")
        if not dot:
            raise ConfigError(
                f"address {text[:60]!r} names no function; "
                f"write 'app.function' or 'app.Class.method'"
            )
        return cls(app, function)

    def __str__(self) -> str:
        return f"{self.app}.{self.function}"


def resolve(app: str) -> str:
    """Return the private name that *app* has in this process, else *app* itself.

    Raises:
        ConfigError: *app* is not a name, or SHMBATCH_NAMES is malformed.
    """
    return _read_private_names().get(check_name(app, "app name"), app)


def advertise(app: str, private: str) -> None:
    """Let *app* mean *private* here and in children started from now on."""
    check_name(app, "app name")
    check_name(private, "private name")
    with _mutex:
        _store_private_names({**_read_private_names(), app: private})


def withdraw(app: str) -> None:
    """Let *app* mean itself again; does nothing if it does already."""
    with _mutex:
        names = _read_private_names()
        if names.pop(app, None):
            _store_private_names(names)


def _read_private_names() -> dict[str, str]:
    names = {}
    for entry in filter(None, os.environ.get(_PRIVATE_NAMES, "").split(",")):
        app, _, private = entry.partition("=")
        check_name(app, f"app name in {_PRIVATE_NAMES}")
        names[app] = check_name(private, f"private name of {app!r} in {_PRIVATE_NAMES}")
    return names


def _store_private_names(names: dict[str, str]) -> None:
    if names:
        os.environ[_PRIVATE_NAMES] = ",".join(f"{app}={names[app]}" for app in names)
    else:
        os.environ.pop(_PRIVATE_NAMES, None)


def directory(create: bool) -> Path:
    """Return the directory of sockets, made sure to be this user's alone.

    Without *create* it may not exist: then nobody serves anything, and there is nothing to check.

    Raises:
        ConfigError: it is a symbolic link or no directory, belongs to another user, has a mode
            other than 0700, or cannot be created.
    """
    path = _chosen_directory()
    try:
        if create:
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                pass  # by whom, and whether it is a directory, is looked at below
        found = path.lstat()
    except OSError as error:
        if not create and isinstance(error, FileNotFoundError):
            return path
        _refuse(path, error)
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise ConfigError(f"'{path}' is {kind}; remove it, or set SHMBATCH_DIR")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"directory '{path}' belongs to uid {found.st_uid} and this is uid {os.geteuid()}; "
            f"set SHMBATCH_DIR to a directory of your own"
        )
    # Other bits do not matter; set-gid, for one, may be inherited from the parent.
    if found.st_mode & 0o777 != 0o700:
        raise ConfigError(
            f"directory '{path}' has mode {found.st_mode & 0o777:04o} and must have 0700; "
            f"run `chmod 700 {path}`, or set SHMBATCH_DIR"
        )
    return path


def _chosen_directory() -> Path:
    configured = os.environ.get("SHMBATCH_DIR")
    if configured:
        path = Path(configured)
        if not path.is_absolute():
            # Executor and producers rarely share a working directory.
            raise ConfigError(f"SHMBATCH_DIR is {configured!r}; use an absolute path")
        return path
    runtime = RUNTIME_ROOT / str(os.geteuid())
    if runtime.is_dir():
        return runtime / "shmbatch"
    return FALLBACK_ROOT / f"shmbatch-{os.geteuid()}"


def socket_path(app: str) -> Path:
    """Return where *app*'s executor listens; whether one does is for `connect` to find out.

    Raises:
        ConfigError: *app* is not a name, the path is too long for a socket, or as `directory`.
    """
    path = directory(create=False) / f"{check_name(app, 'app name')}.sock"
    nbytes = len(os.fsencode(path))
    if nbytes > SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"socket path '{path}' has {nbytes} bytes and at most {SOCKET_PATH_LIMIT} fit; "
            f"set SHMBATCH_DIR to a shorter path, or choose a shorter name"
        )
    return path


class NameLock:
    """The right to serve a name, held by this process until `close` or until it dies.

    A forked child has a copy of this object and none of the right; its `close` does no harm.
    """

    def __init__(self, app: str, path: Path, fd: int) -> None:
        """Use `claim`."""
        self.app = app
        self.socket_path = path.with_suffix(".sock")
        self._path = path
        self._fd = fd
        self._pid = os.getpid()

    @classmethod
    def claim(cls, app: str) -> NameLock:
        """Take *app*, or raise; of several processes at once, one gets it.

        Afterwards no socket is at `socket_path`, and none but this process may bind one. Waits
        for a sweeper that is at this name, never for another owner. Not inherited by a fork:
        claim in the process that will serve.

        Raises:
            NameTaken: a live process, which may be this one, has the name.
            ConfigError: *app* is not a name, or the directory cannot be used.
        """
        directory(create=True)
        path = socket_path(app).with_suffix(".lock")
        with _mutex:
            if _key(path) in _held:
                raise _taken(app, os.getpid())
            try:
                lock = cls(app, path, _own(app, path))
            except OSError as error:
                _refuse(path, error)
            _held.add(_key(path))
        return lock

    def close(self) -> None:
        """Give the name back and remove both entries; a second call does nothing."""
        with _mutex:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            try:
                # I1, I2: where the file is no longer ours, somebody else's socket is there.
                if self._pid == os.getpid():
                    _held.discard(_key(self._path))
                    if _is_at(fd, self._path):
                        _remove(self._path)
            finally:
                os.close(fd)

    def __enter__(self) -> NameLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def sweep() -> list[str]:
    """Remove what dead owners left in the directory, and return their names.

    Leaves alone what it does not know or cannot remove. Any process may call it at any time.

    Raises:
        ConfigError: as `directory`.
    """
    removed = []
    with _mutex:
        for path in sorted(directory(create=False).glob("*.lock")):
            if NAME_PATTERN.fullmatch(path.stem) and _key(path) not in _held:
                try:
                    if _remove_if_stale(path):
                        removed.append(path.stem)
                except OSError:
                    pass  # swept by another just now, or not a file that we would make
    return removed


def _own(app: str, path: Path) -> int:
    """Return a descriptor of the file at *path*, with both bytes locked."""
    while True:
        fd = os.open(path, _OPEN_FLAGS | os.O_CREAT, _LOCK_MODE)
        try:
            if not _try_lock(fd, CLAIM):
                raise _taken(app, _owner(fd))
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, OWN)
            if _is_at(fd, path):
                path.with_suffix(".sock").unlink(missing_ok=True)  # I1; of a dead owner
                _remove_shared_memory(fd)
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # I2; whoever removed the file has made progress, so this ends


def _remove_if_stale(path: Path) -> bool:
    fd = os.open(path, _OPEN_FLAGS)
    try:
        if not _try_lock(fd, OWN) or not _is_at(fd, path):
            return False
        _remove_shared_memory(fd)
        _remove(path)
        return True
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove both entries, the socket first: a socket without a lock would never be swept."""
    path.with_suffix(".sock").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _remove_shared_memory(fd: int) -> None:
    """Remove what the dead owner in this lock file has left in /dev/shm (transport `posix`)."""
    pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
    # A live process of that number is another one, and its names are its own.
    if pid.isdecimal() and not _is_alive(pid):
        for kind in ("", "sem."):  # the latter is how the C library names what sem_open makes
            for path in _SHARED_MEMORY.glob(f"{kind}{SHARED_MEMORY_PREFIX}{pid}-*"):
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    pass  # of another user


def _is_alive(pid: str) -> bool:
    try:
        status = Path("/proc", pid, "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")  # dead, but not yet reaped


def _try_lock(fd: int, byte: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _owner(fd: int) -> int | None:
    """Ask the kernel who holds CLAIM; the pid in the file may still be the last owner's."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, CLAIM, 1, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    # No pid: it let go this instant, or lives in a process namespace that we cannot see.
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def _taken(app: str, pid: int | None) -> NameTaken:
    owner = f"process {pid}" if pid else "another process"
    return NameTaken(
        f"name {app!r} is already served by {owner}; "
        f"stop it with `shmbatch stop {app}` or choose another --name"
    )


def _key(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _refuse(path: Path, error: OSError) -> NoReturn:
    raise ConfigError(
        f"cannot use '{path}': {error.strerror}; set SHMBATCH_DIR to a local directory of your own"
    ) from error
