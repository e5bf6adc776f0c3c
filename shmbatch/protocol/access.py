"""Whom an executor lets in beside its own user, and which executors a producer believes.

An executor serves its own user, and those that `Access` names. Permissions of directory and
socket are opened as far as needed and no further, but they are coarse: who is at the other end,
says the kernel, and that is checked of every connection.

A producer hands its inputs to the executor and takes what comes back for the truth; with
``codec="pickle"`` it even runs it. So it believes executors of its own user, of root, who may do
anything anyway, and of users that ``SHMBATCH_TRUST`` names: not of whoever happens to own the
directory that it looks into, since anybody may make ``/tmp/shmbatch-1000``.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, HandshakeError
from .control import Credentials, peer_credentials

ROOT = 0

_SO_PEERGROUPS = 59  # Linux 4.13; the socket module does not name it
_GID = struct.Struct("I")
_GROUPS_NBYTES = 1024  # as many as Python reads of an option: 256 groups


@dataclass(frozen=True)
class Access:
    """The users and groups that an executor lets in, beside its own user."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.uids or self.gids)

    def admits(self, sock: socket.socket, who: Credentials) -> bool:
        """Say whether *who*, at the other end of *sock*, may attach and ask for statistics.

        Counted are the groups that the process had when it connected; where it has more than
        256, its effective one alone.
        """
        if is_owner(who) or who.uid in self.uids:
            return True
        return not self.gids.isdisjoint({who.gid, *_other_groups(sock)})

    def open_directory(self, path: Path) -> None:
        """Let those who are admitted search *path*, which must be this user's.

        What it is open for already stays open: other executors may be in it.

        Raises:
            ConfigError: they cannot come so far, or the group cannot be given to it.
        """
        if not self:
            return
        for parent in path.parents:
            mode = parent.stat().st_mode
            if not mode & (stat.S_IXGRP | stat.S_IXOTH):  # with a list of access, its mask
                raise ConfigError(
                    f"--allow-uid and --allow-gid let nobody in: '{parent}' has mode "
                    f"{mode & 0o777:04o}; set SHMBATCH_DIR to a directory that others can reach"
                )
        found = path.stat()
        group = self._group()
        if group is not None and (found.st_gid == group or not found.st_mode & stat.S_IXGRP):
            _give(path, group)
            path.chmod(found.st_mode & 0o7777 | stat.S_IXGRP)
        else:
            path.chmod(found.st_mode & 0o7777 | stat.S_IXGRP | stat.S_IXOTH)

    def open_socket(self, path: Path) -> None:
        """Let those who are admitted connect to the socket at *path*, and as far as that is one
        group or none, nobody else.

        Raises:
            ConfigError: the group cannot be given to it.
        """
        group = self._group()
        if group is not None:
            _give(path, group)
            path.chmod(0o660)
        else:
            path.chmod(0o666 if self else 0o600)

    def _group(self) -> int | None:
        """The group that is all there is to let in; None if there is more, or nothing."""
        return next(iter(self.gids)) if not self.uids and len(self.gids) == 1 else None


def is_owner(who: Credentials) -> bool:
    """Say whether *who* is the user of this process, who alone may stop it."""
    return who.uid == os.geteuid()


def check_executor(sock: socket.socket, what: str) -> None:
    """Make sure that the executor at the other end of *sock* is one to believe.

    Args:
        what: it is the executor of, for the message.

    Raises:
        HandshakeError: it is not.
        ConfigError: SHMBATCH_TRUST names a user that does not exist.
    """
    uid = peer_credentials(sock).uid
    if not is_trusted(uid):
        raise HandshakeError(
            f"the executor of '{what}' runs as uid {uid} and this is uid {os.geteuid()}; "
            f"run both as one user, or name it in SHMBATCH_TRUST if you trust it with your inputs"
        )


def is_trusted(uid: int) -> bool:
    """Say whether this process believes what an executor of user *uid* says.

    Raises:
        ConfigError: SHMBATCH_TRUST names a user that does not exist.
    """
    if uid in (os.geteuid(), ROOT):
        return True
    named = os.environ.get("SHMBATCH_TRUST", "")
    return uid in users(filter(None, map(str.strip, named.split(","))), "SHMBATCH_TRUST")


def not_let_in(what: str) -> HandshakeError:
    """Return the error of a producer that may not even connect to the executor of *what*."""
    return HandshakeError(
        f"the executor of '{what}' does not serve uid {os.geteuid()}: its socket is closed to it; "
        f"start the executor with --allow-uid {os.geteuid()}"
    )


def users(names: Iterable[str], where: str) -> frozenset[int]:
    """Return the uids of *names*, which are names or numbers; *where* begins an error.

    Raises:
        ConfigError: there is no such user.
    """
    return frozenset(_number(each, where, "user") for each in names)


def groups(names: Iterable[str], where: str) -> frozenset[int]:
    """Return the gids of *names*, which are names or numbers; *where* begins an error.

    Raises:
        ConfigError: there is no such group.
    """
    return frozenset(_number(each, where, "group") for each in names)


def _number(name: str, where: str, kind: str) -> int:
    if name.isascii() and name.isdecimal() and int(name) < 2**32 - 1:  # that one means nobody
        return int(name)
    try:
        if kind == "user":
            import pwd

            return pwd.getpwnam(name).pw_uid
        import grp

        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(
            f"{where} names {kind} {name!r}, which this machine does not have; "
            f"use a name or a number of `getent {'passwd' if kind == 'user' else 'group'}`"
        ) from None


def _other_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_NBYTES)
    except OSError:
        return ()  # more than fit, or an old kernel
    return tuple(gid for (gid,) in _GID.iter_unpack(data))


def _give(path: Path, gid: int) -> None:
    try:
        os.chown(path, -1, gid)
    except OSError as error:
        raise ConfigError(
            f"cannot give '{path}' to gid {gid}, as --allow-gid wants: {error.strerror}; "
            f"run the executor as a member of that group, or use --allow-uid"
        ) from error
