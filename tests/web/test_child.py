"""A child of `shmbatch serve` that does not end when it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from shmbatch.errors import ExecutorGone
from shmbatch.web import child
from shmbatch.web.child import Child

pytestmark = pytest.mark.no_transport


def test_one_that_is_suspended_is_killed_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "_REAP_S", 0.05)

    async def reaps() -> int:
        one = Child(
            "it",
            lambda fd: [sys.executable, "-c", "import signal; signal.pause()"],
            fds=(),
            environment=os.environ,
            gone=ExecutorGone,
        )
        os.kill(one.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, one.pid, os.WSTOPPED)  # or it would die of what comes next
        one.hurry()
        one.reap()
        return await one.ended()

    assert asyncio.run(reaps()) == -signal.SIGKILL
