"""What decorators make of the methods of a user's class.

In the executor, where its objects are, all of them bind as the methods that the user wrote.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from ..contract.batching import slot_capacity
from ..contract.definition import Hook
from ..contract.failing import FailureOptions, failure_options
from ..contract.options import DEFAULT_MAX_BYTES, ValueOptions, value_options
from ..errors import ConfigError


@dataclass(frozen=True)
class Member:
    """What is served of a class: in the executor, where its objects are, an ordinary method."""

    function: Callable[..., Any]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else _Bound(self.function, instance)


class _Bound(partial[Any]):
    """A served method of an object in this process; called as it is, also by ``.local``."""

    @property
    def local(self) -> Callable[..., Any]:
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("remote", "spawn", "map", "starmap", "for_each"):
            raise ConfigError(
                f"{self.func.__qualname__} is called inside its own executor, which would wait "
                f"for itself; call it as it is"
            )
        raise AttributeError(f"{self.func.__qualname__} has no attribute {name!r}")


@dataclass(frozen=True)
class Method(Member):
    """A plain method: takes the arguments of one call, and runs between batches."""

    slots: int | None
    values: ValueOptions
    failing: FailureOptions = field(default_factory=FailureOptions)


@dataclass(frozen=True)
class LifeCycle:
    """A method that the executor calls: before it serves anything, or when it serves no more."""

    function: Hook
    when: Literal["enter", "exit"]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.function.__get__(instance, owner)


def enter(*misplaced: Any, **refused: Any) -> Callable[[Hook], LifeCycle]:
    """Have the executor call a method once, before it serves anything; it may be async.

    For what takes long and is needed by every batch, such as loading a model. If it raises, the
    executor does not start. Where a class has several, they are called from the top of the class.

    Raises:
        ConfigError: it has arguments, or decorates no method without parameters.
    """
    return _life_cycle("enter", misplaced, refused)


def exit(  # noqa: A001 - Modal's name for it
    *misplaced: Any, **refused: Any
) -> Callable[[Hook], LifeCycle]:
    """Have the executor call a method once, after the last batch; it may be async.

    It is not called where the executor is killed. What it raises is logged.

    Raises:
        ConfigError: as `enter`.
    """
    return _life_cycle("exit", misplaced, refused)


def _life_cycle(
    when: Literal["enter", "exit"], misplaced: tuple[Any, ...], refused: Mapping[str, Any]
) -> Callable[[Hook], LifeCycle]:
    if misplaced or refused:
        raise ConfigError(f"{when} takes no arguments; write @shmbatch.{when}()")

    def decorate(function: Hook) -> LifeCycle:
        where = f"@shmbatch.{when}()"
        if not inspect.isfunction(function):
            raise ConfigError(f"{where} decorates {function!r:.100}; it must be a method")
        if len(inspect.signature(function).parameters) != 1:
            raise ConfigError(
                f"{where} decorates {function.__qualname__}, which is called with self alone; "
                f"give it no other parameter"
            )
        return LifeCycle(function, when)

    return decorate


def method(
    *misplaced: Any,
    slots: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lengths: Mapping[str, int] | None = None,
    codec: str | None = None,
    idempotent: bool = False,
    execution_timeout: float | None = None,
) -> Callable[[Callable[..., Any]], Method]:
    """Have a method of an `App.cls` class called as it is, with the arguments of one call.

    One call at a time, and none while a batch of the same instance runs: so it may change what
    the batches use. Its annotations are those of single values. It may be async, have no
    parameters, and have defaults.

    Args:
        slots: calls that one producer can have pending; by default 64.
        max_bytes, max_lengths, codec, idempotent, execution_timeout: as of `batched`.

    Raises:
        ConfigError: an argument is wrong, or what is decorated is no method.
    """
    if misplaced:
        raise ConfigError("method takes its arguments by keyword; write @shmbatch.method()")
    slot_capacity(1, slots, 0, 0)  # checks slots
    values = value_options(max_bytes, max_lengths, "list", codec)
    failing = failure_options(idempotent, execution_timeout=execution_timeout)

    def decorate(function: Callable[..., Any]) -> Method:
        if not inspect.isfunction(function):
            raise ConfigError(
                f"@shmbatch.method() decorates {function!r:.100}; it must be a method"
            )
        return Method(function, slots, values, failing)

    return decorate
