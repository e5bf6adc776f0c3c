"""How a supervisor keeps a name from one of its executors to the next.

Between two executors nobody owns the name. Kept, it can neither be claimed by anybody else nor
swept, and who looks for its owner finds the supervisor, which is about to start another one.
"""

from __future__ import annotations

import os

from . import ownership
from .directory import is_at, open_lock, socket_path
from .locks import KEEP, OWN, try_lock


class NameKeeper:
    """A name that this process keeps for its children, until `close` or until it dies.

    Take it while a child owns the name. A forked child has a copy of this object and nothing of
    the name; it calls `close` before it claims the name, as closing this later would free that.

    Raises:
        OSError: the lock file cannot be opened; its owner has just ended, say.
    """

    def __init__(self, app: str) -> None:
        self.app = app
        self._path = socket_path(app).with_suffix(".lock")
        self._pid = os.getpid()
        self._fd = open_lock(self._path)
        try_lock(self._fd, KEEP)
        ownership.hold(self._path, self._fd)

    def holds(self) -> bool:
        """Say whether the name is still kept: its lock file has not been removed under us."""
        return is_at(self._fd, self._path)

    def socket(self) -> tuple[int, int] | None:
        """Return which file the name's socket is; None if there is none.

        Another one than before, once a successor has put its own there.
        """
        try:
            found = self._path.with_suffix(".sock").lstat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def clear(self) -> None:
        """Remove the socket with which a successor died that had not taken the name."""
        self._path.with_suffix(ownership.NEXT).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the name back and remove its entries, unless somebody owns it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._pid == os.getpid():
                ownership.let_go(self._path)
                if try_lock(fd, OWN) and is_at(fd, self._path):
                    ownership.remove(self._path)
        finally:
            os.close(fd)
