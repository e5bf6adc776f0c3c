"""What can be batched: everything else is refused where it is written, before anything runs."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import shmbatch
from shmbatch.errors import ConfigError

# Nothing here runs in an executor.
pytestmark = pytest.mark.no_transport


@pytest.fixture
def app() -> shmbatch.App:
    return shmbatch.App("defined")


def define(app: shmbatch.App, function: Callable[..., Any]) -> shmbatch.Function:
    return app.function()(shmbatch.batched(max_batch_size=4, wait_ms=10)(function))


def same(xs: list[int]) -> list[int]:
    return xs


def test_batched_takes_keyword_arguments_only() -> None:
    # Row 1. Spec: definition.
    with pytest.raises(ConfigError, match="by keyword"):
        shmbatch.batched(4, 1000)


@pytest.mark.parametrize("given", [{}, {"max_batch_size": 4}, {"wait_ms": 10}])
def test_both_parameters_are_required(given: dict[str, Any]) -> None:
    # Row 1. Row 2. Spec: definition.
    with pytest.raises(ConfigError, match=r"@batched needs \w+"):
        shmbatch.batched(**given)


@pytest.mark.parametrize("size", [0, -1, 65_537, 2.0, True, "4", None])
def test_a_size_outside_its_bounds_is_refused(size: Any) -> None:
    # Row 1. Spec: definition.
    with pytest.raises(ConfigError, match="max_batch_size is"):
        shmbatch.batched(max_batch_size=size, wait_ms=10)


@pytest.mark.parametrize("wait_ms", [-1, -0.001, 600_001, math.nan, math.inf, True, "10", None])
def test_a_wait_outside_its_bounds_is_refused(wait_ms: Any) -> None:
    # Row 2. Spec: definition.
    with pytest.raises(ConfigError, match="wait_ms is"):
        shmbatch.batched(max_batch_size=4, wait_ms=wait_ms)


@pytest.mark.parametrize("size", [1, 1000, 1001, 65_536])
@pytest.mark.parametrize("wait_ms", [0, 0.25, 600_000])
def test_the_bounds_and_fractions_of_a_millisecond_are_accepted(
    app: shmbatch.App, size: int, wait_ms: float
) -> None:
    # Row 1. Row 2. Modal ends at 1000.
    batched = shmbatch.batched(max_batch_size=size, wait_ms=wait_ms)
    assert isinstance(app.function()(batched(same)), shmbatch.Function)


def test_a_class_is_not_batched() -> None:
    # Spec: definition.
    class Model:
        pass

    with pytest.raises(ConfigError, match="decorates class 'Model'; decorate its method"):
        shmbatch.batched(max_batch_size=4, wait_ms=10)(Model)


def test_generators_are_refused(app: shmbatch.App) -> None:
    # Row 15. Spec: definition.
    def one_by_one(xs: list[int]) -> Iterator[int]:
        yield from xs

    async def one_by_one_later(xs: list[int]) -> AsyncIterator[int]:
        for x in xs:
            yield x

    for generator in (one_by_one, one_by_one_later):
        with pytest.raises(ConfigError, match="is a generator"):
            define(app, generator)


def test_default_arguments_are_refused(app: shmbatch.App) -> None:
    # Row 11. Spec: definition.
    def scaled(xs: list[int], by: list[int] = [1]) -> list[int]:  # noqa: B006
        return xs

    with pytest.raises(ConfigError, match=r"parameter 'by' of defined\.scaled has a default"):
        define(app, scaled)


def test_parameters_that_are_no_columns_are_refused(app: shmbatch.App) -> None:
    # Row 10. Spec: definition.
    def nothing() -> list[int]:
        return []

    def several(*xs: list[int]) -> list[int]:
        return xs[0]

    def named(**xs: list[int]) -> list[int]:
        return xs["x"]

    def strict(*, xs: list[int]) -> list[int]:
        return xs

    for function, reason in (
        (nothing, "has no parameters"),
        (several, r"takes \*xs"),
        (named, r"takes \*\*xs"),
        (strict, "is keyword-only"),
    ):
        with pytest.raises(ConfigError, match=reason):
            define(app, function)


def test_an_annotation_that_is_no_list_is_refused(app: shmbatch.App) -> None:
    # Row 7. Row 9. Annotations say how values travel; Modal does not read them.
    def one(x: int) -> list[int]:
        return [x]

    def gives_a_tuple(xs: list[int]) -> tuple[int, ...]:
        return tuple(xs)

    for function, culprit in ((one, "parameter 'x'"), (gives_a_tuple, "result")):
        with pytest.raises(ConfigError, match=f"{culprit} of defined.{function.__name__}"):
            define(app, function)


def test_a_function_that_is_not_batched_is_refused(app: shmbatch.App) -> None:
    # Spec: definition. Modal runs such functions one input at a time.
    with pytest.raises(ConfigError, match=r"put @shmbatch\.batched\(.*\) below @app\.function"):
        app.function()(same)  # type: ignore[call-overload]


def test_the_order_of_the_decorators_matters(app: shmbatch.App) -> None:
    # Spec: definition.
    with pytest.raises(ConfigError, match="it must be a function"):
        shmbatch.batched(max_batch_size=4, wait_ms=10)(define(app, same))


def test_a_batched_function_belongs_to_an_app() -> None:
    # Spec: definition.
    alone = shmbatch.batched(max_batch_size=4, wait_ms=10)(same)
    with pytest.raises(ConfigError, match=r"belongs to no app; put @app\.function\(\) above"):
        alone([1])


def test_one_app_has_one_function_of_a_name(app: shmbatch.App) -> None:
    # Spec: definition.
    define(app, same)
    with pytest.raises(ConfigError, match="has a function 'same' already; rename one"):
        define(app, same)


def test_what_belongs_to_a_platform_is_refused_with_the_reason(app: shmbatch.App) -> None:
    # Spec: definition. One machine has no images, no machines to choose from, no secrets.
    for make in (lambda: shmbatch.App("defined", image=1), lambda: app.function(image=1)):
        with pytest.raises(ConfigError, match="there is no image=: everything runs on this"):
            make()
    for option in ("gpu", "cpu", "memory", "secrets", "retries", "timeout", "max_containers"):
        with pytest.raises(ConfigError, match=f"app.function takes no {option}"):
            app.function(**{option: 1})
