"""Which process owns a name: its lock, what it says there of itself, what the dead have left.

A lock file's lines are the owner's pid and, once it has made a note: its state, since when it has
the name (nanoseconds of the monotonic clock), and the file that it serves. `owners` reads them.

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
import struct
import threading
from pathlib import Path

from ..errors import NameTaken
from . import descriptors
from .clock import now_ns
from .directory import directory, is_at, open_lock, refuse, socket_path
from .names import NAME_PATTERN

# What an owner may note about itself.
LOADING, SERVING, DRAINING = "loading", "serving", "draining"

SHARED_MEMORY_PREFIX = "shmbatch-"  # of what transport `posix` names, followed by a pid

_SHARED_MEMORY = Path("/dev/shm")

CLAIM, OWN = 0, 1
_NOTE_LIMIT = 8192  # bytes; a path has at most 4096
_FLOCK = "hhqqi0q"  # struct flock: type, whence, start, length, pid; padded at its end

_mutex = threading.RLock()  # re-entrant, since a signal handler may close a lock being closed
_held: dict[Path, NameLock] = {}  # I3


def _forget_after_fork() -> None:
    """In a forked child: nothing is held, and no other thread is left to leave the mutex."""
    global _mutex
    _mutex = threading.RLock()
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


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
        self._since_ns = now_ns()

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
        path = socket_path(app).with_suffix(".lock")
        directory(create=True)
        with _mutex:
            if _key(path) in _held:
                raise _taken(app, os.getpid())
            try:
                lock = cls(app, path, _own(app, path))
            except OSError as error:
                refuse(path, error)
            _held[_key(path)] = lock
        return lock

    def note(self, state: str, file: Path | None = None) -> None:
        """Write into the lock file what this owner is doing, for `owners` to read.

        One system call, one page: a reader sees this note or the one before. No state that may
        follow another is shorter, so of that one nothing is left.
        """
        with _mutex:
            if self._fd >= 0:
                lines = (str(self._pid), state, str(self._since_ns), os.fspath(file or ""))
                os.pwrite(self._fd, os.fsencode("\n".join(lines)), 0)

    def close(self) -> None:
        """Give the name back and remove both entries; a second call does nothing."""
        with _mutex:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            try:
                # I1, I2: where the file is no longer ours, somebody else's socket is there.
                if self._pid == os.getpid():
                    _held.pop(_key(self._path), None)
                    if is_at(fd, self._path):
                        _remove(self._path)
            finally:
                os.close(fd)

    def __enter__(self) -> NameLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def look(app: str) -> tuple[int | None, bytes] | None:
    """Return the pid of *app*'s live owner and what its lock file says; None if nobody owns it.

    The pid is what the kernel says, None for an owner in a process namespace that we cannot see.
    As long as an owner has made no note of its own, the text may be an earlier owner's.

    Raises:
        ConfigError: as `socket_path`, or the lock file cannot be opened.
    """
    path = socket_path(app).with_suffix(".lock")
    with _mutex:
        lock = _held.get(_key(path))
        if lock is not None:  # I3
            return os.getpid(), os.pread(lock._fd, _NOTE_LIMIT, 0)
        try:
            fd = open_lock(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            refuse(path, error)
        try:
            is_owned, pid = _claimed(fd)
            if not is_owned or not is_at(fd, path):  # I2
                return None
            return pid, os.pread(fd, _NOTE_LIMIT, 0)
        finally:
            os.close(fd)


@descriptors.needed("look for names")
def locked() -> list[str]:
    """Return every name that has a lock file, sorted; whether somebody lives there is for `look`.

    Raises:
        ConfigError: as `directory`.
    """
    stems = (path.stem for path in directory(create=False).glob("*.lock"))
    return sorted(stem for stem in stems if NAME_PATTERN.fullmatch(stem))


@descriptors.needed("look for what the dead have left")
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
        for path in directory(create=False).glob("*.starting"):
            if NAME_PATTERN.fullmatch(path.stem):
                try:
                    _remove_if_abandoned(path)
                except OSError:
                    pass
    return removed


def _own(app: str, path: Path) -> int:
    """Return a descriptor of the file at *path*, with both bytes locked."""
    while True:
        fd = open_lock(path, create=True)
        try:
            if not _try_lock(fd, CLAIM):
                raise _taken(app, _claimed(fd)[1])  # or nobody: it let go this instant
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, OWN)
            if is_at(fd, path):
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
    fd = open_lock(path)
    try:
        if not _try_lock(fd, OWN) or not is_at(fd, path):
            return False
        _remove_shared_memory(fd)
        _remove(path)
        return True
    finally:
        os.close(fd)


def _remove_if_abandoned(path: Path) -> None:
    """Remove the file of an attempt that nobody holds; see `attempts`."""
    fd = open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(fd, path):
            path.unlink()
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove both entries, the socket first: a socket without a lock would never be swept."""
    path.with_suffix(".sock").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _remove_shared_memory(fd: int) -> None:
    """Remove what the dead owner in this lock file has left in /dev/shm (transport `posix`)."""
    pid = os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace")
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


def _claimed(fd: int) -> tuple[bool, int | None]:
    """Ask the kernel whether CLAIM is held, by whom; the file may name the last owner."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, CLAIM, 1, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    if kind == fcntl.F_UNLCK:
        return False, None
    return True, pid if pid > 0 else None  # it may live in a process namespace we cannot see


def _taken(app: str, pid: int | None) -> NameTaken:
    owner = f"process {pid}" if pid else "another process"
    return NameTaken(
        f"name {app!r} is already served by {owner}; "
        f"stop it with `shmbatch stop {app}` or choose another --name"
    )


def _key(path: Path) -> Path:
    return path.parent.resolve() / path.name
