"""Under which name an executor is found: claimed when it starts, or taken over from another."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ..protocol import ownership
from ..protocol.access import Access
from ..protocol.directory import socket_path
from ..protocol.orders import Orders


class Tenure:
    """An executor's right to a name, and its socket there, from `listen` to `close`.

    Args:
        file: where the functions are from, for others to read.
        access: who may come to the socket.
        orders: of an executor that has a supervisor.
        called: what messages call the app, where *name* is private.
    """

    def __init__(
        self,
        name: str,
        file: Path | None,
        access: Access,
        orders: Orders | None,
        called: str | None = None,
    ) -> None:
        self._name = name
        self._called = called or name
        self._file = file
        self._access = access
        self._orders = orders
        self._lock: ownership.NameLock | None = None
        self._beside: Path | None = None  # where it listens until it has the name
        self._state = ownership.SERVING  # what is to be said of it once it has the name

    def listen(self) -> socket.socket:
        """Claim the name, or get ready to take it over; return a listening socket.

        Raises:
            NameTaken: a live executor has the name.
            ConfigError: as `NameLock.claim`.
        """
        if self._orders is not None and self._orders.succeeds:
            self._beside = socket_path(self._name).with_suffix(ownership.NEXT)
            self._beside.unlink(missing_ok=True)  # of one that died
            return self._listen(self._beside)
        lock = self._claim(succeeds=False)
        ownership.sweep()  # what others left who died
        lock.note(ownership.LOADING, self._file)
        if self._orders is not None:
            self._orders.say("claimed", name=self._name, called=self._called)
            self._orders.wait()  # until the name is kept, so that no death leaves it to others
        return self._listen(lock.socket_path)

    def take(self) -> None:
        """Take the name from an executor that has given it up and listens still.

        Whoever connects finds one of the two at any time.

        Raises:
            NameTaken, ConfigError: as `listen`.
        """
        if self._lock is None:
            lock = self._claim(succeeds=True)
            noted = ""
            while noted != self._state:  # another thread may say another one just now
                noted = self._state
                lock.note(noted, self._file)
            if self._beside is not None:
                self._beside.rename(lock.socket_path)
                self._beside = None

    def give_up(self) -> None:
        """Let go of the name, which a supervisor keeps, and not of the socket."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def note(self, state: str) -> None:
        """Say what the executor is doing, where it has the name, and as soon as it has it."""
        self._state = state
        lock = self._lock  # once: another thread may give it up
        if lock is not None:
            lock.note(state, self._file)

    def close(self) -> None:
        """Give the name back, and leave nothing behind. Idempotent."""
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.unlink(missing_ok=True)
        self.give_up()

    def __enter__(self) -> Tenure:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _claim(self, *, succeeds: bool) -> ownership.NameLock:
        keeper = None if self._orders is None else self._orders.keeper
        self._lock = ownership.NameLock.claim(self._name, keeper=keeper, succeeds=succeeds)
        return self._lock

    def _listen(self, path: Path) -> socket.socket:
        """Return a listening socket at *path*, to which none but who has access may connect."""
        self._access.open_directory(path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(os.fspath(path))
            self._access.open_socket(path)
            listener.listen(512)
        except BaseException:
            listener.close()
            raise
        return listener
