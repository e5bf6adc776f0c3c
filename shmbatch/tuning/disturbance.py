"""How long this thread could have run and had no CPU, because others had it.

A machine on which something is tuned is rarely idle. What others take says nothing of the
function, so it is taken off what was timed.

Source: Linux Documentation/scheduler/sched-stats.rst, ``/proc/<pid>/schedstat``.
"""

from __future__ import annotations

import os
from contextlib import suppress


class Disturbance:
    """Reads how long the thread that makes it has waited for a CPU; nothing where none is told."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):  # a kernel without CONFIG_SCHED_INFO
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def waited_ns(self) -> int:
        """Return how long until now. Cost: one system call."""
        if self._fd < 0:
            return 0
        return int(os.pread(self._fd, 100, 0).split()[1])  # run time, wait time, turns

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
