"""What executors and producers know of a supervisor: that it lives, and why it has given up.

A supervisor is a process that starts an executor anew when it dies. It hands out two descriptors,
which its executors pass on to their producers::

    pidfd     readable once the supervisor is dead: no executor will come back
    notice    a page of memory that only the supervisor can write; empty, or why it has given up

A pidfd, since a socket's end or a pipe's may be held open by a child that somebody forked; memory
and no message, since a producer that looks at a dead supervisor has nobody left to ask.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal

from . import control

NOTICE_NBYTES = 4096

# What `shmbatch stop` sends to one whose executor cannot hear. Not what a user sends, of whom a
# second one means that it is to hurry: any number of processes may want to stop the same name.
STOP = signal.SIGUSR1  # have it drain
STOP_NOW = signal.SIGUSR2

_SEAL_FUTURE_WRITE = 0x0010  # F_SEAL_FUTURE_WRITE, Linux 5.1; the fcntl module does not name it


class Supervisor:
    """A supervisor as its executors and their producers see it. Takes over both descriptors."""

    def __init__(self, pidfd: int, notice_fd: int) -> None:
        self._pidfd = pidfd
        self._notice_fd = notice_fd

    def fds(self) -> tuple[int, int]:
        """Return its pidfd and its notice, which stay its own."""
        return self._pidfd, self._notice_fd

    def is_over(self) -> bool:
        """Say whether its process is dead, so that no executor comes back; one system call.

        Closed, it is over too.
        """
        return self._pidfd < 0 or control.is_dead(self._pidfd)

    def cause(self) -> str | None:
        """Return why it has given up, one printable line; None if it has not said so.

        Ask when it is over: what it says until then may be incomplete. One system call.
        """
        try:
            text = os.pread(self._notice_fd, NOTICE_NBYTES, 0)
        except OSError:
            return None  # it is no notice, whatever it is
        return control.one_line(text.partition(b"\0")[0].decode(errors="replace")) or None

    def close(self) -> None:
        """Close both descriptors. Idempotent."""
        fds, self._pidfd, self._notice_fd = self.fds(), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class Notice:
    """The supervisor's end of its notice.

    The memory is mapped here before it is sealed against all later writing and mapping, and a
    fork does not get the mapping: nobody else, of whatever user, can write it. A kernel without
    that seal leaves the mode, which keeps other users out.

    Raises:
        OSError: there is no memory for it, or no descriptor.
    """

    def __init__(self) -> None:
        fd = os.memfd_create("shmbatch-notice", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, 0o400)  # or whoever has any descriptor of it could open it for writing
            os.posix_fallocate(fd, 0, NOTICE_NBYTES)
            self._memory = mmap.mmap(fd, NOTICE_NBYTES)
            self._memory.madvise(mmap.MADV_DONTFORK)
            try:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
            except OSError:
                pass  # an older kernel
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)

    def write(self, cause: str) -> None:
        """Say why no executor will come back; once, and before this process ends."""
        self._memory[:] = control.one_line(cause).encode().ljust(NOTICE_NBYTES, b"\0")

    def unmap(self) -> None:
        """In a fork, which has no mapping: forget it, and leave the descriptor to be read."""
        self._memory.close()
