# ruff: noqa: F722, F821, UP037 - jaxtyping's shapes are strings that are no annotations
"""What ``@batched`` may say about a GPU, and of which functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jaxtyping import BFloat16, Float32, Int64
from torch import Tensor

from shmbatch.contract.batching import BatchParameters
from shmbatch.contract.definition import Definition
from shmbatch.contract.gpu import check_graphs, direct_dma_mode, graphs_wanted
from shmbatch.contract.options import value_options
from shmbatch.contract.signature import signature_of
from shmbatch.errors import ConfigError

Rows = Float32[Tensor, "batch 3"]


def refusal(check: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["auto", True, False])
def test_slots_are_copied_from_as_is_said(mode: Any) -> None:
    assert direct_dma_mode(mode) is mode


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("yes", "'yes'"),
        ("AUTO", "'AUTO'"),
        (1, "1"),
        (0, "0"),
        (None, "NoneType"),
        (np.array(["auto", "auto"]), "ndarray"),
    ],
)
def test_another_word_for_it_is_refused(mode: Any, shown: str) -> None:
    assert refusal(direct_dma_mode, mode) == f"direct_dma is {shown}; use 'auto', True or False"


@pytest.mark.parametrize(
    ("graphs", "sizes"), [(False, None), (False, (1, 8)), (True, (1, 8)), (True, (8,))]
)
def test_graphs_are_captured_for_sizes_only(graphs: bool, sizes: tuple[int, ...] | None) -> None:
    assert graphs_wanted(graphs, sizes) is graphs


def test_graphs_without_sizes_are_refused() -> None:
    assert refusal(graphs_wanted, True, None) == (
        "cuda_graphs=True without batch_sizes: one graph is captured for each allowed size; "
        "add them, as in batch_sizes=(1, 8, 32)"
    )


@pytest.mark.parametrize(("graphs", "shown"), [(1, "1"), ("yes", "'yes'"), (None, "NoneType")])
def test_graphs_are_wanted_or_not(graphs: Any, shown: str) -> None:
    assert refusal(graphs_wanted, graphs, (1, 8)) == f"cuda_graphs is {shown}; use True or False"


def checked(function: Callable[..., Any], cuda_graphs: bool = True, **options: Any) -> None:
    """Check a function as its app does."""
    signature = signature_of(function, "net.infer", value_options(**options))
    parameters = BatchParameters(8, 0)
    definition = Definition(
        "infer", function, signature, parameters, None, False, (1, 8), cuda_graphs
    )
    check_graphs(definition, "net.infer")


def infer(rows: Rows, ids: Int64[Tensor, "batch"]) -> BFloat16[Tensor, "batch 2 2"]: ...


async def awaits(rows: Rows) -> Rows: ...


def scalar(rows: Rows, scale: list[float]) -> Rows: ...


def array(rows: Float32[np.ndarray, "batch 3"]) -> Rows: ...


def ragged(rows: Float32[Tensor, "batch seq 3"]) -> Rows: ...


def listed(rows: Rows) -> list[float]: ...


def unsaid(rows: Rows): ...  # type: ignore[no-untyped-def]


def test_tensors_of_fixed_shape_can_be_captured() -> None:
    checked(infer)


def test_an_async_function_is_refused_also_under_another_decorator() -> None:
    @functools.wraps(awaits)
    def wrapped(*args: Any) -> Any:
        return awaits(*args)

    for function in (awaits, wrapped):
        assert refusal(checked, function) == (
            "net.infer is async, and what it awaits cannot be captured with cuda_graphs=True; "
            "write it with def, or drop cuda_graphs"
        )


@pytest.mark.parametrize(
    ("function", "options", "what"),
    [
        (scalar, {}, "parameter 'scale' of net.infer is list[float]"),
        (array, {}, """parameter 'rows' of net.infer is Float32[np.ndarray, "batch 3"]"""),
        (
            ragged,
            {"max_lengths": {"seq": 9}},
            """parameter 'rows' of net.infer is Float32[Tensor, "batch seq 3"]""",
        ),
        (
            ragged,
            {"max_lengths": {"seq": 9}, "ragged": "pad"},
            """parameter 'rows' of net.infer is Float32[Tensor, "batch seq 3"]""",
        ),
        (infer, {"codec": "pickle"}, "parameter 'rows' of net.infer is pickled"),
        (listed, {}, "result of net.infer is list[float]"),
        (unsaid, {}, "result of net.infer is list"),
    ],
)
def test_what_is_no_tensor_of_fixed_shape_is_refused_by_name(
    function: Callable[..., Any], options: dict[str, Any], what: str
) -> None:
    assert refusal(functools.partial(checked, **options), function) == (
        f"{what}, but cuda_graphs=True needs torch tensors of fixed shape, "
        'as in Float32[Tensor, "batch 16"]; annotate it so, or drop cuda_graphs'
    )


@pytest.mark.parametrize("function", [awaits, scalar, array, listed])
def test_whoever_wants_no_graphs_may_have_anything(function: Callable[..., Any]) -> None:
    checked(function, cuda_graphs=False)
