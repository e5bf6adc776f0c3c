"""Which byte of a lock file says what, and who holds it, as the kernel knows.

The locks are POSIX record locks: the kernel frees them when their holder dies, however it dies,
and no forked child inherits them. Three bytes of the file have a meaning::

    byte   name    locked by
    ----   -----   ---------------------------------------------------------------------
       0   CLAIM   the owner, from the moment it asks for the name
       1   OWN     the owner, from the moment it has it; or a sweeper, while it removes
       2   KEEP    a supervisor, which keeps the name from one of its executors to the next

CLAIM and OWN are two so that a sweeper is never mistaken for an owner: who finds CLAIM taken is
refused, who finds OWN taken while holding CLAIM waits for a sweeper to finish.
"""

from __future__ import annotations

import fcntl
import os
import struct

CLAIM, OWN, KEEP = 0, 1, 2

_FLOCK = "hhqqi0q"  # struct flock: type, whence, start, length, pid; padded at its end


def try_lock(fd: int, byte: int) -> bool:
    """Lock one byte of the file if nobody else has, and say whether it is ours now."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def wait_lock(fd: int, byte: int) -> None:
    """Lock one byte of the file as soon as nobody else has it."""
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, byte)


def holder(fd: int, byte: int) -> tuple[bool, int | None]:
    """Ask whether another process holds the byte, and which.

    The pid is what the kernel says, None of a process in a process namespace that we cannot see.
    The locks of this very process are not seen.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    if kind == fcntl.F_UNLCK:
        return False, None
    return True, pid if pid > 0 else None
