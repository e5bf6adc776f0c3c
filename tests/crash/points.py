"""Kills processes at one of their points after the other, until a run passes without a kill."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.native.compiling import LOAD, PROTOCOL, compile_core
from tests.processes import Program

SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]
SOAK = [pytest.mark.soak, pytest.mark.timeout(3600)]
HERE = Path(__file__).parent
CALM = 3  # runs without a kill that end it: how many points a run passes varies by a few

_MAIN = f"""{LOAD}
import os
os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), 2)
from tests.crash import dying
dying.main()
"""

Recorder = Callable[[str, object], None]  # pytest's `record_property`


def build(folder: Path) -> Path:
    """Compile the core with fault points."""
    flags = ("-Wall", "-Werror", "-include", str(HERE / "faults.h"))
    return compile_core(folder, flags, [*sorted(PROTOCOL.glob("*.c")), HERE / "faults.c"])


@dataclass(frozen=True)
class End:
    """How a child ended."""

    status: int  # negative: the signal that killed it
    passed: int  # points
    site: str | None  # at which it killed itself; None: it did not
    seen: list[str] = field(default_factory=list)  # sites that it passed, where it was not to


class Victims:
    """A process that forks others, one after the other, to be killed; see `dying`."""

    def __init__(self, core: Path, log: Path, **variables: str) -> None:
        self._log = log
        self._program = Program(_MAIN, core, log, **variables)
        self.sites: list[str] = self.line()["sites"]  # all that the core has

    def fork(self, role: str, *arguments: str, points: str = "core", at: int = 0) -> None:
        """Have one forked that kills itself at its *at*-th point; 0: at none."""
        order = {"role": role, "arguments": arguments, "points": points, "at": at}
        self._program.tell(json.dumps(order))

    def line(self) -> dict[str, Any]:
        """What it says next, or its end."""
        try:
            answer: dict[str, Any] = json.loads(self._program.line())
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._log.read_text()[-4000:]}") from None
        return answer

    def end(self, *, supervised: bool = False) -> End:
        """Wait for its end."""
        while "status" not in (answer := self.line()):
            pass
        return self.ended(answer, supervised=supervised)

    def ended(self, answer: dict[str, Any], *, supervised: bool = False) -> End:
        """Read the answer that says how it ended: at its point, or well.

        Args:
            supervised: it is a supervisor, whose executor may have been killed in its stead.
        """
        assert "status" in answer, answer
        end = End(**answer)
        expected = {-signal.SIGKILL} if end.site is not None else {0}
        if supervised:
            expected |= {0, 128 + signal.SIGKILL}
        assert end.status in expected, f"{end}\n{self._log.read_text()[-4000:]}"
        return end

    def close(self) -> None:
        self._program.close()
        logged = self._log.read_text()
        before, traceback, after = logged.partition("Traceback")
        assert not traceback, f"{before[-1000:]}{traceback}{after[:3000]}"


@contextmanager
def victims(core: Path, **variables: str) -> Iterator[Victims]:
    with tempfile.NamedTemporaryFile(prefix="shmb-faults-") as log:
        started = Victims(core, Path(log.name), **variables)
        try:
            yield started
        finally:
            started.close()


def enumerate_points(run: Callable[[int], End], step: int, record: Recorder) -> None:
    """Call *run* with every *step*-th number, until no kill happens any more.

    How many there were can be read in the file of pytest's ``--junitxml``.
    """
    kills, last = 0, 0
    at, calm = 1, 0
    while calm < (CALM if step == 1 else 1):
        end = run(at)
        if end.site is None:
            calm += 1
        else:
            calm, kills, last = 0, kills + 1, at
        at += step
    assert kills, "nothing was killed"
    record("kills", kills)
    record("last point", last)
