"""What an executor that was killed leaves in ``/dev/shm`` (transport `posix`), and its removal."""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "shmbatch-"  # of what transport `posix` names, followed by a pid

_SHARED_MEMORY = Path("/dev/shm")
_PF_EXITING = 0x4  # of the kernel's <linux/sched.h>: the process is ending


def remove_of_owner(fd: int) -> None:
    """Remove what the dead owner that this lock file names has left."""
    remove(os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace"))


def remove(pid: str) -> None:
    """Remove what process *pid* has left; nothing if it lives, or is no number."""
    if pid.isdecimal() and not _is_alive(pid):
        for kind in ("", "sem."):  # the latter is how the C library names what sem_open makes
            for path in _SHARED_MEMORY.glob(f"{kind}{PREFIX}{pid}-*"):
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    pass  # of another user


def _is_alive(pid: str) -> bool:
    try:
        status = Path("/proc", pid, "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = status.rpartition(b")")[2].split()  # from the third on, see proc(5)
    if fields[0] in (b"Z", b"X"):
        return False  # dead, but not yet reaped
    # Not yet dead, either: the kernel frees the locks of a process that ends a moment before.
    return not int(fields[6]) & _PF_EXITING
