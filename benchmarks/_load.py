"""How producers load a system: how many, with how many calls each, and when these begin.

Closed loop: a producer keeps exactly `in_flight` calls outstanding, and makes a new one for every
result that it receives. A call's latency runs from just before its input is submitted.

Open loop: calls arrive as a Poisson process, whether or not those before them are answered; each
producer has its share of the rate. A producer that has `in_flight` calls outstanding makes the
next one late, yet its latency runs from when it was to begin: a stall is counted for all whom it
holds up, not for those only whom it hits.

A lone call, one producer with one in flight, waits for no company: see `Work.alone`.

A producer is driven by one of two functions, as its system would have it: `drive` by one thread
that submits and collects, `drive_async` by calls that are awaited. Both check every answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from time import monotonic_ns

import numpy as np

from benchmarks._crew import Cue, Schedule
from benchmarks._works import Array, Work, check


@dataclass(frozen=True, slots=True)
class Load:
    """So many producers, with so many calls outstanding each at most.

    `rate_per_s` is that of all producers together in an open loop; None: a closed loop.
    """

    producers: int
    in_flight: int
    rate_per_s: float | None = None

    @property
    def is_lone(self) -> bool:
        """Whether there is one call at a time; works are then asked for as `Work.alone` says."""
        return self.producers == self.in_flight == 1


FOUR_BY_EIGHT = Load(4, 8)


class Answers:
    """The inputs of one producer in the order of its calls, and whether results are right."""

    def __init__(self, work: Work, load: Load, producer: int) -> None:
        self.inputs = work.inputs(producer, load.in_flight)
        self._right = work.answers(self.inputs)
        self._tolerance = work.tolerance
        #: The bytes that were right last, by number: nothing but these need no check.
        self.expected = [answer.tobytes() for answer in self._right]
        # Batches of another size may round otherwise: what was right once needs no arithmetic.
        self._known = [{answer} for answer in self.expected]

    def numbered(self) -> Iterator[tuple[int, Array]]:
        """Inputs without end, each with the number that `check` wants."""
        return cycle(enumerate(self.inputs))

    def check(self, number: int, result: Array) -> None:
        """Raise WrongAnswer unless this is the result of the input of that number."""
        got = result.tobytes()
        if got != self.expected[number]:
            if got not in self._known[number]:
                check(result, self._right[number], self._tolerance)
                self._known[number].add(got)
            self.expected[number] = got


def arrivals(load: Load, producer: int, schedule: Schedule) -> Iterator[int]:
    """When the calls of one producer are to begin, from now until the schedule ends.

    Nanoseconds of the monotonic clock, the gaps between them exponential; the same in every run.
    """
    assert load.rate_per_s is not None
    random = np.random.default_rng([1, producer])
    mean_ns = 1e9 * load.producers / load.rate_per_s
    at = float(monotonic_ns())
    while True:
        for gap in random.exponential(mean_ns, 1024):
            at += gap
            if at >= schedule.end_ns:
                return
            yield int(at)


def drive(
    cue: Cue,
    work: Work,
    load: Load,
    producer: int,
    submit: Callable[[Array], object],
    collect: Callable[[float | None], Iterable[Array]],
) -> bytes:
    """Load one producer until the schedule ends, then drain it.

    Args:
        submit: Submits one input without waiting for its result.
        collect: Blocks until at least one result is there, or for so many seconds (None: for
            ever), and returns all that are there, in the order of submission.

    Returns:
        The latencies, int64 nanoseconds as bytes: in the closed loop of all calls that ended
        between begin and end, in the open loop of all that were to begin between them.
    """
    answers = Answers(work, load, producer)
    if load.rate_per_s is None:
        return _drive_closed(cue, load, answers, submit, collect)
    return _drive_open(cue, load, producer, answers, submit, collect)


def _drive_closed(
    cue: Cue,
    load: Load,
    answers: Answers,
    submit: Callable[[Array], object],
    collect: Callable[[float | None], Iterable[Array]],
) -> bytes:
    in_flight = load.in_flight
    next_input = cycle(answers.inputs).__next__
    next_number = cycle(range(len(answers.inputs))).__next__
    expected = answers.expected
    started = array("q", [0]) * in_flight
    latencies = array("q")
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns

    for i in range(in_flight):
        started[i] = monotonic_ns()
        submit(next_input())
    done, outstanding = 0, in_flight
    while outstanding:
        for result in collect(None):
            now = monotonic_ns()
            slot = done % in_flight
            done += 1
            number = next_number()
            if result.tobytes() != expected[number]:
                answers.check(number, result)
            if now < end_ns:
                if now >= begin_ns:
                    latencies.append(now - started[slot])
                started[slot] = now
                submit(next_input())
            else:
                outstanding -= 1
    return latencies.tobytes()


def _drive_open(
    cue: Cue,
    load: Load,
    producer: int,
    answers: Answers,
    submit: Callable[[Array], object],
    collect: Callable[[float | None], Iterable[Array]],
) -> bytes:
    next_input = cycle(answers.inputs).__next__
    next_number = cycle(range(len(answers.inputs))).__next__
    intended: deque[int] = deque()
    latencies = array("q")
    schedule = cue.ready()

    def receive(timeout_s: float | None) -> None:
        for result in collect(timeout_s):
            now = monotonic_ns()
            answers.check(next_number(), result)
            begin = intended.popleft()
            if begin >= schedule.begin_ns:
                latencies.append(now - begin)

    for begin in arrivals(load, producer, schedule):
        while len(intended) == load.in_flight:
            receive(None)
        while (left_ns := begin - monotonic_ns()) > 0:
            if intended:
                receive(left_ns / 1e9)
            else:
                time.sleep(left_ns / 1e9)
        intended.append(begin)
        submit(next_input())
    while intended:
        receive(None)
    return latencies.tobytes()


async def drive_async(
    cue: Cue,
    work: Work,
    load: Load,
    producer: int,
    call: Callable[[Array], Awaitable[Array]],
) -> bytes:
    """Do the same with calls that are awaited; each may end before those made earlier."""
    answers = Answers(work, load, producer)
    numbered = answers.numbered()
    latencies = array("q")
    schedule = cue.ready()

    async def call_over_and_over() -> None:
        now = monotonic_ns()
        while now < schedule.end_ns:
            number, x = next(numbered)
            start = now
            result = await call(x)
            now = monotonic_ns()
            answers.check(number, result)
            if schedule.begin_ns <= now < schedule.end_ns:
                latencies.append(now - start)

    async def call_once(begin: int) -> None:
        try:
            async with free:
                number, x = next(numbered)
                result = await call(x)
                now = monotonic_ns()
            answers.check(number, result)
        except BaseException:
            failed.set()
            raise
        if begin >= schedule.begin_ns:
            latencies.append(now - begin)

    def begin_call(begin: int) -> None:
        if not failed.is_set():  # else there are no more tasks
            tasks.create_task(call_once(begin))

    def begin_in_time() -> None:
        """Be a thread: an event loop's timers are late by up to a millisecond."""
        for begin in arrivals(load, producer, schedule):
            time.sleep(max(0.0, (begin - monotonic_ns()) / 1e9))
            if failed.is_set():
                return
            loop.call_soon_threadsafe(begin_call, begin)

    failed = threading.Event()
    free = asyncio.Semaphore(load.in_flight)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        if load.rate_per_s is not None:
            await asyncio.to_thread(begin_in_time)
        else:
            for _ in range(load.in_flight):
                tasks.create_task(call_over_and_over())
    return latencies.tobytes()
