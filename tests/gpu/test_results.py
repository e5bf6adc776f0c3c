"""What comes back from a real device: right results, to the right callers, in the right form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shmbatch
from shmbatch import errors
from shmbatch.contract.columns import WIRE_DTYPES
from tests.gpu.conftest import REHEARSED, serving
from tests.processes import Program, Served, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.no_transport]

CALLER = """
import sys
import numpy as np
import shmbatch
name, number = sys.argv[1], int(sys.argv[2])
double = shmbatch.connect(f"{name}.double", arrays="numpy")
random = np.random.default_rng(number)
for turn in range(20):
    rows = random.random((25, 4), np.float32)
    for row, result in zip(rows, double.map(rows), strict=True):
        assert np.array_equal(result, row * 2), (row, result)
print("right", flush=True)
"""


@pytest.fixture(scope="module")
def dtypes(device: str) -> Iterator[Served]:
    yield from serving("dtypes.py", "dtypes", device)


def random_rows(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng().random((count, *(shape or (4,))), np.float32)


def mapped(function: shmbatch.Function, rows: Any) -> np.ndarray:
    """Return the results of calls that may share batches."""
    return np.stack([np.asarray(result) for result in function.map(rows)])


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_tensor_of_any_dtype_comes_back_bit_by_bit(dtypes: Served, dtype: str) -> None:
    import torch

    wire = WIRE_DTYPES[dtype]
    random = np.random.default_rng()
    most = 2 if dtype == "bool" else 256
    raw = random.integers(0, most, (11, 5 * wire.itemsize), np.uint8)
    values = [torch.from_numpy(each).view(getattr(torch, dtype)) for each in raw]

    results = list(dtypes.connect(f"tensor_{dtype}").map(values))

    assert {(result.dtype, tuple(result.shape)) for result in results} == {
        (getattr(torch, dtype), (5,))
    }
    got = np.stack([result.view(torch.uint8).numpy() for result in results])
    assert got.tobytes() == raw.tobytes()


def test_arrays_stay_on_the_host(dtypes: Served) -> None:
    value = np.arange(5, dtype=np.int32)
    assert np.array_equal(dtypes.connect("array_int32").remote(value), value)


def test_inputs_are_on_the_device(onboard: Served, device: str) -> None:
    assert onboard.connect("device").remote(random_rows(1)[0]) == device


def test_a_function_runs_on_a_stream_of_the_executors(onboard: Served, real: str) -> None:
    assert onboard.connect("stream").remote(random_rows(1)[0]) is True


def test_statistics_name_the_device(onboard: Served, device: str) -> None:
    assert shmbatch.statistics(onboard.name)["functions"]["double"]["calls_done"] >= 0
    assert device in str(shmbatch.statistics(onboard.name))


def test_several_processes_get_their_own_results(onboard: Served) -> None:
    programs = [Program(CALLER, onboard.name, number) for number in range(4)]
    try:
        assert [program.line() for program in programs] == ["right"] * 4
    finally:
        for program in programs:
            program.close()


def test_tensors_lists_and_scalars_of_a_call_stay_together(onboard: Served) -> None:
    import torch

    mixed = onboard.connect("mixed")
    rows = random_rows(20).round(2)
    calls = [
        mixed.spawn(row, 100 * number, torch.tensor(10_000 * number))
        for number, row in enumerate(rows)
    ]
    for number, (row, call) in enumerate(zip(rows, calls, strict=True)):
        np.testing.assert_allclose(np.asarray(call.get()), row + 10_100 * number)


def test_a_result_may_be_strided(onboard: Served) -> None:
    rows = random_rows(9, 3, 4)
    got = mapped(onboard.connect("transposed"), rows)
    assert np.array_equal(got, rows.transpose(0, 2, 1))


@pytest.mark.parametrize("function", ["rows", "on_host"])
def test_a_result_may_be_a_list_or_on_the_host(onboard: Served, function: str) -> None:
    rows = random_rows(9)
    assert np.array_equal(mapped(onboard.connect(function), rows), rows + 1)


def test_an_async_function_may_wait_between(onboard: Served) -> None:
    rows = random_rows(40)
    assert np.array_equal(mapped(onboard.connect("awaiting"), rows), rows * 2 + 1)


@pytest.mark.parametrize("function", ["ragged", "padded"])
def test_rows_of_different_lengths_are_on_the_device(onboard: Served, function: str) -> None:
    rows = [np.full(length, 0.5, np.float32) for length in (0, 1, 16, 3, 7, 16, 2, 5, 4, 1)]
    sums = list(onboard.connect(function).map(rows))
    assert sums == [0.5 * len(row) for row in rows]


# ---- two batches in flight ----


def test_the_next_batch_is_started_while_one_runs(onboard: Served, real: str) -> None:
    begun = onboard.connect("begun")
    begun.remote(random_rows(1)[0])
    calls = [begun.spawn(row) for row in random_rows(20)]
    try:
        wait_until(
            lambda: onboard.statistics("begun")["calls_in_flight"] == 2, "two are in flight"
        )
    finally:
        results = [float(call.get()[0]) for call in calls]
    assert results == [float(2 + number) for number in range(20)]


# ---- allowed sizes, and graphs ----


@pytest.mark.parametrize(("calls", "size"), [(1, 1), (2, 4), (4, 4), (5, 8), (8, 8)])
def test_a_batch_is_padded_to_an_allowed_size(onboard: Served, calls: int, size: int) -> None:
    sized = onboard.connect("sized")
    before = onboard.statistics("sized")["batches"]
    results = mapped(sized, random_rows(calls))
    assert results.shape == (calls, 4)
    if onboard.statistics("sized")["batches"] == before + 1:  # else they were late for each other
        assert set(results.reshape(-1)) == {size}
    assert set(results.reshape(-1)) <= {1.0, 4.0, 8.0}


def test_graphs_give_what_eager_does(onboard: Served) -> None:
    eager, graphed = onboard.connect("eager"), onboard.connect("graphed")
    for count in (1, 2, 3, 4, 5, 8, 50):
        rows = random_rows(count)
        np.testing.assert_allclose(
            mapped(graphed, rows), mapped(eager, rows), rtol=1e-5, atol=1e-6
        )


def test_a_replay_does_not_run_python(onboard: Served, real: str) -> None:
    runs = onboard.connect("runs")
    (first,) = set(runs.remote(random_rows(1)[0]).tolist())
    for _ in range(5):
        assert set(runs.remote(random_rows(1)[0]).tolist()) == {first}
    assert "runs without CUDA graphs" not in "".join(
        line for line in onboard.logged.splitlines() if f"{onboard.name}.runs " in line
    )


def test_what_cannot_be_captured_runs_as_it_is(onboard: Served, real: str) -> None:
    rows = random_rows(30)
    assert np.array_equal(mapped(onboard.connect("uncapturable"), rows), rows * 2)
    said = [line for line in onboard.logged.splitlines() if "uncapturable" in line]
    assert len(said) == 1, said
    assert "runs without CUDA graphs" in said[0]


def test_a_failed_capture_spoils_no_random_numbers(onboard: Served) -> None:
    rows = random_rows(9)
    noise = mapped(onboard.connect("noise"), rows) - rows
    assert noise.min() >= -1e-6
    assert noise.max() <= 1 + 1e-6
    assert len(np.unique(noise)) > 9


# ---- faults of functions ----


def outcome(function: shmbatch.Function, row: Any) -> str:
    """Return the error of a lone call, its app's name left out."""
    with pytest.raises(errors.ShmbatchError) as caught:
        function.remote(row)
    text = re.sub(r"(onboard|on-cpu)\.", "", str(caught.value))
    return f"{type(caught.value).__name__}: {text}"


