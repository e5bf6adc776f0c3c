"""Calls at random times, under a clock of their own."""

from __future__ import annotations

from statistics import fmean

import pytest

from shmbatch.contract.batching import BatchParameters
from shmbatch.tuning.simulation import latencies_ns, simulated, throughput

MS = 1_000_000


def test_a_lone_call_waits_its_wait_ms_and_then_runs() -> None:
    parameters = BatchParameters(4, 5 * MS)
    assert simulated(parameters, [7], 1, lambda size: 2 * MS) == [(7, 7 + 7 * MS)]


def test_a_full_batch_waits_for_nothing() -> None:
    parameters = BatchParameters(2, 5 * MS)
    outcomes = simulated(parameters, [0, 1 * MS], 2, lambda size: 2 * MS)
    assert outcomes == [(0, 3 * MS), (1 * MS, 3 * MS)]


def test_while_a_batch_runs_the_next_one_fills() -> None:
    sizes = []

    def service(size: int) -> int:
        sizes.append(size)
        return 10 * MS

    simulated(BatchParameters(3, 0), [0, 1 * MS, 2 * MS, 3 * MS, 4 * MS], 5, service)
    assert sizes == [1, 3, 1]


def test_only_as_many_calls_as_asked_for_are_followed() -> None:
    assert len(simulated(BatchParameters(1, 0), range(100), 10, lambda size: 1)) == 10


def test_one_at_a_time_calls_wait_as_queueing_theory_says() -> None:
    # M/D/1: the mean wait is rho * service / (2 * (1 - rho)); Pollaczek-Khinchine.
    for rho in (0.3, 0.6, 0.8):
        latencies = latencies_ns(
            BatchParameters(1, 0), rho * 1000, 60_000, lambda size: MS, [0.0], seed=1
        )
        wait_ns = fmean(latencies) - MS
        assert wait_ns == pytest.approx(rho * MS / (2 * (1 - rho)), rel=0.1)


def test_the_way_there_and_back_is_added_to_each_call() -> None:
    latencies = latencies_ns(BatchParameters(1, 0), 1, 50, lambda size: MS, [3.0, 5.0], seed=1)
    assert {latency - MS for latency in latencies} == {3.0, 5.0}


def test_saturated_batches_are_full_and_follow_each_other() -> None:
    parameters = BatchParameters(8, 600 * MS)
    assert throughput(parameters, 24, lambda size: 2 * MS, 0) == pytest.approx(4000)
    # A second batch fills while the first one runs, if its callers are back by then.
    assert throughput(parameters, 16, lambda size: 2 * MS, 1 * MS) == pytest.approx(4000)
    assert throughput(parameters, 16, lambda size: 2 * MS, 4 * MS) == pytest.approx(
        2 * 8 / 6e-3, rel=0.02
    )


def test_with_too_few_callers_every_batch_waits() -> None:
    parameters = BatchParameters(8, 6 * MS)
    assert throughput(parameters, 4, lambda size: 2 * MS, 0) == pytest.approx(4 / 8e-3, rel=0.02)


def test_the_last_calls_have_company_too() -> None:
    # 1000 calls a second fill a batch of 10 long before its ten seconds are over.
    parameters = BatchParameters(10, 10_000 * MS)
    latencies = latencies_ns(parameters, 1000, 55, lambda size: 0, [0.0], seed=1)
    assert len(latencies) == 55
    assert max(latencies) < 100 * MS
