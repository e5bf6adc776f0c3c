"""What processes hold, what is left of those that are gone, and which of them are still there."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SHARED = ("/memfd:shmbatch", "/dev/shm/")


def held(pid: int) -> dict[str, int]:
    """What a process has of the things that must not grow; memory in bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE))
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {
        "anonymous": int(kilobytes["Anonymous"]) * 1024,
        "segments": sum(maps.count(path) for path in _SHARED),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
    }


def descendants(of: int) -> dict[int, str]:
    """All processes that come from one, and what each is doing, by its letter (Z: a zombie)."""
    parents: dict[int, tuple[int, str]] = {}
    for pid in _pids():
        try:
            status = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        letter, parent = status.rpartition(b")")[2].split()[:2]
        parents[pid] = int(parent), letter.decode()

    def comes_from(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid][0]
            if pid == of:
                return True
        return False

    return {pid: letter for pid, (_, letter) in parents.items() if comes_from(pid)}


def processes_in(folder: Path) -> list[int]:
    """All processes whose environment names that directory of sockets."""
    entry = b"SHMBATCH_DIR=" + os.fsencode(folder)
    found = []
    for pid in _pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended, or is another user's
        if entry in variables and pid != os.getpid():
            found.append(pid)
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
