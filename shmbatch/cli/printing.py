"""How the command line writes results, durations, amounts of memory, and tables."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Collection, Iterator, Sequence

import click

from ..errors import ConfigError

_STDOUT = 1


def say(text: str = "") -> None:
    """Print a line of a result.

    Raises:
        ConfigError: standard output takes no more.
    """
    try:
        click.echo(text)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # nobody reads it any more, which ends a command without a word
        _let_go_nowhere(_STDOUT)
        raise ConfigError(f"cannot write to standard output: {error.strerror}") from error


def leave_terminals_that_hung_up() -> None:
    """Let go of what they have not taken, so that the exit status is not Python's 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:  # as somebody may have left them
            continue
        try:
            stream.flush()
        except OSError as error:
            if error.errno == errno.EIO:
                _let_go_nowhere(stream.fileno())


def _let_go_nowhere(descriptor: int) -> None:
    """Have a descriptor take what is left in its buffer, which would be tried again at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def printable(text: str) -> str:
    """Return *text* with what would move the cursor, or cannot be written, escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def duration(seconds: float) -> str:
    """Say how long in the two largest units: 4s, 3m 4s, 2h 3m, 1d 2h."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"


def memory(nbytes: int) -> str:
    """Say how much in KiB, MiB or GiB."""
    if nbytes < 1 << 20:
        return f"{nbytes / 1024:.1f} KiB"
    if nbytes < 1 << 30:
        return f"{nbytes / 1024**2:.1f} MiB"
    return f"{nbytes / 1024**3:.1f} GiB"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> Iterator[str]:
    """Yield aligned lines, to the left but for the columns in *right*."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
