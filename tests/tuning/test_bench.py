"""Batches that an executor's own code runs in this process."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float32

import shmbatch
from shmbatch.errors import ConfigError
from shmbatch.executor.staging.devices import Cpu
from shmbatch.protocol.clock import now_ns
from shmbatch.tuning.bench import Bench, TooLarge
from shmbatch.tuning.disturbance import Disturbance
from shmbatch.tuning.examples import Examples, examples_for

Rows = Float32[np.ndarray, "batch 2"]
Wide = Float32[np.ndarray, "batch 65536"]


@contextmanager
def bench(function: Any, examples: Examples | None = None, **options: Any) -> Iterator[Bench]:
    app = shmbatch.App("app")
    app.function()(shmbatch.batched(max_batch_size=8, wait_ms=1, **options)(function))
    (definition,) = app.definitions.values()
    events = asyncio.new_event_loop()
    try:
        if examples is None:
            examples = examples_for(definition.signature, "app.f", None)
        timing = Bench(definition, Cpu(), events if definition.is_async else None, examples)
        yield timing
        timing.close()
    finally:
        events.close()


def test_each_run_is_a_whole_batch_of_the_examples_in_turn() -> None:
    batches: list[list[int]] = []

    def f(xs: list[int]) -> list[int]:
        batches.append(xs)
        return xs

    with bench(f, Examples([(0,), (1,), (2,)], "three inputs")) as timing:
        samples = timing.timed(2, 0)
    assert len(samples.total_ns) == len(samples.function_ns) == 5
    assert batches == [[0, 1], [2, 0], [1, 2], [0, 1], [2, 0], [1, 2], [0, 1]]
    pairs = zip(samples.function_ns, samples.total_ns, strict=True)
    assert all(0 < function_ns <= total_ns for function_ns, total_ns in pairs)


def test_more_time_gives_more_runs_up_to_some() -> None:
    def f(rows: Rows) -> Rows:
        return rows

    with bench(f) as timing:
        assert len(timing.timed(1, 60).total_ns) == 300
        assert len(timing.timed(64, 0).total_ns) == 5


def test_batches_are_larger_than_the_decorator_allows_and_not_padded() -> None:
    lengths = set()

    def f(rows: Rows) -> Rows:
        lengths.add(len(rows))
        return rows

    with bench(f, batch_sizes=(1, 8)) as timing:
        timing.timed(33, 0)
    assert lengths == {33}


def test_an_async_function_that_suspends_is_waited_for() -> None:
    async def f(xs: list[int]) -> list[int]:
        await asyncio.sleep(0.001)
        return xs

    with bench(f) as timing:
        assert min(timing.timed(3, 0).total_ns) > 1_000_000


def test_what_others_took_is_no_more_the_functions_than_its_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def f(rows: Wide) -> Wide:
        return rows

    # Three quarters of the time, of which the function has next to nothing.
    monkeypatch.setattr(Disturbance, "waited_ns", lambda self: now_ns() * 3 // 4)
    with bench(f) as timing:
        samples = timing.timed(16, 0)
    assert min(samples.function_ns) > 1


def test_a_function_that_raises_on_the_examples_is_reported() -> None:
    def f(xs: list[int]) -> list[int]:
        raise ZeroDivisionError("nothing to divide by")

    with (
        bench(f) as timing,
        pytest.raises(
            ConfigError,
            match=r"f fails on a batch of 3, inputs made .*"
            r"ZeroDivisionError: nothing to divide by",
        ),
    ):
        timing.timed(3, 0)


def test_a_function_that_returns_something_else_is_reported() -> None:
    def f(xs: list[int]) -> list[int]:
        return xs[:1]

    with bench(f) as timing, pytest.raises(ConfigError, match=r"BatchResultError: .*length 1"):
        timing.timed(3, 0)


def test_memory_that_the_machine_does_not_have_is_not_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(nbytes: int) -> None:
        raise OSError(errno.ENOMEM, "there is no more")

    def f(xs: list[int]) -> list[int]:
        return xs

    monkeypatch.setattr("shmbatch.tuning.bench.check_memory", refused)
    with bench(f) as timing, pytest.raises(TooLarge, match=r"no memory for 4 calls: .*no more"):
        timing.timed(4, 0)


def test_a_batch_for_which_there_is_no_memory_is_too_large() -> None:
    def f(xs: list[bytes]) -> list[int]:
        if len(xs) > 1:
            raise MemoryError("all gone")
        return [0]

    one = Examples([(b"",)], "one input")
    with (
        bench(f, one, max_bytes=2**32) as timing,
        pytest.raises(TooLarge, match="no memory for 65536 calls"),
    ):
        timing.timed(65_536, 0)
    with bench(f, one) as timing:
        assert timing.timed(1, 0).total_ns
        with pytest.raises(TooLarge, match="no memory for 2 calls: MemoryError: all gone"):
            timing.timed(2, 0)
