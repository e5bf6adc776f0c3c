"""Whether somebody is about to serve a name that nobody serves just now."""

from __future__ import annotations

from ..errors import ConfigError, ExecutorNotFound
from ..protocol import owners
from ..protocol.clock import now_ns
from ..protocol.ownership import DRAINING, LOADING, SERVING

ASK_EVERY_S = 0.01  # while a supervisor keeps the name


class NotInTime(ExecutorNotFound):
    """A supervisor keeps the name, and the caller has no more time to wait for an executor."""


class Patience:
    """How long one caller asks again: as long as a supervisor keeps the name, until *until_ns*."""

    def __init__(self, name: str, until_ns: int | None) -> None:
        self.is_over = False  # because that time has passed
        self._name = name
        self._until_ns = until_ns
        self._was_serving = False

    def is_left(self) -> bool:
        """Say, whenever nobody has answered, whether to ask again; a few system calls."""
        owner = _owner(self._name)
        if owner is None or owner.keeper is None or owner.state == DRAINING:
            return False  # nobody will come
        self.is_over = self._until_ns is not None and now_ns() >= self._until_ns
        if self.is_over:
            return False
        was_serving, self._was_serving = self._was_serving, owner.state == SERVING
        return not (was_serving and self._was_serving)  # else it is there, and does not answer


def check_loaded(name: str) -> None:
    """Ask nothing of an executor that says itself that it could not answer yet.

    Raises:
        ExecutorNotFound: it loads, and a supervisor keeps the name.
    """
    owner = _owner(name)
    # One of another version is taken for one that loads, and without a time; it may answer.
    if owner is None or owner.keeper is None or owner.since_ns is None or owner.state != LOADING:
        return
    raise ExecutorNotFound(
        f"the executor of {name!r} (process {owner.pid}) is still loading; wait longer with "
        f"timeout="
    )


def _owner(name: str) -> owners.Owner | None:
    try:
        return owners.owner(name)
    except ConfigError:
        return None  # another user's, whose file we may not read
