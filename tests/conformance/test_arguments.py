"""Which arguments a call takes: one value of each column, by position or by name."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from shmbatch.errors import ConfigError, InputError, InputTypeError, InputValueError
from tests.processes import PATIENCE_S, Served

# Arguments that do not fit subtract(xs, ys), and what its caller hears.
MISFITS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "takes 2 arguments, missing 'xs', 'ys'"),
    ((1,), {}, "takes 2 arguments, missing 'ys'"),
    ((1, 2, 3), {}, "takes 2 arguments, 3 were given"),
    ((1,), {"xs": 2}, "got multiple values for argument 'xs'"),
    ((1,), {"zs": 2}, "got an unexpected argument 'zs'"),
    ((1, 2), {"zs": 3}, "got an unexpected argument 'zs'"),
]


def test_positional_and_keyword_calls_mix_in_one_batch(executor: Served) -> None:
    # Row 10. Spec: arguments.
    columns = executor.connect("columns")
    rows = [np.array([x, -x]) for x in range(4)]
    calls = [
        columns.spawn(0, "zero", rows[0]),
        columns.spawn(rows=rows[1], xs=1, names="one"),
        columns.spawn(2, rows=rows[2], names="two"),
        columns.spawn(3, "three", rows=rows[3]),
    ]
    # All arguments of one call stand at one index.
    told = ([0, 1, 2, 3], ["zero", "one", "two", "three"], [[0, 0], [1, -1], [2, -2], [3, -3]])
    assert [call.get(PATIENCE_S) for call in calls] == [told] * 4


@pytest.mark.parametrize(("args", "kwargs", "reason"), MISFITS)
def test_arguments_of_the_wrong_count_or_name_are_refused_at_the_call(
    executor: Served, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> None:
    # Row 9. Spec: arguments. Modal looks inside the batch, and fails all of it.
    subtract = executor.connect("subtract")
    for verb in (subtract.remote, subtract.spawn):
        with pytest.raises(InputTypeError, match=reason):
            verb(*args, **kwargs)
    for twin in (subtract.remote.aio, subtract.spawn.aio):
        with pytest.raises(InputTypeError, match=reason):
            asyncio.run(twin(*args, **kwargs))
    assert executor.statistics("subtract")["calls_waiting"] == 0


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1", InputTypeError),
        (1.5, InputTypeError),
        ([1], InputTypeError),
        (2**63, InputValueError),
    ],
)
def test_a_value_that_does_not_fit_never_reaches_its_batch_mates(
    executor: Served, value: Any, kind: type[InputError]
) -> None:
    # Row 9. Spec: arguments. Modal decodes inside the batch, and fails all of it.
    subtract = executor.connect("subtract")
    first = subtract.spawn(5, 3)
    with pytest.raises(kind, match="ys"):
        subtract.spawn(1, value)
    second = subtract.spawn(30, 10)
    assert [call.get(PATIENCE_S) for call in (first, second)] == [2, 20]


def test_a_refused_input_takes_its_place_among_the_results_of_a_map(executor: Served) -> None:
    # Row 9. Row 31.
    subtract = executor.connect("subtract")
    inputs: list[tuple[Any, ...]] = [(5, 3), (1,), (30, 10)]
    first, refused, last = subtract.starmap(inputs, return_exceptions=True)
    assert (first, last) == (2, 20)
    assert isinstance(refused, InputTypeError)


def test_values_without_annotation_arrive_as_they_were_sent(executor: Served) -> None:
    # Row 10. Spec: arguments. Modal pickles; what MessagePack has, travels without.
    anything = executor.connect("anything")
    for value in (None, True, 3, 2.5, "text", b"bytes", [1, [2]], {"a": {"b": None}}):
        assert anything.remote(value) == [type(value).__name__, value]
    assert anything.remote((1, 2)) == ["list", [1, 2]]


def test_what_only_pickle_could_send_is_refused(executor: Served) -> None:
    # Spec: arguments. Modal pickles everything.
    with pytest.raises(InputTypeError):
        executor.connect("anything").remote(1 + 2j)


def test_a_map_takes_one_iterable_for_each_parameter(executor: Served) -> None:
    # Row 10. Spec: map.
    subtract = executor.connect("subtract")
    assert list(subtract.map([5, 30], [3, 10])) == [2, 20]
    assert list(subtract.starmap([(5, 3), (30, 10)])) == [2, 20]
    with pytest.raises(TypeError, match="kwargs"):
        subtract.map([5, 30], kwargs={"ys": 1})  # as Modal has it


def test_a_function_is_not_called_directly(executor: Served) -> None:
    # Spec: local.
    with pytest.raises(ConfigError, match=r"use \.remote\(\.\.\.\) for one input, or \.local"):
        executor.connect("double")(1)
