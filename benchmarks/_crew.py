"""How the processes of one measurement start, begin together, and end.

::

    parent                          member (one fresh process each)
      add(target, ...)   --spawn-->   imports, connects, allocates
      begin(...)         <--ready--   cue.ready() blocks
                         -schedule->  warms up until begin_ns, measures until end_ns
      finish(...)        <--result-   target returns
      leaving `with`:    joins; whoever is still there is killed

The schedule is in nanoseconds of the monotonic clock, which all processes of a machine share:
every member measures the same stretch of time.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

CONTEXT = multiprocessing.get_context("spawn")
PRELOAD = ("benchmarks._load",)  # what drives producers
PATIENCE_S = 60.0  # no step but the measurement itself takes a fraction of this


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a member warms up (from now on), measures, and stops."""

    begin_ns: int
    end_ns: int


class Cue:
    """A member's end of the start barrier."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ready(self) -> Schedule:
        """Say that this member is ready and block until all are."""
        self._pipe.send(("ready", None))
        schedule = self._pipe.recv()
        assert isinstance(schedule, Schedule)
        return schedule


class Crew:
    """The processes of one measurement; a context manager that leaves none behind.

    Args:
        preload: Modules that are imported by one process, of which all members are then forks:
            with 64 of them a measurement would spend half a minute on imports otherwise. As of
            the first such crew of a process. Without any every member is a fresh process.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._members: list[tuple[BaseProcess, Connection]] = []
        self._context: SpawnContext | ForkServerContext = CONTEXT
        if preload:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(preload))

    def __enter__(self) -> Self:
        return self

    def add(self, target: Callable[..., Any], *args: Any) -> None:
        """Start a process that runs ``target(cue, *args)``; both must be picklable."""
        ours, theirs = CONTEXT.Pipe()
        # A fork's own environment is that of the time of the first crew.
        everything = (theirs, target, args, dict(os.environ))
        process = self._context.Process(target=_member, args=everything, daemon=True)
        process.start()
        theirs.close()
        self._members.append((process, ours))

    def begin(self, warmup_s: float, measure_s: float) -> Schedule:
        """Wait until all members are ready, then hand them their schedule."""
        self._collect("ready", PATIENCE_S)
        begin_ns = time.monotonic_ns() + int(warmup_s * 1e9)
        schedule = Schedule(begin_ns, begin_ns + int(measure_s * 1e9))
        for _, pipe in self._members:
            pipe.send(schedule)
        return schedule

    def finish(self, schedule: Schedule) -> list[Any]:
        """Wait for what the members' targets return, in the order of adding."""
        left_s = max(0, schedule.end_ns - time.monotonic_ns()) / 1e9
        return self._collect("done", left_s + PATIENCE_S)

    def measure(self, warmup_s: float, measure_s: float) -> list[Any]:
        """Begin and finish."""
        return self.finish(self.begin(warmup_s, measure_s))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, _ in self._members:
            if kind is not None:
                process.kill()
        for process, pipe in self._members:
            process.join(PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
            pipe.close()
        self._members.clear()

    def _collect(self, expected: str, patience_s: float) -> list[Any]:
        """Receive one message from every member; the first failure of any ends the wait."""
        deadline = time.monotonic() + patience_s
        received: dict[Connection, Any] = {}
        while len(received) < len(self._members):
            pending = [pipe for _, pipe in self._members if pipe not in received]
            arrived = wait(pending, deadline - time.monotonic())
            if not arrived:
                raise TimeoutError(f"{len(pending)} members not {expected} in {patience_s:.0f} s")
            for pipe in arrived:
                assert isinstance(pipe, Connection)
                try:
                    kind, value = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"a member died before it was {expected}") from None
                if kind != expected:
                    raise RuntimeError(f"a member is {kind}, not {expected}:\n{value}")
                received[pipe] = value
        return [received[pipe] for _, pipe in self._members]


def _member(
    pipe: Connection,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    try:
        result = target(Cue(pipe), *args)
    except Exception:
        pipe.send(("failed", traceback.format_exc()))
    else:
        pipe.send(("done", result))
