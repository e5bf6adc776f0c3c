"""Kills processes at one of their points after the other, until a run passes without a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmbatch.protocol import _core
from tests.processes import Program

HERE = Path(__file__).parent
PROTOCOL = Path(_core.__file__).parent
SPREAD_S = 0.1  # of random moments; a producer's calls take half as long
CALM = 3  # runs without a kill that end it: how many points a run passes varies by a few

# Loads the core that it is told, under the name of the installed one, before anything else does.
_MAIN = """
import os, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("shmbatch.protocol._core", sys.argv[1])
sys.modules[spec.name] = core = module_from_spec(spec)
spec.loader.exec_module(core)
import shmbatch.protocol
shmbatch.protocol._core = core
os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), 2)
from tests.crash import dying
dying.main()
"""


def build(folder: Path) -> Path:
    """Compile the core with fault points."""
    from tests.native.test_ring_stress import (
        path_of,  # imported late: `reaching` needs this module
    )

    core = folder / "_core.abi3.so"
    done = subprocess.run(
        [
            *(path_of("gcc"), "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC"),
            *("-DPy_LIMITED_API=0x030B0000", "-include", str(HERE / "faults.h")),
            *(f"-I{sysconfig.get_path('include')}", f"-I{PROTOCOL}"),
            *(*map(str, sorted(PROTOCOL.glob("*.c"))), str(HERE / "faults.c"), "-o", str(core)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return core


@dataclass(frozen=True)
class End:
    """How a child ended."""

    status: int  # negative: the signal that killed it
    passed: int  # points
    site: str | None  # at which it killed itself; None: it did not
    seen: list[str] = field(default_factory=list)  # sites that it passed, where it was not to


class Victims:
    """A process that forks others, one after the other, to be killed; see `dying`."""

    def __init__(self, core: Path, log: Path) -> None:
        self._log = log
        self._program = Program(_MAIN, core, log)
        self._pid = 0  # of the one that lives now
        self._at_random = False  # it is killed by us, or not in time
        self.sites: list[str] = self.line()["sites"]  # all that the core has

    def fork(self, role: str, *arguments: str, points: str = "core", at: int = 0) -> None:
        """Have one forked that kills itself at its *at*-th point; 0: at none."""
        order = {"role": role, "arguments": arguments, "points": points, "at": at}
        self._program.tell(json.dumps(order))
        self._pid = self.line()["pid"]

    @contextmanager
    def killing(self, chance: random.Random) -> Iterator[None]:
        """Kill the one that was forked at a random moment, unless it has ended within this."""
        try:
            pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError:  # it was quicker
            yield
            return
        timer = threading.Timer(chance.uniform(0, SPREAD_S), _kill, [pidfd])
        self._at_random = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            os.close(pidfd)
            self._at_random = False

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
        if self._at_random:
            expected |= {-signal.SIGKILL}
        assert end.status in expected, f"{end}\n{self._log.read_text()[-4000:]}"
        return end

    def close(self) -> None:
        self._program.close()
        logged = self._log.read_text()
        assert "Traceback" not in logged, logged[-4000:]


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


@contextmanager
def victims(core: Path) -> Iterator[Victims]:
    with tempfile.NamedTemporaryFile(prefix="shmb-faults-") as log:
        started = Victims(core, Path(log.name))
        try:
            yield started
        finally:
            started.close()


@dataclass
class Visits:
    """What one enumeration has visited."""

    role: str
    kind: str  # of its points
    step: int = 0
    kills: int = 0
    last: int = 0  # point at which one was killed


def enumerate_points(role: str, kind: str, run: Callable[[int], End], step: int) -> Visits:
    """Call *run* with every *step*-th number, until no kill happens any more."""
    visits = Visits(role, kind, step)
    at, calm = 1, 0
    while calm < (CALM if step == 1 else 1):
        end = run(at)
        if end.site is None:
            calm += 1
        else:
            calm = 0
            visits.kills += 1
            visits.last = at
        at += step
    assert visits.kills, f"{role}: nothing was killed"
    return visits
