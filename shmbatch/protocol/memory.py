"""How much memory this process may still take: the machine's, and what its cgroups leave it.

Where nothing limits a process, ``posix_fallocate`` takes all memory there is; where a cgroup
does, it takes all of that. Either way the kernel then kills somebody, so whoever wants a segment
asks here before.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from . import cgroups

MEMINFO = Path("/proc/meminfo")

# What segments must leave: functions need some to run at all. A share of all there is, if less.
RESERVE_NBYTES, _RESERVE_SHARE = 256 << 20, 8

# For version 2 and version 1 of cgroups: limit, use, and the name of what could be given back.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_memory(nbytes: int) -> None:
    """Raise OSError (ENOMEM) unless this process can take *nbytes* and leave others enough.

    Reads a few small files: two, one for each cgroup, two more for each that has a limit.
    """
    total, available = _room()
    if nbytes > available - min(RESERVE_NBYTES, total // _RESERVE_SHARE):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def available_nbytes() -> int:
    """Return how much can be taken now: of the machine's memory, or of a cgroup's if less."""
    return _room()[1]


def total_nbytes() -> int:
    """Return how much this process may use at most: the machine's memory, or a cgroup's limit."""
    machine = machine_nbytes()
    return min([machine, *(limit for _, _, limit in _limits(machine))])


def machine_nbytes() -> int:
    """Return how much memory the machine has."""
    return _machine()[0]


def _room() -> tuple[int, int]:
    """Return `total_nbytes` and `available_nbytes`."""
    total, available = _machine()
    for version, folder, limit in _limits(total):
        total = min(total, limit)
        available = min(available, _left(version, folder, limit))
    return total, available


def _machine() -> tuple[int, int]:
    """Return how much memory the machine has, and how much of it can be had."""
    found = dict.fromkeys(("MemTotal", "MemAvailable"), sys.maxsize)  # if a kernel does not say
    for line in cgroups.read(MEMINFO).splitlines():
        name, _, amount = line.partition(":")
        if name in found:
            found[name] = int(amount.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]


def _limits(machine: int) -> Iterator[tuple[int, Path, int]]:
    """Yield (version, folder, limit) of every cgroup that limits this process to less than that.

    Version 1 has a number for no limit, too, which is larger than any machine.
    """
    for version, folder in cgroups.folders("memory"):
        limit = _number(cgroups.read(folder / _FILES[version][0]))
        if limit is not None and limit < machine:
            yield version, folder, limit


def _left(version: int, folder: Path, limit: int) -> int:
    """Return what a cgroup leaves of its limit."""
    _, used_file, idle_name = _FILES[version]
    used = _number(cgroups.read(folder / used_file)) or 0
    # Of files that nobody uses: the kernel gives it up as soon as somebody wants memory.
    idle = _number(_named(cgroups.read(folder / "memory.stat"), idle_name)) or 0
    return max(0, limit - max(0, used - idle))


def _number(text: str) -> int | None:
    """Read a number; None where there is no limit ("max")."""
    try:
        return int(text)
    except ValueError:
        return None


def _named(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return value
    return ""
