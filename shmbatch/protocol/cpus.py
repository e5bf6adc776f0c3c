"""How many CPUs this process may keep busy: the affinity mask, and the quota of its cgroups.

A container limited to one CPU sees all CPUs of its machine, and spinning there spends the quota
that the peer needs. So waiting ``auto`` asks here whether a CPU is spare.

Source: Linux Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and cgroup-v1
(``cpu.cfs_quota_us``, ``cpu.cfs_period_us``); proc_pid_cgroup(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs can work for this process at once, at least 1.

    A quota of one and a half CPUs counts as two. Limits that cannot be read do not count. Reads
    a few small files; the answer may change while the process runs.
    """
    limits = [len(os.sched_getaffinity(0))]
    for quota, period in _quotas():
        limits.append(-(-quota // period))
    return min(limits)


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield (quota, period) of every cgroup that limits this process, in microseconds."""
    for line in _read(MEMBERSHIP).splitlines():
        # "0::/user.slice" for version 2, "4:cpu,cpuacct:/docker/f00" for version 1
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            for directory in _lineage(CGROUP_ROOT, path):
                yield from _pair(_read(directory / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for directory in _lineage(CGROUP_ROOT / "cpu", path):
                quota = _read(directory / "cpu.cfs_quota_us")
                yield from _pair(f"{quota} {_read(directory / 'cpu.cfs_period_us')}")


def _lineage(mount: Path, path: str) -> list[Path]:
    """Return the cgroup at *path* and its ancestors: every one of them limits its descendants.

    Inside a container *path* may be the host's name for a cgroup that is mounted here as the
    root, or lead out of it by ``..``; then the root is what is left to look at.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _pair(text: str) -> list[tuple[int, int]]:
    """Read ``<quota> <period>``; nothing where there is no limit ("max", -1) or no sense in it."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return []
    return [(quota, period)] if quota > 0 and period > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
