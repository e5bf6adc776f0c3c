"""A batch in parts on a CUDA device, with another one in flight behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbatch.contract.failing import failure_options
from shmbatch.errors import BatchResultError
from tests.executor.fake_gpu import FakeGpu, Policy
from tests.executor.test_cuda import POLICIES, Rig

ISOLATE = failure_options(on_error="isolate")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"direct_dma": True},
    {"batch_sizes": (1, 4)},
    {"batch_sizes": (2, 4), "cuda_graphs": True, "direct_dma": True},
]


class Retrying(Rig):
    """Takes the loop's steps for batches in parts, too."""

    def launch(self) -> int:
        if not self.served.idle and self.served.retries.waiting:
            self.served.relaunch()
            return 1
        return super().launch()


def refusing(bad: frozenset[int]) -> Any:
    """Return a function that looks at the first column of its rows, and doubles them."""

    def function(rows: Any) -> Any:
        if not bad.isdisjoint(map(int, rows[:, 0].tolist())):
            raise ValueError("bad")
        return rows * 2

    return function


@given(
    bad=st.frozensets(st.integers(1, 14), max_size=4),
    order=st.lists(st.booleans(), max_size=30),
    options=st.sampled_from(OPTIONS[:3]),
    policy=st.sampled_from(POLICIES),
)
@settings(max_examples=40, deadline=None)
def test_only_bad_calls_fail_whatever_else_is_in_flight(
    bad: frozenset[int], order: list[bool], options: dict[str, Any], policy: Policy
) -> None:
    rig = Retrying(FakeGpu(policy), refusing(bad), failing=ISOLATE, slots=8, **options)
    for client in rig.clients:
        rig.submit(client, 7)
    for launches in order:
        if launches:
            rig.launch()
        else:
            rig.complete()
    while rig.launch() or rig.served.flights or rig.served.retries.waiting:
        rig.complete()
    rig.finish()
    assert set(rig.outcomes) == set(range(1, 15))
    assert set(rig.wrong()) == bad
    assert all(isinstance(each, ValueError) for each in rig.wrong().values())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_memory_that_runs_out_on_the_device_halves_the_batch(options: dict[str, Any]) -> None:
    def function(rows: Any) -> Any:
        if len(rows) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return rows * 2

    rig = Retrying(FakeGpu("lazy"), function, failing=failure_options(idempotent=True), **options)
    rig.submit(rig.clients[0], 4)
    while rig.launch() or rig.served.flights or rig.served.retries.waiting:
        rig.complete()
    rig.finish()
    assert rig.wrong() == {}
    # Two calls take the room of four where there is no smaller size for them.
    room = 1 if options.get("batch_sizes") == (1, 4) else 2
    assert rig.served.counts(0)["memory_limit"] == room


def test_a_wrong_number_of_results_is_everybodys_on_a_device_too() -> None:
    for options in ({}, {"batch_sizes": (4,)}):  # without and with rows to cut off
        rig = Retrying(FakeGpu("eager"), lambda rows: rows[1:], failing=ISOLATE, **options)
        rig.submit(rig.clients[0], 3)
        assert rig.launch()
        rig.complete()
        assert [type(each) for each in rig.outcomes.values()] == 3 * [BatchResultError]
        assert rig.served.counts(0)["halved"] == 0
        rig.finish()


def test_no_other_batch_is_launched_while_one_is_in_pieces() -> None:
    rig = Retrying(FakeGpu("lazy"), refusing(frozenset({2})), failing=ISOLATE, slots=16)
    rig.submit(rig.clients[0], 12)
    assert [rig.launch(), rig.launch()] == [4, 4]
    rig.complete()  # the first one failed; the second one is still in flight
    assert rig.served.idle == []
    rig.complete()
    assert rig.served.idle == []
    while rig.served.retries.waiting or rig.served.flights:
        rig.launch()
        rig.complete()
    assert len(rig.served.idle) == 2
    assert sorted(rig.outcomes) == list(range(1, 9))
    rig.finish()
    assert set(rig.wrong()) == {2}
