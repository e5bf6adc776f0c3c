"""Who starts the executor of a name: of many processes one, and all of them hear what came of it.

A process that wants an executor started *joins* an attempt: it opens ``<name>.starting`` in the
directory, and looks at the file's lock (``flock``, so that the kernel frees it at a death, and
threads of one process count as several). The file is the attempt: whoever has it open hears how it
ended, also after its name is gone::

    look()    lock        at its path    meaning
    ------    --------    -----------    --------------------------------------------------------
    THEIRS    held        either         somebody starts the executor, or looks this instant
    OURS      now ours    yes            we are to start it; nobody else, until `end` or our death
    OVER      now ours    no             it has ended; `failure` says with what, if it failed

A1  Only who holds the lock of the file *at the path* removes it. So while it is OURS in one
    process, the path leads to its file, whoever comes opens that one, and it is OURS nowhere else.
A2  A failure is written after the file was removed and before the lock is freed. So every process
    that had joined reads it, and none that comes later, which may have mended what failed.
A3  Who dies while it is OURS leaves the file at its path with the lock free and nothing written:
    the next to look takes over. What is left when nobody looks any more, `ownership.sweep`
    removes, by the same rules: it takes the lock first.

All this saves work; it is no claim to the name. Should two attempts ever meet, say because a
cleaner removed the file, then `ownership.NameLock` still lets only one executor load its file.
"""

from __future__ import annotations

import enum
import fcntl
import os
import weakref

from .directory import directory, is_at, open_lock, refuse, socket_path


class Look(enum.Enum):
    """What an attempt is to a process that has joined it."""

    OURS = "ours"
    THEIRS = "theirs"
    OVER = "over"


FAILURE_LIMIT = 131_072  # bytes
_open: weakref.WeakSet[Attempt] = weakref.WeakSet()


class Attempt:
    """One attempt at starting *app*'s executor, joined until `leave`.

    Raises:
        ConfigError: *app* is not a name, or the directory cannot be used.
    """

    def __init__(self, app: str) -> None:
        self._path = socket_path(app).with_suffix(".starting")
        directory(create=True)
        try:
            self._fd = open_lock(self._path, create=True)
        except OSError as error:
            refuse(self._path, error)
        self._ours = False
        _open.add(self)

    def look(self) -> Look:
        """Say what this attempt is to us now; never waits. Once OURS or OVER, always so."""
        if self._ours:
            return Look.OURS
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Look.THEIRS
        if is_at(self._fd, self._path):  # A1
            self._ours = True
            return Look.OURS
        fcntl.flock(self._fd, fcntl.LOCK_UN)  # others want to look too
        return Look.OVER

    def failure(self) -> bytes:
        """Return what the attempt failed with, as its owner wrote it; empty if it did not fail."""
        return os.pread(self._fd, FAILURE_LIMIT, 0)

    def end(self, failure: bytes = b"") -> None:
        """End an attempt that is OURS; who has joined it reads *failure*. Closes it.

        *failure* has at most `FAILURE_LIMIT` bytes: a part of it would be malformed.
        """
        assert self._ours
        assert len(failure) <= FAILURE_LIMIT
        self._path.unlink(missing_ok=True)
        os.pwrite(self._fd, failure, 0)  # A2
        self._ours = False
        self.close()

    def close(self) -> None:
        """Leave it, as a death does: one that is OURS is taken over by the next. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def leave(self) -> None:
        """Leave it for good: one that is OURS is over."""
        if self._ours:
            self.end()
        self.close()


def _close_after_fork() -> None:
    """In a forked child: the lock is its parent's, and would outlive it here."""
    for attempt in list(_open):
        attempt._ours = False
        attempt.close()


os.register_at_fork(after_in_child=_close_after_fork)
