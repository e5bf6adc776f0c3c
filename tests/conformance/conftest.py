"""The executor that the tests of one theme share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import processes
from tests.processes import Gate, Served


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: Gate) -> Iterator[Served]:
    with processes.served("conforming.py", "conforming") as executor:
        yield executor
