"""What limits this process beside the machine: the files of its control groups, version 1 or 2.

A container limited to one CPU, or to a gigabyte, sees all CPUs and all memory of its machine.

Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1; proc_pid_cgroup(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of every group that limits this process: its own first.

    Of version 2 all, whether or not the controller is on in them; of version 1 only those of that
    controller.
    """
    for line in read(MEMBERSHIP).splitlines():
        # "0::/user.slice" for version 2, "4:cpu,cpuacct:/docker/f00" for version 1
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield from ((2, folder) for folder in _lineage(ROOT, path))
        elif controller in controllers.split(","):
            yield from ((1, folder) for folder in _lineage(ROOT / controller, path))


def _lineage(mount: Path, path: str) -> list[Path]:
    """Return the cgroup at *path* and its ancestors: every one of them limits its descendants.

    Inside a container *path* may be the host's name for a cgroup that is mounted here as the
    root, or lead out of it by ``..``; then the root is what is left to look at.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def read(path: Path) -> str:
    """Return what a file says, "" if it is not there or says nothing sensible."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half the system calls of `open`
    except OSError:
        return ""
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b"")).decode()
    except (OSError, UnicodeDecodeError):
        return ""
    finally:
        os.close(fd)
