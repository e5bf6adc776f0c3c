"""The command line with which one process starts an executor as another."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path


def command(
    file: Path | str,
    *options: str,
    name: str | None,
    app: str | None,
    transport: str | None,
    device: str | None,
    wait: str | None,
    ready_fd: int,
) -> list[str]:
    """Return the command line of an executor that reports to *ready_fd*."""
    line = [sys.executable, "-P", "-m", "shmbatch", "start", str(file), *options]
    for option, value in {
        "--name": name,
        "--app": app,
        "--transport": transport,
        "--device": device,
        "--wait": wait,
        "--ready-fd": str(ready_fd),
    }.items():
        if value is not None:
            line += [option, value]
    return line


def kept(fd: int) -> int:
    """Return the descriptor to pass on instead of *fd*, which this closes.

    It is none of the three standard ones, which the other process gets from elsewhere: they are
    what `os.pipe` returns in a process that has closed its own.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
