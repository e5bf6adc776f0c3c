"""Who serves which name, and what it is doing: read from lock files, without asking anybody.

So it is known of an executor too that loads, drains, or is stopped, and cannot answer.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from ..errors import ConfigError
from . import ownership
from .ownership import DRAINING, LOADING, SERVING

# To open a directory, a symbolic link, a socket, or what has gone meanwhile says so.
_FOREIGN = {errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class Owner:
    """A live process that has a name."""

    app: str
    pid: int | None  # None if it lives in a process namespace that we cannot see
    state: str  # LOADING, SERVING or DRAINING
    since_ns: int | None  # when it got the name; None if it has just got it
    file: str | None  # what it serves, where it has said so
    keeper: int | None = None  # its supervisor, which is the owner from one executor to the next


def owner(app: str) -> Owner | None:
    """Return *app*'s live owner; None if there is none. A few system calls; never waits.

    Raises:
        ConfigError: as `ownership.look`.
    """
    found = ownership.look(app)
    if found is None:
        return None
    pid, keeper, text = found
    noted, *lines = os.fsdecode(text).split("\n", 3)
    if len(lines) < 3 or (pid is not None and noted != str(pid)):
        return Owner(app, pid, LOADING, None, None, keeper)  # it has just got the name
    state, since_ns, file = lines
    if state not in (LOADING, SERVING, DRAINING) or not since_ns.isdecimal():
        return Owner(app, pid, LOADING, None, None, keeper)  # an owner of another version
    return Owner(app, pid, state, int(since_ns), file or None, keeper)


def owners() -> list[Owner]:
    """Return the live owners of all names in the directory, by name.

    What is at a name and is no lock file is passed over.

    Raises:
        ConfigError: as `directory`.
    """
    found = []
    for app in ownership.locked():
        try:
            one = owner(app)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FOREIGN:
                continue
            raise
        if one is not None:
            found.append(one)
    return found
