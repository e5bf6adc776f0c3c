"""More calls than can be served: who gets how many, in which order, under a virtual clock."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.executor.worlds import MS, START_NS, Call, Execution, Plan, Producer, World


class ClosedLoop:
    """Producers that make their next call when they have the result of the last.

    Args:
        batches: after so many, everybody makes no more calls.
        flooders: producers, beside those, that keep all their slots full.
    """

    def __init__(self, plan: Plan, *, batches: int, flooders: int = 0) -> None:
        self.world = World(plan)
        self.left = batches
        self.served: Counter[int] = Counter()  # calls of each, by its place
        self.spread = 0  # most that one was ever ahead of another
        self.latencies_ns: list[int] = []  # of those who are no flooders
        self._places = {id(each): place for place, each in enumerate(self.world.producers)}
        self._polite = self.world.producers[flooders:]
        self._flooders = self.world.producers[:flooders]
        self.world.completed = self._completed
        self.world.at(START_NS, self._begin)

    def run(self) -> None:
        self.world.run(drain=False)

    def served_of(self, producers: list[Producer]) -> list[int]:
        return [self.served[self._places[id(each)]] for each in producers]

    @property
    def polite(self) -> list[int]:
        return self.served_of(self._polite)

    @property
    def flooding(self) -> list[int]:
        return self.served_of(self._flooders)

    def _begin(self) -> None:
        for each in self._flooders:
            self._flood(each)
        for each in self._polite:
            assert each.submit() is not None

    def _completed(self, execution: Execution) -> None:
        self.left -= 1
        for call in execution.calls:
            self._take(call)
        polite = self.polite
        if min(polite):  # else the first round is still on
            self.spread = max(self.spread, max(polite) - min(polite))
        if self.left == 0:
            self.world.drain()

    def _take(self, call: Call) -> None:
        producer = call.producer
        self.served[self._places[id(producer)]] += 1
        producer.collect()
        if producer in self._flooders:
            if self.left > 0:
                self._flood(producer)
            return
        self.latencies_ns.append(self.world.now_ns - call.at_ns)
        if self.left > 0:
            assert producer.submit() is not None

    def _flood(self, producer: Producer) -> None:
        while producer.submit() is not None:
            pass


@pytest.mark.parametrize("max_batch_size", [4, 32, 256])
def test_of_two_hundred_producers_nobody_is_ever_two_calls_ahead(max_batch_size: int) -> None:
    plan = Plan(max_batch_size=max_batch_size, wait_ns=0, duration_ns=MS, producers=200, slots=4)
    loop = ClosedLoop(plan, batches=3 * -(-200 // max_batch_size))
    loop.run()
    assert loop.spread <= 1
    assert min(loop.polite) >= 3


@pytest.mark.parametrize(("max_batch_size", "polite"), [(4, 3), (4, 15), (16, 15)])
def test_one_who_floods_doubles_the_others_latency_at_most(
    max_batch_size: int, polite: int
) -> None:
    """It has as many calls waiting as it has slots, and no more than its turn."""
    slowest, fewest = [], []
    for flooders in (0, 1):
        producers = polite + flooders
        plan = Plan(max_batch_size, wait_ns=0, duration_ns=MS, producers=producers, slots=64)
        loop = ClosedLoop(plan, batches=40, flooders=flooders)
        loop.run()
        slowest.append(max(loop.latencies_ns))
        fewest.append(min(loop.polite))
    assert slowest[1] <= 2 * slowest[0]
    assert 2 * fewest[1] >= fewest[0] - 1


def test_those_who_flood_share_what_the_others_leave() -> None:
    plan = Plan(max_batch_size=8, wait_ns=0, duration_ns=MS, producers=5, slots=16)
    loop = ClosedLoop(plan, batches=50, flooders=3)
    loop.run()
    assert max(loop.flooding) - min(loop.flooding) <= 2
    assert min(loop.polite) >= 24
