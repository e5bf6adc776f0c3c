"""`batched`: what makes a function on lists a batched function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..contract.batching import BatchParameters, batch_parameters, slot_capacity
from ..errors import ConfigError


@dataclass(frozen=True)
class Batched:
    """A function with its batching parameters, waiting for ``@app.function()``."""

    function: Callable[..., Any]
    parameters: BatchParameters
    slots: int | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"{self.function.__name__!r} is batched but belongs to no app; "
            f"put @app.function() above @shmbatch.batched(...)"
        )


_MISSING: Any = object()


def batched(
    *args: Any,
    max_batch_size: int = _MISSING,
    wait_ms: float = _MISSING,
    slots: int | None = None,
) -> Callable[[Callable[..., Any]], Batched]:
    """Make a function on lists run on batches of single calls.

    The function takes a list or a stack for each parameter, all of one length, and returns a
    list or a stack of that length. Annotations say how single values travel.

    Args:
        max_batch_size: most calls in a batch, 1 to 65536. Keyword-only, required.
        wait_ms: how long the oldest call of a batch waits for company, in milliseconds, 0 to
            600000, fractions allowed. Keyword-only, required.
        slots: calls that one producer can have pending; by default twice *max_batch_size* and
            at least 64.

    Raises:
        ConfigError: a value is missing or out of bounds, or what is decorated is no function.
    """
    if args:
        raise ConfigError(
            "@batched takes its arguments by keyword; "
            "write @shmbatch.batched(max_batch_size=..., wait_ms=...)"
        )
    for name, value in (("max_batch_size", max_batch_size), ("wait_ms", wait_ms)):
        if value is _MISSING:
            raise ConfigError(f"@batched needs {name}; write @shmbatch.batched({name}=...)")
    parameters = batch_parameters(max_batch_size, wait_ms)
    slot_capacity(max_batch_size, slots, 0, 0)  # checks slots

    def decorate(function: Callable[..., Any]) -> Batched:
        if inspect.isclass(function):
            raise ConfigError(
                f"@batched decorates class {function.__name__!r}; decorate its method instead"
            )
        if not inspect.isfunction(function):
            raise ConfigError(f"@batched decorates {function!r}; it must be a function")
        return Batched(function, parameters, slots)

    return decorate
