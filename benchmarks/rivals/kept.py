"""How a program is run so that nothing it starts outlives it.

    python -m benchmarks.rivals.kept SECONDS COMMAND [ARGUMENT...]

Linux makes this process the parent of whoever loses its own below it, detached or not, so that in
the end all can be killed, child by child: when the command ends, when its time is up, when this is
told to end (SIGTERM), and when who started it dies. Exits as the command did, with 124 if its time
was up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SET_PDEATHSIG = 1  # of prctl(2)
SET_CHILD_SUBREAPER = 36
TOO_LONG = 124  # as of timeout(1)
TRACKERS_S = 2.0  # for trackers to end by themselves
AWAITED = (signal.SIGCHLD, signal.SIGTERM)


def run(limit_s: float, command: list[str]) -> int:
    """Run the command for so many seconds at most; its exit status, and all of it has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((SET_CHILD_SUBREAPER, 1), (SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() == 1:
        return TOO_LONG  # who started this has died before it could be heard of
    deadline = time.monotonic() + limit_s
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED),
    )
    status: int | None = None
    try:
        while status is None:
            received = signal.sigtimedwait(AWAITED, max(0.0, deadline - time.monotonic()))
            if received is None or received.si_signo == signal.SIGTERM:
                return TOO_LONG
            status = _reaped(child.pid)
    finally:
        _end_all()
    return status


def _reaped(pid: int) -> int | None:
    """Reap who has ended; the exit status of *pid*, None unless it is among them."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == pid:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def _end_all() -> None:
    """Kill children until there are none: a killed one's own become children of this process."""
    trackers_until = time.monotonic() + TRACKERS_S
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                # Python's trackers remove what others held, semaphores say, once these are gone.
                if time.monotonic() > trackers_until or not _is_tracker(pid):
                    os.kill(int(pid), signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _is_tracker(pid: str) -> bool:
    return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


if __name__ == "__main__":
    status = run(float(sys.argv[1]), sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
