"""What the systems of the throughput benchmark are asked to do, and the load they do it under.

Every system serves the same works under the same closed loop: a producer keeps exactly
`in_flight` calls outstanding and submits a new one for every result it receives.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._crew import Cue

PRODUCERS = 4
IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Work:
    """A batched function and its batching parameters.

    `function` writes the results of a stack of inputs into a stack of results; the functions
    of functions.py, which shmbatch serves, compute the same.
    """

    name: str
    function: Callable[[NDArray[Any], NDArray[Any]], object]
    dtype: str
    shape: tuple[int, ...]
    result_shape: tuple[int, ...]
    max_batch_size: int
    wait_ns: int
    variety: int  # different inputs per producer; over in_flight, so a stale result is noticed
    producers: int = PRODUCERS
    in_flight: int = IN_FLIGHT

    @property
    def row_nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    @property
    def result_nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.result_shape))

    def batch(self) -> NDArray[Any]:
        """A stack for the largest batch, its pages touched."""
        return np.ones((self.max_batch_size, *self.shape), self.dtype)

    def results(self) -> NDArray[Any]:
        return np.ones((self.max_batch_size, *self.result_shape), self.dtype)

    def inputs(self, producer: int) -> list[NDArray[Any]]:
        """Inputs that no other producer has, the same in every run."""
        random = np.random.default_rng(producer)
        return [random.random(self.shape).astype(self.dtype) for _ in range(self.variety)]

    def answers(self, inputs: list[NDArray[Any]]) -> list[bytes]:
        """The bytes of the one right result of each input."""
        result = np.empty((1, *self.result_shape), self.dtype)
        answers = []
        for x in inputs:
            self.function(x[None], result)
            answers.append(result.tobytes())
        return answers


def add_one(batch: NDArray[Any], results: NDArray[Any]) -> object:
    return np.add(batch, 1, out=results)


def first_thousand_doubled(batch: NDArray[Any], results: NDArray[Any]) -> object:
    return np.multiply(batch.reshape(len(batch), -1)[:, :1000], 2, out=results)


TINY = Work("tiny", add_one, "float64", (2,), (2,), 32, 1_000_000, 64)
IMAGE = Work(
    "image",
    first_thousand_doubled,
    "float32",
    (3, 224, 224),
    (1000,),
    16,
    2_000_000,
    IN_FLIGHT + 1,
)


class WrongAnswer(AssertionError):
    """A system gave a result that is not its input's; its speed then means nothing."""


def check(result: NDArray[Any], answer: bytes) -> None:
    """Raise WrongAnswer unless the result has exactly these bytes."""
    if result.tobytes() != answer:
        raise WrongAnswer(
            f"got {result[:4]}..., expected {np.frombuffer(answer, result.dtype)[:4]}..."
        )


def drive(
    cue: Cue,
    work: Work,
    producer: int,
    submit: Callable[[NDArray[Any]], object],
    collect: Callable[[], Iterable[NDArray[Any]]],
) -> bytes:
    """Load one producer until the schedule ends, then drain it.

    Args:
        submit: Submits one input without waiting for its result.
        collect: Blocks until at least one result is there and returns all that are, in the
            order of submission.

    Returns:
        The latencies of all calls that ended between begin and end, int64 nanoseconds as
        bytes: from just before an input is submitted until its result is there.
    """
    inputs = work.inputs(producer)
    next_input = cycle(inputs).__next__
    next_answer = cycle(work.answers(inputs)).__next__
    started = array("q", [0]) * work.in_flight
    latencies = array("q")
    in_flight = work.in_flight
    schedule = cue.ready()
    begin_ns, end_ns = schedule.begin_ns, schedule.end_ns

    for i in range(in_flight):
        started[i] = monotonic_ns()
        submit(next_input())
    done, outstanding = 0, in_flight
    while outstanding:
        for result in collect():
            now = monotonic_ns()
            slot = done % in_flight
            done += 1
            answer = next_answer()
            if result.tobytes() != answer:
                check(result, answer)
            if now < end_ns:
                if now >= begin_ns:
                    latencies.append(now - started[slot])
                started[slot] = now
                submit(next_input())
            else:
                outstanding -= 1
    return latencies.tobytes()
