"""An executor on the device and producers that load it, all in processes of their own.

::

    this process             executor (app.run)        producer 0..n (spawn, numpy only)
      load(work) --task---------------------------->   connects, says that it is ready
                 --schedule------------------------>   a closed loop until the schedule's end,
                                <---------calls-----   every answer checked
                 <--when which call ended-----------   drains
      ask(...)   ------------>  `functions.ask`

No process forks once CUDA is initialised: the producers are fresh, and hold neither torch nor a
device. They serve for many loads, since starting one takes half a second.
"""

from __future__ import annotations

import json
import secrets
import time
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._crew import CONTEXT, PATIENCE_S, Schedule
from benchmarks._works import WrongAnswer
from benchmarks.gpu._setting import Setting

Array = NDArray[Any]
RESULTS = 16  # as in functions.py, which needs torch


@dataclass(frozen=True)
class Load:
    """What each producer is to do in a closed loop: so many calls of a function in flight."""

    function: str
    shape: tuple[int, ...]
    in_flight: int
    answered: bool = True  # with the first numbers times two plus one; else, with the input
    wait: str | None = None  # of the producers
    compared: bool = True  # else whoever loads compares, with other inputs

    def inputs(self, random: np.random.Generator) -> list[Array]:
        """One more than are in flight, so that another call's result is never the right one."""
        return [random.random(self.shape, np.float32) for _ in range(self.in_flight + 1)]

    def answer(self, x: Array) -> bytes:
        """Return the bytes of the one right result."""
        if not self.answered:
            return x.tobytes()
        return (x.reshape(-1)[:RESULTS] * np.float32(2) + np.float32(1)).tobytes()


@dataclass(frozen=True)
class Ended:
    """When calls ended, and how long they had taken; nanoseconds, of all producers."""

    schedule: Schedule
    at_ns: NDArray[np.int64]
    took_ns: NDArray[np.int64]

    def rates(self, windows: int) -> list[float]:
        """Return the calls per second of equal parts of the schedule."""
        edges = np.linspace(self.schedule.begin_ns, self.schedule.end_ns, windows + 1)
        counts, _ = np.histogram(self.at_ns, edges)
        return [float(count) / ((edges[1] - edges[0]) / 1e9) for count in counts]

    def took(self, windows: int) -> list[NDArray[np.int64]]:
        """Return how long the calls took that ended in each of equal parts of the schedule."""
        edges = np.linspace(self.schedule.begin_ns, self.schedule.end_ns, windows + 1)
        return [self.took_ns[(self.at_ns >= a) & (self.at_ns < b)] for a, b in pairwise(edges)]


class Stand:
    """The executor is running; producers are started as they are needed."""

    def __init__(self) -> None:
        from benchmarks.gpu import functions

        self.functions = functions
        self._members: list[tuple[SpawnProcess, Connection]] = []

    def ask(self, question: str) -> Any:
        """Ask the executor; see `functions.ask`."""
        return json.loads(self.functions.ask.remote(question))

    def load(
        self,
        work: Load,
        setting: Setting,
        *,
        producers: int | None = None,
        windows: int | None = None,
        meanwhile: Callable[[Schedule], object] = lambda schedule: None,
    ) -> Ended:
        """Load a function for *windows* runs of the setting.

        Args:
            meanwhile: called as soon as the producers have their schedule.
        """
        count = setting.producers if producers is None else producers
        while len(self._members) < count:
            self._add()
        members = self._members[:count]
        for number, (_, pipe) in enumerate(members):
            pipe.send((work, number))
        for _, pipe in members:
            _received(pipe, "ready", PATIENCE_S)
        begin_ns = time.monotonic_ns() + int(1e9 * setting.warmup_s)
        parts = setting.runs if windows is None else windows
        measure_s = setting.window_s * parts
        schedule = Schedule(begin_ns, begin_ns + int(1e9 * measure_s))
        for _, pipe in members:
            pipe.send(schedule)
        meanwhile(schedule)
        patience_s = max(0.0, schedule.end_ns - time.monotonic_ns()) / 1e9 + PATIENCE_S
        ends = [_received(pipe, "done", patience_s) for _, pipe in members]
        at_ns, took_ns = (
            np.concatenate([np.frombuffer(each[which], np.int64) for each in ends])
            for which in (0, 1)
        )
        ended = Ended(schedule, at_ns, took_ns)
        if not all(ended.rates(parts)):
            if not setting.rehearsal:
                raise RuntimeError(
                    f"{work.function}: a run in which no call ended; {parts} runs, "
                    f"{len(at_ns)} calls in {measure_s:.1f} s"
                )
            # On a busy machine, where it does not matter: as if one had ended in each.
            at_ns = np.linspace(begin_ns, schedule.end_ns, 2 * parts + 1).astype(np.int64)[1::2]
            ended = Ended(schedule, at_ns, np.full(parts, 1000, np.int64))
        return ended

    def close(self) -> None:
        for _, pipe in self._members:
            pipe.close()  # which ends the producer
        for process, _ in self._members:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._members.clear()

    def _add(self) -> None:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_producer, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._members.append((process, ours))


@contextmanager
def standing(setting: Setting, *, wait: str | None = None) -> Iterator[Stand]:
    """Start an executor on the setting's device; in a rehearsal there is one already."""
    if setting.shared is not None:
        yield setting.shared
        return
    from benchmarks.gpu import functions

    with functions.app.run(device=setting.device, wait=wait):
        stand = Stand()
        try:
            yield stand
        finally:
            stand.close()


def _received(pipe: Connection, expected: str, patience_s: float) -> Any:
    if not pipe.poll(patience_s):
        raise TimeoutError(f"a producer is not {expected} in {patience_s:.0f} s")
    kind, value = pipe.recv()
    if kind != expected:
        raise RuntimeError(f"a producer is {kind}, not {expected}:\n{value}")
    return value


def _producer(pipe: Connection) -> None:
    """Take tasks until the pipe ends."""
    try:
        while True:
            work, number = pipe.recv()
            pipe.send(("done", _driven(pipe, work, number)))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _driven(pipe: Connection, work: Load, number: int) -> tuple[bytes, bytes]:
    import shmbatch

    seed = [secrets.randbits(63), number]
    random = np.random.default_rng(seed)
    inputs = work.inputs(random)
    next_input = cycle(inputs).__next__
    next_answer = cycle([work.answer(x) for x in inputs]).__next__
    function = shmbatch.connect(f"gpu.{work.function}", arrays="numpy", wait=work.wait)
    spawn, compared = function.spawn, work.compared
    pipe.send(("ready", None))
    schedule = pipe.recv()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns
    clock = time.monotonic_ns
    at_ns, took_ns = array("q"), array("q")
    calls: deque[tuple[int, Any]] = deque()
    for _ in range(work.in_flight):
        calls.append((clock(), spawn(next_input())))
    while calls:
        since_ns, call = calls.popleft()
        result = call.get()
        now_ns = clock()
        answer = next_answer()
        if compared and result.tobytes() != answer:
            raise WrongAnswer(
                f"{work.function} (seed {seed}) answered {result.reshape(-1)[:4]}..., right is "
                f"{np.frombuffer(answer, np.float32)[:4]}..."
            )
        if now_ns < end_ns:
            if now_ns >= begin_ns:
                at_ns.append(now_ns)
                took_ns.append(now_ns - since_ns)
            calls.append((now_ns, spawn(next_input())))
    return at_ns.tobytes(), took_ns.tobytes()