@pytest.mark.parametrize("function", ["narrow", "wide", "short"])
def test_results_that_do_not_fit_are_errors_as_on_the_cpu(
    onboard: Served, on_cpu: Served, function: str
) -> None:
    row = random_rows(1)[0]
    found = outcome(onboard.connect(function), row)
    assert found == outcome(on_cpu.connect(function), row)
    assert found.startswith(("ResultError", "BatchResultError"))


def test_an_error_in_a_list_is_one_callers(onboard: Served) -> None:
    some_fail = onboard.connect("some_fail")
    rows = random_rows(10)
    rows[::3, 0] = -1
    results = list(some_fail.map(rows, return_exceptions=True))
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        if number % 3:
            assert np.array_equal(np.asarray(result), row)
        else:
            assert isinstance(result, ValueError)


def test_out_of_memory_in_a_function_is_an_error_and_no_more(onboard: Served) -> None:
    greedy, double = onboard.connect("greedy"), onboard.connect("double")
    row = random_rows(1)[0]
    for _ in range(3):
        with pytest.raises(Exception, match="memory") as caught:
            greedy.remote(row)
        assert REHEARSED or "OutOfMemoryError" in f"{type(caught.value)} {caught.value}"
        assert np.array_equal(double.remote(row), row * 2)
    assert onboard.process.poll() is None
