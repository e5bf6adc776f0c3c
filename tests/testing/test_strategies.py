"""Strategies draw what a producer accepts, of every form that a parameter may have."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from jaxtyping import BFloat16, Bool, Complex64, Float8e4m3fn, Float16, Float32, Int64
from torch import Tensor

import shmbatch
from shmbatch import errors, testing
from shmbatch.contract.packing import Arguments
from shmbatch.testing.targets import all_meant
from tests.processes import ROOT, environment
from tests.testing.functions import Counter, scaled, small, summed


@dataclasses.dataclass
class Order:
    number: int
    names: list[str]
    price: float


class Part(msgspec.Struct):
    count: Annotated[int, msgspec.Meta(ge=1, le=5)]
    parts: list[Part]


def function(*annotations: Any, **options: Any) -> Any:
    """Return a batched function of parameters with these annotations; None for none."""

    def one(xs):  # type: ignore[no-untyped-def]
        return xs

    def two(xs, ys):  # type: ignore[no-untyped-def]
        return xs

    made = one if len(annotations) == 1 else two
    pairs = zip(("xs", "ys"), annotations, strict=False)
    made.__annotations__ = {name: each for name, each in pairs if each is not None}
    return shmbatch.batched(max_batch_size=4, wait_ms=1, **options)(made)


@pytest.mark.parametrize(
    ("annotations", "options"),
    [
        ([list[int]], {}),
        ([list[float]], {}),
        ([list[bool]], {}),
        ([list[str]], {"max_bytes": 3}),
        ([list[bytes]], {"max_bytes": 3}),
        ([list[np.ndarray]], {"max_bytes": 64}),
        ([Float32[np.ndarray, "batch 2 3"]], {}),
        ([Float16[Tensor, "batch 2"]], {}),
        ([BFloat16[Tensor, "batch 2"]], {}),
        ([Float8e4m3fn[Tensor, "batch 2"]], {}),
        ([Complex64[Tensor, "batch 2"]], {}),
        ([Bool[np.ndarray, "batch 3"]], {}),
        ([Float32[np.ndarray, "batch 0 3"]], {}),
        (
            [Float32[np.ndarray, "batch seq 3"], Int64[Tensor, "batch seq"]],
            {"max_lengths": {"seq": 4}, "ragged": "pad"},
        ),
        ([BFloat16[Tensor, "batch seq seq"], list[int]], {"max_lengths": {"seq": 4}}),
        ([list[Order]], {}),
        ([list[Part]], {}),
        ([list[Order | None]], {}),
        ([list[dict[str, int | None]]], {}),
        ([list[Literal["a", 3]]], {}),
        ([list[tuple[int, ...]]], {}),
        ([list[set[str]]], {}),
        ([list[Annotated[int, msgspec.Meta(gt=3, multiple_of=4)]]], {}),
        ([list[Annotated[str, msgspec.Meta(min_length=2, max_length=3)]]], {}),
        ([list[Annotated[str, msgspec.Meta(pattern="^a+$")]]], {}),
        ([list[Annotated[float, msgspec.Meta(ge=2.0)]]], {}),
        ([None], {}),
        ([None], {"codec": "pickle"}),
        ([list[Order]], {"codec": "pickle"}),
    ],
    ids=lambda each: str(each)[:60] if isinstance(each, list) else "",
)
def test_a_producer_accepts_what_is_drawn(annotations: list[Any], options: dict[str, Any]) -> None:
    made = function(*annotations, **options)
    (meant,) = all_meant(made)
    arguments = Arguments(meant.definition.signature, "f")

    @settings(max_examples=6, database=None, deadline=None, derandomize=True)
    @given(testing.inputs(made))
    def accepted(values: tuple[Any, ...]) -> None:
        arguments.coerce(values)

    accepted()


_FEW = settings(database=None, derandomize=True, max_examples=60)


def drawn(strategy: Any, wanted: Any) -> Any:
    """Return the simplest value that is wanted."""
    return find(strategy, wanted, settings=_FEW)


def test_lengths_go_from_the_least_to_the_most() -> None:
    seen: dict[int, set[int]] = {0: set(), 1: set()}

    @settings(max_examples=30, database=None, deadline=None, derandomize=True)
    @given(testing.inputs(summed), testing.inputs(summed, min_lengths={"seq": 1}))
    def noted(anyone: tuple[Any, ...], longer: tuple[Any, ...]) -> None:
        seen[0].add(len(anyone[0]))
        seen[1].add(len(longer[0]))

    noted()
    assert seen == {0: {0, 1, 2, 3}, 1: {1, 2, 3}}


def test_inputs_of_a_method_are_described_without_an_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Counter, "made", None)  # an object might load a model
    assert isinstance(drawn(testing.inputs(Counter(start=9).above), lambda _: True)[0], int)
    assert isinstance(drawn(testing.values(Counter(start=9).above, "xs"), lambda _: True), int)


def test_floats_are_within_their_bounds() -> None:
    near = testing.values(scaled, "xs", magnitude=2.0)
    with pytest.raises(NoSuchExample):
        drawn(near, lambda x: abs(x) > 2 or math.isnan(x))
    assert math.isinf(drawn(testing.values(scaled, "xs", nonfinite=True), math.isinf))


def test_a_strategy_of_ones_own_takes_the_place_of_a_derived_one() -> None:
    mine = testing.inputs(scaled, parameters={"by": st.just(7)})
    assert drawn(mine, lambda values: True) == (0.0, 7)
    fixed = testing.values(summed, "xs", lengths={"seq": 2})
    assert drawn(fixed, lambda rows: True).shape == (2, 2)


def test_what_cannot_be_drawn_is_refused() -> None:
    class Unknown:
        def __init__(self, what) -> None:  # type: ignore[no-untyped-def]
            self.what = what

    opaque = function(list[Unknown], codec="pickle")
    opaque.function.__annotations__["xs"] = list[Unknown]
    for strategy, reason in (
        (lambda: testing.inputs(scaled, parameters={"zs": st.none()}), "no parameter 'zs'"),
        (lambda: testing.values(scaled, "zs"), "no parameter 'zs'; it has xs, by"),
        (lambda: testing.inputs(summed, min_lengths={"x": 1}), "no named axis 'x'; it has seq"),
        (lambda: testing.inputs(scaled, min_lengths={"x": 1}), "no named axis 'x'; it has none"),
        (lambda: testing.inputs(summed, min_lengths={"seq": 9}), "from 0 to the maximum of 3"),
        (lambda: testing.inputs(summed, min_lengths={"seq": -1}), "'seq' is -1; use an int"),
        (lambda: testing.values(summed, "xs", lengths={"x": 1}), "no named axis 'x'"),
        (lambda: testing.inputs(opaque), "makes no values for parameter 'xs'"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            strategy()


def test_without_hypothesis_one_sentence_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import shmbatch\n"
        "from shmbatch import testing\n"
        "def doubled(xs: list[int]) -> list[int]:\n"
        "    return [2 * x for x in xs]\n"
        "scaled = shmbatch.batched(max_batch_size=4, wait_ms=1)(doubled)\n"
        "assert testing.run_batch(scaled, [(1,)]).results == [2]\n"
        "for use in testing.inputs, testing.check_batching, testing.check_batch_invariance:\n"
        "    try:\n"
        "        use(scaled)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    sentence = "hypothesis is not installed; get it with `pip install 'shmbatch[testing]'`"
    assert (ran.stderr, ran.stdout.splitlines()) == ("", [f"ConfigError {sentence}"] * 3)


def test_what_may_be_anything_is_what_messagepack_has() -> None:
    kinds: set[type] = set()

    @settings(max_examples=40, database=None, deadline=None, derandomize=True)
    @given(testing.values(small()(_anything), "xs"))
    def seen(value: object) -> None:
        kinds.add(type(value))

    seen()
    assert kinds <= {type(None), bool, int, float, str, bytes, list, dict}
    assert {int, list, dict} <= kinds


def _anything(xs):  # type: ignore[no-untyped-def]
    return xs
