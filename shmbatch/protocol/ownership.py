"""Which process owns a name: its lock, what it says there of itself, what the dead have left.

A lock file's lines are the owner's pid and, once it has made a note: its state, since when it has
the name (nanoseconds of the monotonic clock), and the file that it serves. `owners` reads them.

`locks` says which byte of the file is locked by whom.

I1  The entries of a name are only removed by a process that holds its OWN, and not while another
    one KEEPs the name: that will need them for its next executor.
I2  A process owns a name while it holds OWN of the file that *is* at ``<name>.lock``. So the path
    is looked at again after locking: between open and lock the file may have been removed.
I3  A process that owns a name never opens that lock file again: closing any of its descriptors
    would free the locks. Hence the table of names held by this process.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import NamedTuple

from ..errors import NameTaken
from . import descriptors, leftovers
from .clock import now_ns
from .directory import directory, is_at, open_lock, refuse, socket_path
from .locks import CLAIM, KEEP, OWN, holder, try_lock, wait_lock
from .names import NAME_PATTERN

# What an owner may note about itself.
LOADING, SERVING, DRAINING = "loading", "serving", "draining"

NEXT = ".next"  # the socket of an executor that is about to take the name over from another

_NOTE_LIMIT = 8192  # bytes; a path has at most 4096

_mutex = threading.RLock()  # re-entrant, since a signal handler may close a lock being closed
_held: dict[Path, int] = {}  # I3; each with the descriptor that has its locks


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
    def claim(cls, app: str, *, keeper: int | None = None, succeeds: bool = False) -> NameLock:
        """Take *app*, or raise; of several processes at once, one gets it.

        Afterwards no socket is at `socket_path`, and none but this process may bind one. Waits
        for a sweeper that is at this name, never for another owner. Not inherited by a fork:
        claim in the process that will serve.

        Args:
            keeper: the process that may keep the name for this one; see `keeping`.
            succeeds: leave a live predecessor's socket where it is.

        Raises:
            NameTaken: a live process, which may be this one, has the name, or keeps it.
            ConfigError: *app* is not a name, or the directory cannot be used.
        """
        path = socket_path(app).with_suffix(".lock")
        directory(create=True)
        with _mutex:
            if _key(path) in _held:
                raise _taken(app, os.getpid())
            try:
                lock = cls(app, path, _own(app, path, keeper, succeeds))
            except OSError as error:
                refuse(path, error)
            hold(path, lock._fd)
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
        """Give the name back; a second call does nothing.

        Removes its entries, unless another process keeps the name.
        """
        with _mutex:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            try:
                # I1, I2: where the file is no longer ours, somebody else's socket is there.
                if self._pid == os.getpid():
                    let_go(self._path)
                    if is_at(fd, self._path) and not holder(fd, KEEP)[0]:
                        remove(self._path)
            finally:
                os.close(fd)

    def __enter__(self) -> NameLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def hold(path: Path, fd: int) -> None:
    """Note that *fd* has locks of the file at *path*, which must not be opened again (I3)."""
    _held[_key(path)] = fd


def let_go(path: Path) -> None:
    """Note that this process has no locks any more of the file at *path*."""
    _held.pop(_key(path), None)


class Held(NamedTuple):
    """Who has a name, as the kernel says, and what stands in its lock file."""

    pid: int | None  # None of a process in a process namespace that we cannot see
    keeper: int | None  # that keeps it for this owner and the next; None if nobody does
    text: bytes  # an earlier owner's, as long as this one has made no note of its own


def look(app: str) -> Held | None:
    """Return who has *app*; None if nobody does. It is the keeper while there is no owner.

    Raises:
        ConfigError: as `socket_path`, or the lock file cannot be opened.
    """
    path = socket_path(app).with_suffix(".lock")
    with _mutex:
        held = _held.get(_key(path))
        if held is not None:  # I3
            return Held(os.getpid(), holder(held, KEEP)[1], os.pread(held, _NOTE_LIMIT, 0))
        try:
            fd = open_lock(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            refuse(path, error)
        try:
            is_kept, keeper = holder(fd, KEEP)
            is_owned, pid = holder(fd, CLAIM)
            if not (is_owned or is_kept) or not is_at(fd, path):  # I2
                return None
            return Held(pid if is_owned else keeper, keeper, os.pread(fd, _NOTE_LIMIT, 0))
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


def _own(app: str, path: Path, keeper: int | None, succeeds: bool) -> int:
    """Return a descriptor of the file at *path*, with CLAIM and OWN locked."""
    while True:
        fd = open_lock(path, create=True)
        try:
            is_kept, by = holder(fd, KEEP)
            if is_kept and by != keeper:
                raise _taken(app, by)
            if not try_lock(fd, CLAIM):
                raise _taken(app, holder(fd, CLAIM)[1])  # or nobody: it let go this instant
            wait_lock(fd, OWN)
            if is_at(fd, path):
                if not succeeds:
                    path.with_suffix(".sock").unlink(missing_ok=True)  # I1; of a dead owner
                leftovers.remove_of_owner(fd)
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
        if not try_lock(fd, OWN) or holder(fd, KEEP)[0] or not is_at(fd, path):
            return False
        leftovers.remove_of_owner(fd)
        remove(path)
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


def remove(path: Path) -> None:
    """Remove the entries, the lock last: a socket without a lock would never be swept."""
    for kind in (".sock", NEXT):
        path.with_suffix(kind).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _taken(app: str, pid: int | None) -> NameTaken:
    owner = f"process {pid}" if pid else "another process"
    return NameTaken(
        f"name {app!r} is already served by {owner}; "
        f"stop it with `shmbatch stop {app}` or choose another --name"
    )


def _key(path: Path) -> Path:
    return path.parent.resolve() / path.name
