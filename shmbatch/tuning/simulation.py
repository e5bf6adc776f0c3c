"""What latency and throughput to expect: calls at random times, the real `Batcher`, no real time.

One executor that holds one batch at a time. When it is free it does what its `Batcher` says, as
the executor's loop does; how long a batch keeps it is for `Service` to say. The time is the
simulation's own.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence

from ..contract.batching import BatchParameters
from ..executor.batcher import NEVER_NS, Batcher

Outcome = tuple[int, int]  # when a call came, when its batch was over; nanoseconds


def simulated(
    parameters: BatchParameters,
    arrivals: Sequence[int],
    calls: int,
    service: Callable[[int], int],
    again: Callable[[int], int] | None = None,
) -> list[Outcome]:
    """Return what became of the first *calls* calls, and their batch-mates, in order.

    Args:
        arrivals: when calls come.
        service: how long a batch of so many calls takes.
        again: when the caller of a call that was over at a time calls again; None if it does not.
    """
    batcher = Batcher(parameters.max_batch_size, parameters.wait_ns)
    coming = list(arrivals)
    heapq.heapify(coming)
    waiting: deque[int] = deque()
    outcomes: list[Outcome] = []
    at_ns = 0
    while len(outcomes) < calls and (coming or waiting):
        while coming and coming[0] <= at_ns:
            waiting.append(heapq.heappop(coming))
        batcher.observe(len(waiting), waiting[0] if waiting else NEVER_NS, at_ns, False)
        if batcher.reason is None:
            at_ns = min(coming[0] if coming else NEVER_NS, batcher.due_ns)
            continue
        size = min(len(waiting), parameters.max_batch_size)
        batcher.sealed()
        at_ns += service(size)  # whoever comes meanwhile waits at least until then
        for _ in range(size):
            outcomes.append((waiting.popleft(), at_ns))
            if again is not None:
                heapq.heappush(coming, again(at_ns))
    return outcomes


def throughput(
    parameters: BatchParameters,
    outstanding: int,
    service: Callable[[int], int],
    way_ns: float,
) -> float:
    """Return calls a second where so many callers wait for each answer and then call again.

    Args:
        way_ns: from a batch's end until its callers have called again.
    """
    calls = 40 * max(outstanding, parameters.max_batch_size)
    outcomes = simulated(
        parameters, [0] * outstanding, calls, service, lambda at_ns: at_ns + int(way_ns)
    )
    begin_ns, end_ns = outcomes[len(outcomes) // 4][1], outcomes[-1][1]  # once it is as it stays
    return sum(over_ns > begin_ns for _, over_ns in outcomes) / max(1, end_ns - begin_ns) * 1e9


def latencies_ns(
    parameters: BatchParameters,
    rate: float,
    calls: int,
    service: Callable[[int], int],
    way_ns: Sequence[float],
    seed: int,
) -> list[float]:
    """Return how long calls take that come at random times, *rate* a second on average.

    Args:
        way_ns: what some calls took beside waiting and their batch, to draw from.
    """
    draw = random.Random(seed)
    arrivals = []
    at_s = 0.0
    # Others come after them, or the last ones would wait for company in vain.
    for _ in range(calls + 2 * parameters.max_batch_size):
        at_s += draw.expovariate(rate)
        arrivals.append(int(at_s * 1e9))
    outcomes = simulated(parameters, arrivals, calls, service)[:calls]
    return [end_ns - came_ns + draw.choice(way_ns) for came_ns, end_ns in outcomes]
