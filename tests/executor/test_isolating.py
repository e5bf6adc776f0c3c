"""A batch that failed, in parts: which run, how many do, and what everybody gets."""

# ruff: noqa: F722, F821, UP037 - jaxtyping reads these strings

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

import shmbatch
from shmbatch.executor.isolating import Parts
from shmbatch.testing import Simulation, check_batching


class Some:
    """Rows, by their numbers."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)

    @property
    def count(self) -> int:
        return len(self.rows)

    def split(self, at: int) -> Some:
        assert 0 < at < len(self.rows)
        rest = Some(self.rows[at:])
        del self.rows[at:]
        return rest


def isolated(size: int, fails: Callable[[list[int]], bool]) -> tuple[list[int], list[int], int]:
    """Run a batch of *size*; return who succeeded, who failed, and in how many executions."""
    parts: Parts[Some] = Parts()
    good: list[int] = []
    bad: list[int] = []
    part = Some(range(size))
    for executions in range(1, 10_000):
        rows = part.rows
        if not fails(list(rows)):
            good += rows
            if parts:
                parts.succeeded()
        elif len(rows) == 1:
            bad += rows
            parts.unsure()
        else:
            parts.raised(part)
        if not parts:
            return good, bad, executions
        part = parts.next(size)
    raise AssertionError("it does not end")


def most(n: int, k: int) -> float:
    return 2 * k * math.log2(n) + 1


# ---- how many executions ----------------------------------------------------------------------


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
@settings(max_examples=300)
def test_bad_inputs_fail_alone_within_the_bound(case: tuple[int, set[int]]) -> None:
    n, wrong = case
    good, bad, executions = isolated(n, lambda rows: not wrong.isdisjoint(rows))
    assert sorted(bad) == sorted(wrong)
    assert sorted(good + bad) == list(range(n))
    assert executions <= most(n, len(wrong))


def test_one_bad_input_wherever_it_is_stays_within_the_bound() -> None:
    for n in range(2, 65):
        worst = max(isolated(n, lambda rows, at=at: at in rows)[2] for at in range(n))  # type: ignore[misc]
        assert worst <= most(n, 1)
        if n & (n - 1) == 0:
            assert worst == most(n, 1)  # so it is exact


def test_the_bound_holds_for_the_worst_of_all_sets_of_bad_inputs() -> None:
    """By dynamic programming over part sizes, in place of 2**64 sets."""
    known: dict[tuple[int, int], int] = {}

    def whole(size: int, wrong: int) -> int:
        if wrong == 0 or size == 1:
            return 1
        return 1 + halves(size, wrong)

    def halves(size: int, wrong: int) -> int:
        if (size, wrong) in known:
            return known[size, wrong]
        first = size // 2
        second = size - first
        worst = 0
        for left in range(max(0, wrong - second), min(first, wrong) + 1):
            if left:
                taken = whole(first, left) + whole(second, wrong - left)
            else:
                taken = 1 + (1 if second == 1 else halves(second, wrong))
            worst = max(worst, taken)
        known[size, wrong] = worst
        return worst

    for n in range(2, 65):
        for k in range(1, n + 1):
            assert whole(n, k) <= most(n, k), (n, k)
        assert whole(n, n) == 2 * n - 1
    for n in range(1, 9):  # and it is what `Parts` does
        counts = [0] * (n + 1)
        for mask in range(1 << n):
            wrong = {at for at in range(n) if mask >> at & 1}
            taken = isolated(n, lambda rows, wrong=wrong: not wrong.isdisjoint(rows))[2]  # type: ignore[misc]
            counts[len(wrong)] = max(counts[len(wrong)], taken)
        assert counts == [whole(n, k) for k in range(n + 1)]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_function_that_fails_at_random_gives_everybody_an_outcome(n: int, random: Any) -> None:
    good, bad, executions = isolated(n, lambda rows: random.random() < 0.4)
    assert sorted(good + bad) == list(range(n))
    assert executions <= 2 * n - 1


@given(st.integers(1, 64), st.integers(1, 64))
def test_what_is_too_large_is_cut_to_what_there_is_room_for(n: int, room: int) -> None:
    parts: Parts[Some] = Parts()
    part, limit, ran = Some(range(n)), n, []
    while True:
        if part.count > room:
            limit = part.count // 2
            parts.too_large(part)
        else:
            ran.append(part.rows)
            if parts:
                parts.succeeded()
        if not parts:
            break
        part = parts.next(limit)
    assert [row for rows in ran for row in rows] == list(range(n))
    assert limit >= min(n, (room + 1) // 2)


# ---- in a simulated executor ------------------------------------------------------------------


def isolating(function: Callable[..., Any], **options: Any) -> Any:
    options = {"max_batch_size": 8, "wait_ms": 1, "on_error": "isolate"} | options
    return shmbatch.batched(**options)(function)


@contextmanager
def called(target: Any, *inputs: Any) -> Iterator[tuple[Simulation, list[Any]]]:
    """Make one call with each input, run, and give the outcomes."""
    with Simulation(target) as simulation:
        producer = simulation.producer()
        calls = [producer.call(*each) for each in inputs]
        simulation.run()
        yield simulation, [call.error() or call.get() for call in calls]


def refuses_negative(xs: list[int]) -> list[int]:
    if min(xs) < 0:
        raise ValueError(f"{min(xs)} of {xs}")
    return [10 * x for x in xs]


def test_batch_mates_get_their_results_and_the_bad_one_its_own_error() -> None:
    target = isolating(refuses_negative)
    with called(target, *((x,) for x in (1, 2, 3, -4, 5, 6, 7, 8))) as (simulation, outcomes):
        assert [outcomes[at] for at in (0, 1, 2, 4, 5, 6, 7)] == [10, 20, 30, 50, 60, 70, 80]
        error = outcomes[3]
        assert isinstance(error, ValueError)
        assert str(error) == "-4 of [-4]"  # alone, not that of the whole batch
        assert "refuses_negative" in "".join(error.__notes__)
        assert simulation.batches.calls == [
            [1, 2, 3, 4, 5, 6, 7, 8],
            *([1, 2, 3, 4], [1, 2], [3], [4]),
            [5, 6, 7, 8],
        ]
        assert [each.retried for each in simulation.batches] == [False] + 5 * [True]


def test_every_bad_call_has_an_exception_of_its_own() -> None:
    with called(isolating(refuses_negative), (-1,), (-2,), (-3,)) as (_, outcomes):
        assert [str(each) for each in outcomes] == ["-1 of [-1]", "-2 of [-2]", "-3 of [-3]"]


def test_a_batch_raises_for_all_where_nothing_else_was_asked_for() -> None:
    with called(isolating(refuses_negative, on_error="raise"), (1,), (-2,)) as (made, outcomes):
        assert [str(each) for each in outcomes] == ["-2 of [1, -2]", "-2 of [1, -2]"]
        assert len(made.batches) == 1


@given(st.lists(st.booleans(), min_size=1, max_size=16))
@settings(max_examples=50)
def test_executions_of_a_real_loop_stay_within_the_bound(good: list[bool]) -> None:
    target = isolating(refuses_negative, max_batch_size=16)
    inputs = [(at if fine else -1 - at,) for at, fine in enumerate(good)]
    with called(target, *inputs) as (simulation, outcomes):
        assert [isinstance(each, ValueError) for each in outcomes] == [not each for each in good]
        k = good.count(False)
        assert len(simulation.batches) <= (most(len(good), k) if len(good) > 1 else 1)


def test_inputs_that_the_function_changed_before_it_raised_are_whole_again() -> None:
    def doubles(xs: Int64[np.ndarray, "batch"]) -> Int64[np.ndarray, "batch"]:
        xs *= 2
        if (xs < 0).any():
            raise ValueError("negative")
        return xs

    with called(isolating(doubles), (np.int64(1),), (np.int64(-2),), (np.int64(3),)) as (_, found):
        assert [found[0], found[2]] == [2, 6]
        assert isinstance(found[1], ValueError)


def test_stacks_and_padding_to_allowed_sizes() -> None:
    seen: list[int] = []

    def norm(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch"]:
        seen.append(len(xs))
        if bool((xs[:, 0] < 0).any()):
            raise ValueError("negative")
        return xs.sum(1)

    target = isolating(norm, batch_sizes=(1, 4, 8))
    import torch

    inputs = [(torch.tensor([x, 1.0, 1.0]),) for x in (1.0, -2.0, 3.0, 4.0, 5.0)]
    with called(target, *inputs) as (_, outcomes):
        assert [float(outcomes[at]) for at in (0, 2, 3, 4)] == [3.0, 5.0, 6.0, 7.0]
        assert isinstance(outcomes[1], ValueError)
    assert set(seen) <= {1, 4, 8}


def test_padded_rows_of_varying_lengths() -> None:
    def total(
        xs: Float32[np.ndarray, "batch seq"],
    ) -> Float32[np.ndarray, "batch"]:
        rows, lengths = xs
        assert rows.shape == (len(lengths), max(lengths))  # no longer than this part needs
        if (rows < 0).any():
            raise ValueError("negative")
        return rows.sum(1)

    target = isolating(total, max_lengths={"seq": 9}, ragged="pad")
    rows = [
        np.full(length, sign, np.float32) for length, sign in ((1, 1), (9, -1), (2, 1), (3, 1))
    ]
    with called(target, *((row,) for row in rows)) as (_, outcomes):
        assert [float(outcomes[at]) for at in (0, 2, 3)] == [1.0, 2.0, 3.0]
        assert isinstance(outcomes[1], ValueError)


def test_an_async_function_suspends_in_every_part_and_others_run_meanwhile() -> None:
    app = shmbatch.App("mixed")
    order: list[str] = []

    async def slow(xs: list[int]) -> list[int]:
        order.append(f"slow {xs}")
        await asyncio.sleep(0.01)
        if min(xs) < 0:
            raise ValueError("negative")
        return xs

    def quick(xs: list[int]) -> list[int]:
        order.append(f"quick {xs}")
        return xs

    handles = [
        app.function()(isolating(slow)),
        app.function()(shmbatch.batched(max_batch_size=1, wait_ms=0)(quick)),
    ]
    with Simulation(app) as simulation:
        first, second = (simulation.producer(each) for each in handles)
        calls = [first.call(x) for x in (1, -2, 3)]
        simulation.at(0.015, lambda: calls.append(second.call(7)))
        simulation.run()
        assert [call.error() or call.get() for call in calls[:1] + calls[2:]] == [1, 3, 7]
        assert isinstance(calls[1].error(), ValueError)
    at = order.index("quick [7]")
    assert 1 < at < len(order) - 1  # between two parts


def test_between_two_parts_a_function_that_was_due_before_has_its_turn() -> None:
    app = shmbatch.App("mixed")
    order: list[str] = []

    def bad(xs: list[int]) -> list[int]:
        order.append("bad")
        raise ValueError

    def good(xs: list[int]) -> list[int]:
        order.append("good")
        return xs

    handles = [
        app.function()(isolating(bad)),
        app.function()(shmbatch.batched(max_batch_size=1, wait_ms=0)(good)),
    ]
    with Simulation(app, duration=0.01) as simulation:
        first, second = (simulation.producer(each) for each in handles)
        for _ in range(8):
            first.call(1)
        for _ in range(4):
            simulation.at(0.005, lambda: second.call(1))
        simulation.run()
    assert order.count("bad") == 15
    assert "good" in order[1:3]
    assert order[-1] == "bad"


def test_other_calls_of_the_function_wait_until_its_batch_is_over() -> None:
    with Simulation(isolating(refuses_negative), duration=0.01) as simulation:
        producer = simulation.producer()
        for x in (1, -2, 3, 4):
            producer.call(x)
        simulation.at(0.005, lambda: producer.call(9))
        simulation.run()
        assert simulation.batches.calls[-1] == [5]
        assert [each for each in simulation.batches.calls[:-1] if 5 in each] == []


def test_a_call_that_was_given_up_is_not_run_again() -> None:
    with Simulation(isolating(refuses_negative), duration=0.01) as simulation:
        producer = simulation.producer()
        calls = [producer.call(x) for x in (-1, 2, 3, 4)]
        simulation.at(0.005, calls[0].cancel)
        simulation.run()
        assert [call.get() for call in calls[1:]] == [20, 30, 40]
        assert simulation.batches.calls == [[1, 2, 3, 4], [2], [3, 4]]
        again = simulation.producer()  # every slot came back
        assert len([again.call(1) for _ in range(64)]) == 64
        free = producer.attachment.producer.free_slots
        assert free == simulation.functions[0].capacity


def test_the_calls_of_a_producer_that_died_are_not_run_again() -> None:
    with Simulation(isolating(refuses_negative), duration=0.01) as simulation:
        dies, lives = simulation.producer(), simulation.producer()
        dies.call(-1)
        call = lives.call(2)
        simulation.at(0.005, dies.leave)
        simulation.run()
        assert call.get() == 20
        assert simulation.batches.calls == [[1, 2], [2]]


def test_a_wrong_length_is_everybodys_at_once() -> None:
    with called(isolating(lambda xs: xs[1:]), (1,), (2,)) as (simulation, outcomes):
        assert all(isinstance(each, shmbatch.errors.BatchResultError) for each in outcomes)
        assert len(simulation.batches) == 1


def test_a_function_that_exits_hurts_nobody_but_who_made_it() -> None:
    def leaves(xs: list[int]) -> list[int]:
        if 0 in xs:
            raise SystemExit(3)
        return xs

    with called(isolating(leaves), (1,), (0,), (2,)) as (_, outcomes):
        assert [outcomes[0], outcomes[2]] == [1, 2]
        assert isinstance(outcomes[1], shmbatch.errors.RemoteError)


def test_what_is_drained_is_isolated_to_the_end() -> None:
    with Simulation(isolating(refuses_negative, wait_ms=1000)) as simulation:
        producer = simulation.producer()
        calls = [producer.call(x) for x in (1, -2, 3)]
        simulation.drain()
        assert [calls[0].get(), calls[2].get()] == [10, 30]
        assert isinstance(calls[1].error(), ValueError)


def test_the_contract_holds_with_bad_inputs_anywhere() -> None:
    check_batching(
        isolating(refuses_negative, max_batch_size=5),
        inputs=st.tuples(st.integers(-2, 6)),
        max_examples=60,
    )


def test_the_contract_holds_in_lockstep_for_an_async_function() -> None:
    async def refuses(xs: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return refuses_negative(xs)

    check_batching(
        isolating(refuses, max_batch_size=4, lockstep=True),
        inputs=st.tuples(st.integers(-2, 6)),
        max_examples=60,
    )


@pytest.mark.slow
def test_a_batch_in_pieces_does_not_share_its_errors() -> None:
    """What `check_batching` would say, were the whole batch given the one error."""

    def shares(xs: list[int]) -> list[int]:
        return refuses_negative(xs)

    with pytest.raises(AssertionError, match="I7 is broken"):
        check_batching(
            _raises_for_all(shares), inputs=st.tuples(st.integers(-2, 6)), max_examples=60
        )


def _raises_for_all(function: Callable[..., Any]) -> Any:
    """As a function is that was to isolate and hands the error to everybody."""

    def returns(xs: list[int]) -> list[Any]:
        try:
            return list(function(xs))
        except ValueError as error:
            return [error for _ in xs]

    return isolating(returns)
