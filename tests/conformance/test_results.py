"""What a batched function returns, and how each caller gets its own part of it."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor

import conforming
import numpy as np
import pytest

from shmbatch.errors import BatchResultError, ConfigError, ResultError
from tests.conformance.calling import outcomes
from tests.processes import PATIENCE_S, Served

# What `returns` gives back for three inputs, by the first of them.
RETURNED = [
    "tuple",
    "NoneType",
    "generator",
    "dict",
    "str",
    "int",
    "ndarray of length 3",
    "coroutine",
    "list of length 2",
    "list of length 4",
    "list of length 0",
]


def test_each_caller_gets_its_own_result(executor: Served) -> None:
    # Row 13. Spec: results. More than the 20 results that Modal sends at once.
    assert outcomes(executor.connect("double"), range(64)) == list(range(0, 128, 2))


def test_an_async_function_is_batched_as_a_sync_one(executor: Served) -> None:
    # Row 12. Spec: async.
    assert outcomes(executor.connect("double_later"), range(64)) == list(range(0, 128, 2))


@pytest.mark.parametrize("name", ["double", "double_later"])
def test_both_kinds_of_function_are_called_from_both_kinds_of_code(
    executor: Served, name: str
) -> None:
    # Row 12. Row 13. Spec: async.
    function = executor.connect(name)

    async def main() -> list[int]:
        call = await function.spawn.aio(2)
        return [await function.remote.aio(1), await call.get.aio(PATIENCE_S)]

    assert asyncio.run(main()) == [2, 4]
    assert [function.remote(1), function.spawn(2).get(PATIENCE_S)] == [2, 4]


@pytest.mark.parametrize("got", RETURNED)
def test_what_is_no_list_of_one_result_an_input_is_an_error_for_the_batch(
    executor: Served, got: str
) -> None:
    # Row 7. Row 8. Row 14. Spec: return.
    reason = f"'conforming.returns' returned a {got} for 3 inputs; it must return a list of "
    found = outcomes(executor.connect("returns"), [RETURNED.index(got), 1, 1])
    assert [type(error) for error in found] == [BatchResultError] * 3
    assert all(str(error).startswith(reason) for error in found)


def test_an_async_function_must_return_a_list_as_well(executor: Served) -> None:
    # Row 7. Row 12. Spec: return.
    for error in outcomes(executor.connect("returns_later"), [1, 2, 3]):
        assert isinstance(error, BatchResultError)
        assert "returned a tuple for 3 inputs" in str(error)


def test_an_async_function_that_returns_its_list_at_once_is_believed(executor: Served) -> None:
    # Row 14. Spec: return. Modal refuses what an async function returns unless it is a coroutine.
    assert executor.connect("hardly_async").remote(4) == -4


def test_a_stack_is_as_good_as_a_list_where_results_are_arrays(executor: Served) -> None:
    # Row 7. Modal takes lists only.
    found = outcomes(executor.connect("stacked"), [2, 3])
    assert [result.tolist() for result in found] == [[2, 4], [3, 9]]


def test_a_result_that_does_not_fit_fails_alone(executor: Served) -> None:
    # Row 6. Row 8. Spec: return. Modal pickles any result.
    one, misfit, three = outcomes(executor.connect("odd"), [1, 5, 3])
    assert (one, three) == (1, 3)
    assert isinstance(misfit, ResultError)


def test_lengths_may_differ_within_a_batch(executor: Served) -> None:
    # Row 22. Row 23. The order is that of the calls; nothing is sorted by length.
    arrays = [np.zeros(length) for length in (5, 0, 3)]
    assert outcomes(executor.connect("lengths"), arrays) == [[5, 0, 3]] * 3


def test_rows_of_different_lengths_can_be_padded(executor: Served) -> None:
    # Row 22.
    rows = [np.arange(1, 1 + length) for length in (3, 1, 2)]
    stack = [[1, 2, 3], [1, 0, 0], [1, 2, 0]]
    assert outcomes(executor.connect("padded"), rows) == [(stack, [3, 1, 2])] * 3


def test_batches_can_be_padded_to_allowed_sizes(executor: Served) -> None:
    # Row 21. Nobody gets the result of a row that pads.
    found = outcomes(executor.connect("sized"), [1, 2, 3])
    assert [x for x, _ in found] == [1, 2, 3]
    assert {size for _, size in found} <= {1, 4}


def test_threads_get_the_results_of_their_own_calls(executor: Served) -> None:
    # Spec: results.
    double = executor.connect("double")
    ranges = [range(start, start + 50) for start in (0, 100, 200, 300)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda inputs: list(double.map(inputs)), ranges))
    assert found == [[2 * x for x in inputs] for inputs in ranges]


@pytest.mark.no_transport
def test_local_is_the_plain_function_on_lists() -> None:
    # Spec: local. No executor runs, and nothing is checked.
    assert conforming.double.local([1, 2, 3]) == [2, 4, 6]
    assert conforming.double.local([]) == []
    assert conforming.double.local(["a"]) == ["aa"]
    assert conforming.subtract.local([5], ys=[3]) == [2]
    later = conforming.double_later.local([1, 2, 3])
    assert inspect.iscoroutine(later)
    assert asyncio.run(later) == [2, 4, 6]


def test_local_needs_the_function_and_not_just_its_address(executor: Served) -> None:
    # Spec: local.
    with pytest.raises(ConfigError, match="import it from its file to call it locally"):
        executor.connect("double").local([1])
