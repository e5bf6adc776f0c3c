"""A folder for programs, and a directory of sockets that no other test has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import environment


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have names served in a directory of this test's own; at the end none may be left."""
    with tempfile.TemporaryDirectory(prefix="shmbatch-", dir="/tmp") as folder:
        path = Path(folder)
        for name, value in environment(SHMBATCH_DIR=folder).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SHMBATCH_NAMES", raising=False)
        yield path
        assert sorted(path.iterdir()) == [], "a name is left"
