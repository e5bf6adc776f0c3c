"""Who gets which error when a function raises, or returns one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shmbatch.errors import RemoteError
from tests.conformance.calling import outcomes
from tests.processes import Served


def test_what_a_function_raises_reaches_all_of_its_batch(executor: Served) -> None:
    # Row 6. Spec: raise.
    found = outcomes(executor.connect("raises"), [0, 5, 6])
    assert [repr(error) for error in found] == ["ValueError('bad batch', 0)"] * 3
    assert len({id(error) for error in found}) == 3  # nobody's traceback grows in another's
    for error in found:
        assert "raise ways[xs[0]]()" in "".join(error.__notes__)


def test_a_class_that_the_caller_does_not_have_is_named(executor: Served) -> None:
    # Spec: raise. Modal pickles the exception itself.
    for error in outcomes(executor.connect("raises"), [1, 5, 6]):
        assert isinstance(error, RemoteError)
        assert str(error) == "conforming.Strange: of no module"


@pytest.mark.parametrize("way", [2, 3, 4])
def test_even_what_would_end_a_process_is_an_outcome(executor: Served, way: int) -> None:
    # Spec: raise. Modal passes two of them on: KeyboardInterrupt and GeneratorExit.
    name = {2: "SystemExit", 3: "KeyboardInterrupt", 4: "GeneratorExit"}[way]
    for error in outcomes(executor.connect("raises"), [way, 5, 6]):
        assert isinstance(error, RemoteError)
        assert str(error).startswith(f"builtins.{name}")


def test_a_batch_that_failed_is_nothing_to_the_next(executor: Served) -> None:
    # Spec: raise.
    outcomes(executor.connect("raises"), [0, 5, 6])
    outcomes(executor.connect("raises"), [2, 5, 6])
    assert outcomes(executor.connect("double"), [1, 2]) == [2, 4]
    assert [type(error) for error in outcomes(executor.connect("raises"), [0, 5, 6])] == [
        ValueError
    ] * 3


def test_an_exception_in_the_list_is_raised_by_its_caller_alone(executor: Served) -> None:
    # Row 6. In Modal, and in every peer, an error is for all of the batch.
    one, two, three = outcomes(executor.connect("odd"), [1, 2, 3])
    assert (one, three) == (1, 3)
    assert repr(two) == "ValueError(2)"


def test_a_map_raises_the_first_error_in_its_place(executor: Served) -> None:
    # Row 31. Spec: map.
    results = executor.connect("odd").map([1, 3, 2, 7])
    assert [next(results), next(results)] == [1, 3]
    with pytest.raises(ValueError, match="2"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_map_can_give_errors_as_values(executor: Served) -> None:
    # Row 31. Spec: map. They are what the function raised, wrapped in nothing.
    odd = executor.connect("odd")

    async def later() -> list[Any]:
        return [y async for y in odd.map.aio([1, 2, 3, 4], return_exceptions=True)]

    expected = ["1", "ValueError(2)", "3", "ValueError(4)"]
    for found in (
        list(odd.map([1, 2, 3, 4], return_exceptions=True)),
        list(odd.starmap([(1,), (2,), (3,), (4,)], return_exceptions=True)),
        asyncio.run(later()),
    ):
        assert [repr(each) for each in found] == expected


def test_for_each_raises_unless_errors_are_to_be_ignored(executor: Served) -> None:
    # Row 31. Spec: map.
    odd = executor.connect("odd")
    odd.for_each([1, 2, 3, 4], ignore_exceptions=True)
    with pytest.raises(ValueError, match=r"2|4"):
        odd.for_each([1, 2, 3, 4])
