"""How shmbatch itself is put under a load, through its public interface.

The functions are those of functions.py; where a load has one call in flight and no arrivals of
its own, a producer calls `remote`, else `spawn` and `get` in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks._crew import PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import EMBED, Array, Work, text_of


def measure(
    work: Work,
    load: Load,
    warmup_s: float,
    measure_s: float,
    *,
    function: str | None = None,
    transport: str = "linux",
) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies.

    Args:
        function: Which of functions.py; None for that of the work's name.
    """
    from benchmarks import functions  # only here: the rivals must not depend on shmbatch

    with functions.app.run(wait="auto", transport=transport), Crew(PRELOAD) as crew:
        for number in range(load.producers):
            crew.add(producer, function or work.name, work, load, number)
        return crew.measure(warmup_s, measure_s)


def producer(cue: Cue, name: str, work: Work, load: Load, number: int) -> bytes:
    """Load the executor."""
    from benchmarks import functions

    function = getattr(functions, name)
    if load.is_lone:
        function = function.with_batching(max_batch_size=1, wait_ms=0)
    if work.name == EMBED.name:  # whose function takes texts

        def remote(row: Array) -> Array:
            result: Array = function.remote(text_of(row))
            return result

        def spawn(row: Array) -> Any:
            return function.spawn(text_of(row))

    else:
        remote, spawn = function.remote, function.spawn
    remote(work.inputs(number)[0])  # connects, and has a model loaded

    results: list[Array] = []
    calls: deque[Any] = deque()

    def call(x: Array) -> None:
        results.append(remote(x))

    def called(timeout_s: float | None) -> tuple[Array]:
        return (results.pop(),)

    def submit(x: Array) -> None:
        calls.append(spawn(x))

    def collect(timeout_s: float | None) -> tuple[Array, ...]:
        if timeout_s is None:
            return (calls.popleft().get(),)
        try:
            result = calls[0].get(timeout=timeout_s)
        except TimeoutError:
            return ()
        calls.popleft()
        return (result,)

    if load.in_flight == 1 and load.rate_per_s is None:
        return drive(cue, work, load, number, call, called)
    return drive(cue, work, load, number, submit, collect)
