"""Whether names can be served and found here, what the dead have left, and who lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .finding import Finding, ok, problem, warning

DIRECTORY, LEFT, LOGS, SETTINGS, EXECUTORS = (
    *("directory of sockets", "left by the dead", "logs", "settings", "executors"),
)

_NETWORKED = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "lustre", "gpfs")
_NAME_MAX = 40
_SHOWN = 5


class Executor(NamedTuple):
    """A live executor, and what came of asking it."""

    name: str
    pid: int | None
    state: str
    error: str | None = None  # why it gave no sensible answer
    other_version: bool = False


def directory(
    path: str, error: str | None, *, filesystem: str, free: int, writable: bool, room: int
) -> Finding:
    """Look at the directory in which names are served.

    Args:
        error: why it cannot be used, where that is known; the remedy follows a semicolon.
        filesystem: its kind.
        free: bytes of it.
        writable: whether an entry can be made in it, or it itself.
        room: how many characters of a name fit, so that a socket can have that path.
    """
    elsewhere = "set SHMBATCH_DIR to a local directory of your own"
    if error is not None:
        found, _, remedy = error.partition("; ")
        return problem(DIRECTORY, found, remedy or elsewhere)
    if not writable:
        return problem(DIRECTORY, f"'{path}' cannot be written to", elsewhere)
    if filesystem in _NETWORKED:
        return problem(
            DIRECTORY, f"'{path}' is on {filesystem}, which keeps no sockets and locks", elsewhere
        )
    if free < 1 << 16:
        return problem(DIRECTORY, f"'{path}' is on a full {filesystem}", elsewhere)
    if room < 1:
        return problem(
            DIRECTORY, f"'{path}' is too long for the path of a socket", f"{elsewhere}, shorter"
        )
    if room < _NAME_MAX:
        return warning(
            DIRECTORY,
            f"'{path}' leaves names {room} characters; private names of `shmbatch run` have 16, "
            f"those of instances of a class up to {_NAME_MAX}",
            f"{elsewhere}, {_NAME_MAX - room} shorter",
        )
    return ok(DIRECTORY, f"'{path}'")


def left(what: Sequence[str], removed: Sequence[str] | None) -> Finding:
    """Look at what executors have left that were killed.

    Args:
        what: there is of it.
        removed: what there was besides until now; None if nothing was to be removed.
    """
    if what and removed is None:
        return warning(LEFT, _shown(what), "shmbatch doctor --fix")
    if what:
        return warning(
            LEFT, f"cannot be removed: {_shown(what)}", "see who owns it, and remove it by hand"
        )
    return ok(LEFT, f"removed: {_shown(removed)}" if removed else "nothing")


def _shown(what: Sequence[str]) -> str:
    more = f" and {len(what) - _SHOWN} more" if len(what) > _SHOWN else ""
    return ", ".join(what[:_SHOWN]) + more


def logs(path: str, error: str | None) -> Finding:
    """Look at where executors in the background log.

    Args:
        error: why they cannot.
    """
    if error is not None:
        return warning(
            LOGS,
            f"`shmbatch start --detach` cannot log to '{path}': {error}",
            "--log FILE, or set XDG_STATE_HOME",
        )
    return ok(LOGS, f"of executors in the background go to '{path}'")


def setting(error: str | None, chosen: str) -> Finding:
    """Look at the environment variables that choose something.

    Args:
        error: what is wrong with one; the remedy follows a semicolon.
        chosen: what they say together.
    """
    if error is not None:
        found, _, remedy = error.partition("; ")
        return problem(SETTINGS, found, remedy)
    return ok(SETTINGS, chosen)


def executors(found: Sequence[Executor]) -> list[Finding]:
    """Look at each that lives."""
    if not found:
        return [ok(EXECUTORS, "none")]
    return [_executor(each) for each in found]


def _executor(one: Executor) -> Finding:
    who = f"{one.name} (process {one.pid}, {one.state})"
    if one.other_version:
        return problem(
            EXECUTORS,
            f"{who} speaks another version than this package: {one.error}",
            f"shmbatch stop {one.name}, and start it anew",
        )
    if one.error is not None:
        return warning(
            EXECUTORS,
            f"{who} does not answer: {one.error}",
            f"see its log; `shmbatch stop {one.name} --now` ends it",
        )
    return ok(EXECUTORS, who)
