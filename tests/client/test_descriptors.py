"""What a producer hears that may open no more descriptors: a line that says so, and no other."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmbatch
from shmbatch.errors import ShmbatchError
from tests import processes


@contextmanager
def spare(count: int) -> Iterator[None]:
    """Let this process open *count* descriptors more than those below its highest."""
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    plugs = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, before[1]))
    try:
        while True:
            try:
                plugs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                break
        for fd in plugs[len(plugs) - count :]:
            os.close(fd)
        del plugs[len(plugs) - count :]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in plugs:
            os.close(fd)


@pytest.mark.parametrize("what", ["connect", "statistics"])
def test_it_is_told_to_raise_the_limit(what: str, transport: str) -> None:
    with processes.served("flat.py", "limited"):
        function = next(iter(shmbatch.statistics("limited")["functions"]))
        asked: dict[str, Callable[[], object]] = {
            "connect": lambda: shmbatch.connect(f"limited.{function}", timeout=0),
            "statistics": lambda: shmbatch.statistics("limited"),
        }
        asked[what]()  # with all that has to be imported
        processes.hang_up()
        told = []
        for count in range(32):
            with spare(count):
                try:
                    asked[what]()
                    break
                except ShmbatchError as error:
                    told.append(str(error))
        assert 0 < len(told) < 32
        assert all("`ulimit -n`" in each for each in told), told
