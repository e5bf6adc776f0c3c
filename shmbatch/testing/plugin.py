"""What pytest offers where shmbatch is installed: fixtures `executor` and `kill_executor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..app.app import App
    from .executors import ExecutorProcess, HasPid


@pytest.fixture
def executor(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., ExecutorProcess]]:
    """Start executors for one test: ``executor("sums.py")``, ``executor(app)``.

    Each is a process of its own, under a private name. They are stopped after the test, which
    fails where one of them has not ended well. Options are those of `ExecutorProcess`; a relative
    path is looked for beside the test's file first.
    """
    from . import executors  # nothing is loaded for tests that use none

    started: list[ExecutorProcess] = []

    def start(
        target: App | Path | str,
        *,
        app: str | None = None,
        transport: str | None = None,
        device: str | None = None,
        wait: str | None = None,
    ) -> ExecutorProcess:
        file, name = executors.file_of(target, request.path.parent)
        process = executors.ExecutorProcess(
            file, app=app or name, transport=transport, device=device, wait=wait
        )
        started.append(process)
        return process

    yield start
    troubles = []
    for process in reversed(started):
        try:
            process.stop()
        except AssertionError as error:
            troubles.append(str(error))
    if troubles:
        pytest.fail("\n".join(troubles), pytrace=False)


@pytest.fixture
def kill_executor() -> Callable[[HasPid | int], None]:
    """Kill an executor with SIGKILL, by its pidfd, and wait until it is dead.

    Takes what the fixture `executor` or `App.run` gave, or a pid.
    """
    from . import executors

    return executors.kill
