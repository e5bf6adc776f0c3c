"""How many CPUs this process may keep busy: the affinity mask, and the quota of its cgroups.

A container limited to one CPU sees all CPUs of its machine, though executor and producers take
turns there. `doctor` says so, and `tune` has no more producers than that leaves room for.

Source: Linux Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and cgroup-v1
(``cpu.cfs_quota_us``, ``cpu.cfs_period_us``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import cgroups


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
    for version, folder in cgroups.folders("cpu"):
        if version == 2:
            yield from _pair(cgroups.read(folder / "cpu.max"))
        else:
            quota = cgroups.read(folder / "cpu.cfs_quota_us")
            yield from _pair(f"{quota} {cgroups.read(folder / 'cpu.cfs_period_us')}")


def _pair(text: str) -> list[tuple[int, int]]:
    """Read ``<quota> <period>``; nothing where there is no limit ("max", -1) or no sense in it."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return []
    return [(quota, period)] if quota > 0 and period > 0 else []
