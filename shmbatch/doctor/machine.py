"""What there is to read about this machine, this user's setup, and the executors there are."""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from ..client.asking import statistics
from ..errors import ConfigError, ProtocolError, ShmbatchError, VersionMismatch
from ..protocol import leftovers, owners, ownership
from ..protocol.cgroups import read
from ..protocol.clock import age_s
from ..protocol.control import SO_PEERPIDFD
from .names import Executor

SHARED_MEMORY = Path("/dev/shm")
_MOUNTS = Path("/proc/self/mountinfo")
_DRIVER = Path("/proc/driver/nvidia/version")
_KERNEL = Path("/proc/sys")

_HANDSHAKE_S = 30.0  # after which an executor removes the names of one that does not end
_ANSWER_S = 1.0  # an executor that has not answered by then does not
_ASKED_AT_ONCE = 32

_PACKAGES = ("shmbatch", "numpy", "msgspec", "posix-ipc", "click", "torch", "fastapi", "uvicorn")


def missing_calls() -> list[str]:
    """Which system calls this process needs and cannot make."""
    missing = []
    try:
        fd = os.memfd_create("shmbatch-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        finally:
            os.close(fd)
    except OSError as error:
        missing.append(f"memfd_create with seals ({error.strerror})")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        missing.append(f"pidfd_open ({error.strerror})")
    return missing


def has_peer_pidfd() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError:
            return False
    return True


def core_error() -> str | None:
    try:
        importlib.import_module("shmbatch.protocol._core")
    except ImportError as error:
        return str(error)
    return None


def number(name: str, otherwise: int) -> int:
    """Return a setting of the kernel, as ``net/core/somaxconn``."""
    text = read(_KERNEL / name).strip()
    return int(text) if text.isdecimal() else otherwise


def committed() -> tuple[int, int]:
    """Return how much memory may be promised, and is, in bytes."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", read(Path("/proc/meminfo")), re.MULTILINE))
    return int(found.get("CommitLimit", 0)) * 1024, int(found.get("Committed_AS", 0)) * 1024


def room(folder: Path) -> tuple[int, int] | None:
    """Return how many bytes of a file system are free, and all; None if it is not there."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    if not found.f_blocks:  # without blocks it has no limit of its own
        return 1 << 62, 1 << 62
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def existing(path: Path) -> Path:
    """Return *path*, or the nearest folder above it that there is."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def filesystem(path: Path) -> str:
    """Return the kind of the file system that *path* is on."""
    where = path.resolve()
    best, kind = -1, "unknown"
    for line in read(_MOUNTS).splitlines():
        words = line.split()
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), words[4]))
        if len(point.parts) >= best and point in (where, *where.parents):
            best, kind = len(point.parts), words[words.index("-") + 1]
    return kind


def stale_names() -> list[str]:
    """Names in the directory that nobody owns any more."""
    found = []
    for app in ownership.locked():
        try:
            if owners.owner(app) is None:
                found.append(app)
        except ConfigError:
            pass  # what is there is no lock file
    return found


def shared_memory_of_the_dead(older_s: float = _HANDSHAKE_S) -> dict[str, list[str]]:
    """Entries of /dev/shm that executors of this user have left, by their pid.

    By default none of the last half minute: an executor in another process namespace, which is no
    process here, names what it shares for as long as a handshake may take.
    """
    found: dict[str, list[str]] = {}
    for entry in _entries(SHARED_MEMORY):
        maker = re.fullmatch(rf"(?:sem\.)?{leftovers.PREFIX}(\d+)-\w+", entry.name)
        if maker is not None and not Path("/proc", maker[1]).exists():
            try:
                made = entry.lstat()
                if made.st_uid == os.geteuid() and age_s(made) >= older_s:
                    found.setdefault(maker[1], []).append(entry.name)
            except FileNotFoundError:
                pass
    return found


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return


def living() -> list[Executor]:
    """Ask every executor of this directory whether it is well."""
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as asking:
        return list(asking.map(_asked, owners.owners()))


def _asked(owner: owners.Owner) -> Executor:
    one = Executor(owner.app, owner.pid, owner.state)
    if owner.state != ownership.SERVING:
        return one
    try:
        statistics(owner.app, timeout=_ANSWER_S)
    except (VersionMismatch, ProtocolError) as error:
        return one._replace(error=str(error), other_version=True)
    except ShmbatchError as error:
        return one._replace(error=str(error))
    return one


def installed() -> dict[str, str]:
    """Versions of the packages that matter and are there; nothing is imported."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def driver() -> str | None:
    """Return the version of the NVIDIA driver; None if there is none."""
    found = re.search(r"Kernel Module.*?\s{2,}(\d[\d.]*)", read(_DRIVER))
    return None if found is None else found[1]
