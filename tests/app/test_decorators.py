from __future__ import annotations

import math
from typing import Any

import pytest

import shmbatch
from shmbatch.contract.failing import FailureOptions
from shmbatch.errors import ConfigError
from tests.rings import ADD


def add(xs: list[int]) -> list[int]:
    return xs


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        shmbatch.batched(**arguments)(add)
    return str(caught.value)


def test_batched_takes_its_arguments_by_keyword_only() -> None:
    remedy = (
        "@batched takes its arguments by keyword; "
        "write @shmbatch.batched(max_batch_size=..., wait_ms=...)"
    )
    for positional in ((add,), (2, 1000)):
        with pytest.raises(ConfigError) as caught:
            shmbatch.batched(*positional)
        assert str(caught.value) == remedy


def test_both_parameters_are_required() -> None:
    assert refusal(wait_ms=1) == (
        "@batched needs max_batch_size; write @shmbatch.batched(max_batch_size=...)"
    )
    assert refusal(max_batch_size=1) == (
        "@batched needs wait_ms; write @shmbatch.batched(wait_ms=...)"
    )


@pytest.mark.parametrize("size", [0, -1, 65_537, 2.0, "2", True, None])
def test_a_batch_size_out_of_bounds_is_refused(size: object) -> None:
    message = f"max_batch_size is {size!r}; use an int from 1 to 65536"
    assert refusal(max_batch_size=size, wait_ms=1) == message.replace("None", "NoneType")


@pytest.mark.parametrize("wait_ms", [-0.001, 600_000.1, math.nan, math.inf, True, "1"])
def test_a_wait_out_of_bounds_is_refused(wait_ms: object) -> None:
    assert refusal(max_batch_size=1, wait_ms=wait_ms) == (
        f"wait_ms is {wait_ms!r}; use a number of milliseconds from 0 to 600000"
    )


@pytest.mark.parametrize("lockstep", [None, 1, "yes"])
def test_lockstep_is_true_or_false(lockstep: object) -> None:
    assert refusal(max_batch_size=1, wait_ms=0, lockstep=lockstep) == (
        f"lockstep is {lockstep!r}; use True or False"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"batch_sizes": (1, 8)},
            "batch_sizes ends with 8, but max_batch_size is 32; "
            "make them the same, for a full batch is to have an allowed size",
        ),
        (
            {"cuda_graphs": True},
            "cuda_graphs=True without batch_sizes: one graph is captured for each allowed size; "
            "add them, as in batch_sizes=(1, 8, 32)",
        ),
        ({"direct_dma": "no"}, "direct_dma is 'no'; use 'auto', True or False"),
    ],
)
def test_what_is_said_of_a_gpu_is_checked_at_once(said: dict[str, Any], message: str) -> None:
    assert refusal(max_batch_size=32, wait_ms=0, **said) == message


@pytest.mark.parametrize("slots", [0, 131_073, 1.5, True])
def test_slots_out_of_bounds_are_refused(slots: object) -> None:
    assert refusal(max_batch_size=1, wait_ms=0, slots=slots) == (
        f"slots is {slots!r}; use an int from 1 to 131072"
    )


@pytest.mark.parametrize("size", [1, 65_536])
@pytest.mark.parametrize("wait_ms", [0, 0.5, 600_000])
def test_the_bounds_themselves_are_accepted(size: int, wait_ms: float) -> None:
    decorated = shmbatch.batched(max_batch_size=size, wait_ms=wait_ms)(add)
    assert decorated.parameters.max_batch_size == size
    assert decorated.parameters.wait_ns == wait_ms * 1_000_000


def test_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="@batched decorates class 'Adder'; decorate its method"):

        @shmbatch.batched(max_batch_size=1, wait_ms=0)
        class Adder:
            pass


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^@batched decorates <built-in .*; it must be a func"):
        shmbatch.batched(max_batch_size=1, wait_ms=0)(len)


def test_a_batched_function_without_an_app_cannot_be_called() -> None:
    lonely = shmbatch.batched(max_batch_size=1, wait_ms=0)(add)
    with pytest.raises(ConfigError) as caught:
        lonely([1])
    assert str(caught.value) == (
        "'add' is batched but belongs to no app; put @app.function() above @shmbatch.batched(...)"
    )


@pytest.mark.parametrize(
    "said",
    [{"max_bytes": 0}, {"max_lengths": {"seq": -1}}, {"ragged": "stack"}, {"codec": "json"}],
)
def test_what_is_said_of_values_is_checked_at_once(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(said))):
        shmbatch.batched(max_batch_size=2, wait_ms=0, **said)


@pytest.mark.parametrize("read_only", [None, 1, "yes"])
def test_read_only_is_true_or_false(read_only: object) -> None:
    shown = "NoneType" if read_only is None else repr(read_only)
    assert refusal(max_batch_size=1, wait_ms=0, read_only=read_only) == (
        f"read_only is {shown}; use True or False"
    )


# ---- what becomes of executions that fail ----


@pytest.mark.parametrize("idempotent", [None, 1, "yes"])
def test_idempotent_is_true_or_false(idempotent: object) -> None:
    refused = refusal(max_batch_size=1, wait_ms=0, idempotent=idempotent)
    shown = "NoneType" if idempotent is None else repr(idempotent)
    assert refused == f"idempotent is {shown}; use True or False"


@pytest.mark.parametrize("on_error", [None, "halve", True, ["raise"]])
def test_on_error_is_one_of_two_words(on_error: object) -> None:
    refused = refusal(max_batch_size=1, wait_ms=0, on_error=on_error)
    assert refused.startswith("on_error is ")
    assert refused.endswith(
        "; use 'raise', and all calls of a batch get what the function raised, "
        "or 'isolate', and only bad inputs do"
    )


@pytest.mark.parametrize("limit", [0, -1, 86_401, math.nan, math.inf, True, "1"])
def test_an_execution_timeout_out_of_bounds_is_refused(limit: object) -> None:
    assert refusal(max_batch_size=1, wait_ms=0, execution_timeout=limit) == (
        f"execution_timeout is {limit!r}; use a number of seconds above 0 and up to 86400, "
        "or None for no limit"
    )


def test_they_are_part_of_the_definition() -> None:
    made = shmbatch.batched(
        max_batch_size=1, wait_ms=0, idempotent=True, on_error="raise", execution_timeout=0.5
    )(add)
    definition = made.definition("add", ADD)
    assert definition.idempotent
    assert definition.failing == FailureOptions(True, "raise", 500_000_000)
    plain = shmbatch.batched(max_batch_size=1, wait_ms=0)(add).definition("add", ADD)
    assert plain.failing == FailureOptions(False, "raise", None)


def test_who_isolates_says_that_the_function_is_idempotent() -> None:
    made = shmbatch.batched(max_batch_size=1, wait_ms=0, on_error="isolate")(add)
    assert made.definition("add", ADD).idempotent


def test_methods_of_classes_have_them_too() -> None:
    app = shmbatch.App("kept")

    @app.cls()
    class Kept:
        @shmbatch.batched(max_batch_size=2, wait_ms=0, on_error="isolate")
        def isolates(self, xs: list[int]) -> list[int]:
            return xs

        @shmbatch.method(idempotent=True, execution_timeout=2)
        def limited(self, x: int) -> int:
            return x

    made: Any = Kept
    isolates, limited = made.definitions(())
    assert isolates.failing == FailureOptions(True, "isolate", None)
    assert limited.failing == FailureOptions(True, "raise", 2_000_000_000)
    with pytest.raises(ConfigError, match="execution_timeout is 0; use a number"):
        shmbatch.method(execution_timeout=0)
