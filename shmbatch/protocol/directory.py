"""Where the sockets and locks of this user's names are, and which files there are ours to open.

Every user has one directory, and every served name has two entries in it::

    <directory>/              SHMBATCH_DIR, /run/user/<uid>/shmbatch or /tmp/shmbatch-<uid>; 0700,
                              or 0710 or 0711 once an executor in it has let others in
        sums.lock             locked by its owner for as long as that lives; see `ownership`
        sums.sock             where producers connect; the owner binds it
        sums.next             only while an executor takes over from another; see `ownership`
        sums.starting         only while `ensure` starts an executor; see `attempts`

A producer may also look into the directory of another user, whom it trusts; see `access`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn

from ..errors import ConfigError
from . import access, descriptors
from .names import check_name

SOCKET_PATH_LIMIT = 107  # bytes; sun_path of sockaddr_un has 108, the last of them zero

RUNTIME_ROOT = Path("/run/user")
FALLBACK_ROOT = Path("/tmp")

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
# The sticky bit tells systemd-tmpfiles to leave an old file alone; without it a lock held for
# ten days in /tmp would lose its name. Source: XDG Base Directory Specification, runtime files.
_LOCK_MODE = 0o1600

_MODES = (0o700, 0o710, 0o711)  # nobody but the owner may list it, or put anything into it


def directory(create: bool) -> Path:
    """Return the directory of sockets, made sure to be this user's alone.

    Without *create* it may not exist: then nobody serves anything, and there is nothing to check;
    or it may be that of a user whose executors are trusted.

    Raises:
        ConfigError: it is a symbolic link or no directory, belongs to another user, is open for
            others to list or to write, or cannot be created.
    """
    path = _chosen_directory()
    try:
        if create:
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                pass  # by whom, and whether it is a directory, is looked at below
        found = path.lstat()
    except OSError as error:
        if not create and isinstance(error, FileNotFoundError):
            return path
        refuse(path, error)
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise ConfigError(f"'{path}' is {kind}; remove it, or set SHMBATCH_DIR")
    if found.st_uid != os.geteuid():
        _check_foreign(path, found, create)
    # Other bits do not matter; set-gid, for one, may be inherited from the parent.
    elif found.st_mode & 0o777 not in _MODES:
        raise ConfigError(
            f"directory '{path}' has mode {found.st_mode & 0o777:04o} and must have 0700; "
            f"run `chmod 700 {path}`, or set SHMBATCH_DIR"
        )
    return path


def _check_foreign(path: Path, found: os.stat_result, create: bool) -> None:
    """Whoever owns the directory decides where its sockets lead to."""
    if create or not access.is_trusted(found.st_uid):
        remedy = "" if create else f", or trust that user with SHMBATCH_TRUST={found.st_uid}"
        raise ConfigError(
            f"directory '{path}' belongs to uid {found.st_uid} and this is uid {os.geteuid()}; "
            f"set SHMBATCH_DIR to a directory of your own{remedy}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"directory '{path}' has mode {found.st_mode & 0o777:04o}, so that others than uid "
            f"{found.st_uid} may put sockets there; set SHMBATCH_DIR to another"
        )


def _chosen_directory() -> Path:
    configured = os.environ.get("SHMBATCH_DIR")
    if configured:
        path = Path(configured)
        if not path.is_absolute():
            # Executor and producers rarely share a working directory.
            raise ConfigError(f"SHMBATCH_DIR is {configured!r}; use an absolute path")
        return path
    runtime = RUNTIME_ROOT / str(os.geteuid())
    if runtime.is_dir():
        return runtime / "shmbatch"
    return FALLBACK_ROOT / f"shmbatch-{os.geteuid()}"


def socket_path(app: str) -> Path:
    """Return where *app*'s executor listens; whether one does is for `connect` to find out.

    Raises:
        ConfigError: *app* is not a name, the path is too long for a socket, or as `directory`.
    """
    path = directory(create=False) / f"{check_name(app, 'app name')}.sock"
    nbytes = len(os.fsencode(path))
    if nbytes > SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"socket path '{path}' has {nbytes} bytes and at most {SOCKET_PATH_LIMIT} fit; "
            f"set SHMBATCH_DIR to a shorter path, or choose a shorter name"
        )
    return path


def open_lock(path: Path, *, create: bool = False) -> int:
    """Return a descriptor of the file at *path*, close-on-exec; the caller closes it.

    Raises:
        OSError: it cannot be opened, or is a symbolic link; see `refuse`.
    """
    if create:
        return os.open(path, _OPEN_FLAGS | os.O_CREAT, _LOCK_MODE)
    return os.open(path, _OPEN_FLAGS)


def is_at(fd: int, path: Path) -> bool:
    """Say whether the open file is the one that *path* leads to now."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def refuse(path: Path, error: OSError) -> NoReturn:
    """Raise the `ConfigError` that says why *path* cannot be used."""
    told = descriptors.shortage(f"use '{path}'", error)
    if told is not None:
        raise told from error
    raise ConfigError(
        f"cannot use '{path}': {error.strerror}; set SHMBATCH_DIR to a local directory of your own"
    ) from error
