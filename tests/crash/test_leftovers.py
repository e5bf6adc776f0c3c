"""What a killed executor has left in /dev/shm is removed even while the kernel is ending it."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from pathlib import Path

import pytest

from shmbatch.protocol import leftovers

TIMES = 10
FILES = 300  # that the kernel closes after the one with the lock, before the process is dead


@pytest.mark.no_transport
def test_names_of_a_process_are_removed_as_soon_as_its_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(TIMES):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
                os.write(fd, b"%d\n" % os.getpid())
                for _ in range(FILES):
                    os.dup(out)
                os.write(into, b"!")
                signal.pause()
            finally:
                os._exit(2)
        name = Path(f"/dev/shm/{leftovers.PREFIX}{pid}-{secrets.token_hex(6)}")
        fd = -1
        try:
            name.touch()
            os.read(out, 1)
            fd = os.open(path, os.O_RDWR)
            os.kill(pid, signal.SIGKILL)
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)  # waits for it to be free, and no longer
            leftovers.remove_of_owner(fd)
            assert not name.exists()
        finally:
            name.unlink(missing_ok=True)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for each in {fd, out, into} - {-1}:
                os.close(each)
