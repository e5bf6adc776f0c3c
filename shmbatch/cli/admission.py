"""The options of ``start`` that say who may come, how many, and how much memory they get."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..executor.room import Quotas
    from ..protocol.access import Access

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Nbytes(click.ParamType[int]):
    """Bytes, as 512M; K, M, G and T are powers of 1024."""

    name = "bytes"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})(?:B|([KMGT])(?:i?B)?)?", value)
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is no number of bytes, such as 800000, 512M or 2G.", param)
        return int(found[1]) * _UNITS[found[2] or ""]


@dataclass(frozen=True)
class Admission:
    """What was said on the command line, checked as far as it can be without an executor."""

    allow_uid: tuple[str, ...]
    allow_gid: tuple[str, ...]
    max_producers: int | None
    max_memory_per_producer: int | None
    max_memory: int | None

    def check(self, transport: str) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: there is no such user or group, or *transport* is for one user.
        """
        if self.access() and transport == "posix":
            raise ConfigError(
                "--allow-uid and --allow-gid do not go with transport posix: its semaphores are "
                "files of one user, and who may write them may end the executor; use transport "
                "linux"
            )

    def access(self) -> Access:
        """Return who is let in.

        Raises:
            ConfigError: there is no such user or group.
        """
        from ..protocol.access import Access, groups, users

        return Access(users(self.allow_uid, "--allow-uid"), groups(self.allow_gid, "--allow-gid"))

    def quotas(self) -> Quotas:
        """Return what producers may have."""
        from ..executor.room import Quotas

        return Quotas(self.max_producers, self.max_memory_per_producer, self.max_memory)

    def arguments(self) -> list[str]:
        """Return the same as a command line has it."""
        line: list[str] = []
        for option, values in {
            "--allow-uid": self.allow_uid,
            "--allow-gid": self.allow_gid,
            "--max-producers": (self.max_producers,),
            "--max-memory-per-producer": (self.max_memory_per_producer,),
            "--max-memory": (self.max_memory,),
        }.items():
            for value in values:
                if value is not None:
                    line += [option, str(value)]
        return line


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the options, and what they say as its argument ``admission``."""

    @click.option(
        "--allow-uid",
        metavar="UID|NAME",
        multiple=True,
        help="Let processes of this user attach too. May be given several times.",
    )
    @click.option(
        "--allow-gid",
        metavar="GID|NAME",
        multiple=True,
        help="Let processes of this group attach too. May be given several times.",
    )
    @click.option(
        "--max-producers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Let in so many producers at the same time; by default 4096, or what `ulimit -n` "
        "allows.",
    )
    @click.option(
        "--max-memory-per-producer",
        type=Nbytes(),
        metavar="BYTES",
        help="Give one producer of one function so much shared memory at most, as 512M; by "
        "default 256M, but for functions that say slots=.",
    )
    @click.option(
        "--max-memory",
        type=Nbytes(),
        metavar="BYTES",
        help="Give all producers together so much shared memory at most, as 8G; by default half "
        "of what the machine or its cgroup has.",
    )
    @functools.wraps(command)
    def with_admission(
        *arguments: Any,
        allow_uid: tuple[str, ...],
        allow_gid: tuple[str, ...],
        max_producers: int | None,
        max_memory_per_producer: int | None,
        max_memory: int | None,
        **others: Any,
    ) -> None:
        admission = Admission(
            allow_uid, allow_gid, max_producers, max_memory_per_producer, max_memory
        )
        command(*arguments, admission=admission, **others)

    return with_admission
