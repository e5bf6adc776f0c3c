"""`shmbatch start` under valgrind, which before 3.21 does not let a process have its own pidfd.

    python -m benchmarks._served_counted VALGRIND... -- FILE OPTIONS...

So the process opens it before it becomes valgrind's; everything else is the executor as it is.
"""

from __future__ import annotations

import os
import sys

INSIDE = "--inside"


def become_valgrinds() -> None:
    """Replace this process by valgrind, running this module, with a pidfd of itself."""
    separator = sys.argv.index("--")
    pidfd = os.pidfd_open(os.getpid())
    os.set_inheritable(pidfd, True)
    again = [sys.executable, "-m", "benchmarks._served_counted", INSIDE, str(pidfd)]
    valgrind = sys.argv[1:separator]
    os.execvp(valgrind[0], [*valgrind, *again, *sys.argv[separator + 1 :]])


def serve(pidfd: int, arguments: list[str]) -> None:
    own = os.getpid()
    pidfd_open = os.pidfd_open

    def opened(pid: int, flags: int = 0) -> int:
        return os.dup(pidfd) if pid == own else pidfd_open(pid, flags)

    os.pidfd_open = opened
    sys.argv = ["shmbatch", "start", *arguments]
    from shmbatch.cli import main

    main()


if __name__ == "__main__":
    if sys.argv[1] == INSIDE:
        serve(int(sys.argv[2]), sys.argv[3:])
    else:
        become_valgrinds()
