"""The core with fault points, and the processes that fork those which are to be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import points
from tests.crash.points import Victims


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return points.build(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def victims(core: Path, transport: str) -> Iterator[Victims]:
    with points.victims(core) as started:
        yield started


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What functions write down that the children of `supervisors` execute."""
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    path.touch()
    return path


@pytest.fixture(scope="module")
def supervisors(core: Path, ledger: Path, transport: str) -> Iterator[Victims]:
    with points.victims(core, SHMBATCH_TEST_LEDGER=str(ledger)) as started:
        yield started
