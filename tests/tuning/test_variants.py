# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""Batching parameters as they are tried, and written down."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float32
from torch import Tensor

import shmbatch
from shmbatch.contract.definition import Definition
from shmbatch.tuning.variants import Parameters, other_options, variant

Rows = Float32[np.ndarray, "batch seq 4"]


def double(xs: list[str]) -> list[str]:
    return xs


def sums(rows: Rows) -> list[float]:
    return [0.0 for _ in rows]


def same(x: Float32[Tensor, "batch 4"]) -> Float32[Tensor, "batch 4"]:
    return x


def defined(function: Any, **options: Any) -> Definition:
    app = shmbatch.App("app")
    app.function()(shmbatch.batched(**{"max_batch_size": 8, "wait_ms": 1, **options})(function))
    return app.definitions[function.__name__]


OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    (double, {}),
    (double, {"slots": 7, "lockstep": True, "max_bytes": 100}),
    (double, {"codec": "pickle"}),
    (sums, {"max_lengths": {"seq": 9}}),
    (sums, {"max_lengths": {"seq": 9}, "ragged": "pad"}),
    (same, {"batch_sizes": (4, 8), "cuda_graphs": True, "direct_dma": True}),
    (same, {"read_only": True, "idempotent": True, "execution_timeout": 0.25}),
    (double, {"on_error": "isolate"}),
]


@pytest.mark.parametrize(("function", "options"), OPTIONS)
def test_the_line_to_paste_keeps_every_other_option(
    function: Any, options: dict[str, Any]
) -> None:
    before = defined(function, **options)
    line = Parameters(8, 1, options.get("batch_sizes")).decorator(list(other_options(before)))
    assert line.startswith("@shmbatch.batched(max_batch_size=8, wait_ms=1")
    written = eval(f"dict{line.partition('batched')[2]}")
    assert defined(function, **written) == before


def test_a_variant_differs_in_its_batching_only() -> None:
    before = defined(double, slots=7)
    after = variant(before, Parameters(16, 2.5))
    assert (after.parameters.max_batch_size, after.parameters.wait_ns) == (16, 2_500_000)
    assert variant(after, Parameters(8, 1)) == before


def test_a_variant_with_graphs_allows_its_own_size() -> None:
    before = defined(same, batch_sizes=(4, 8), cuda_graphs=True)
    assert variant(before, Parameters(2, 0)).batch_sizes == (2,)
    assert variant(before, Parameters(2, 0, (1, 2))).batch_sizes == (1, 2)


def test_parameters_survive_the_way_to_another_process() -> None:
    for parameters in (Parameters(8, 1.5), Parameters(8, 0, (1, 8))):
        assert Parameters.from_message(json.loads(json.dumps(asdict(parameters)))) == parameters
