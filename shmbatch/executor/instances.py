"""The objects of users' classes that this executor serves: made, entered, in the end exited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..contract.columns import Column
from ..contract.definition import Definition, Hook, InstanceDefinition
from ..errors import LoadError

log = logging.getLogger("shmbatch.executor")


class Instances:
    """Context manager: on leaving, the objects are exited, the last one first.

    Args:
        loop: runs hooks that are async; that of async functions.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._made: dict[InstanceDefinition, Any] = {}

    def bound(self, definitions: Sequence[Definition]) -> list[Definition]:
        """Return the definitions with functions that take lists or stacks, and nothing else.

        Makes and enters each object that a method among them needs. The same for plain methods:
        they become functions on batches of one.

        Raises:
            LoadError: a class or a hook raises.
        """
        return [self._bound(each) for each in definitions]

    def _bound(self, definition: Definition) -> Definition:
        if definition.instance is None:
            return definition
        if definition.instance not in self._made:
            self._make(definition.instance)
        function = definition.function.__get__(self._made[definition.instance])
        if definition.signature.plain:
            function = _on_batches_of_one(function, definition.signature.parameters)
        return replace(definition, function=function)

    def _make(self, instance: InstanceDefinition) -> None:
        step = f"{instance.name} cannot be made:"
        try:
            made = instance.make()
            self._made[instance] = made  # so that it is exited even if it is half entered
            for hook in instance.enter:
                step = f"{hook.__qualname__} of {instance.name} raises"
                self._call(hook, made)
        except KeyboardInterrupt:
            raise  # a signal
        except BaseException as error:
            log.exception("%s", step)
            raise LoadError(f"{step} {type(error).__name__}: {error}") from error

    def _call(self, hook: Hook, made: Any) -> None:
        awaitable = hook(made)
        if inspect.isawaitable(awaitable):
            assert self._loop is not None, "async hooks need an event loop"
            self._loop.run_until_complete(awaitable)

    def __enter__(self) -> Instances:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for instance, made in reversed(self._made.items()):
            for hook in instance.exit:
                try:
                    self._call(hook, made)
                except BaseException:
                    log.exception("%s of %s raises", hook.__qualname__, instance.name)


def needs_loop(definition: Definition) -> bool:
    """Say whether a definition has something async to it."""
    hooks: tuple[Hook, ...] = ()
    if definition.instance is not None:
        hooks = definition.instance.enter + definition.instance.exit
    return definition.is_async or any(
        inspect.iscoroutinefunction(inspect.unwrap(hook)) for hook in hooks
    )


def _on_batches_of_one(
    method: Callable[..., Any], parameters: Sequence[Column]
) -> Callable[..., Any]:
    """Return a function that takes a batch of one call and returns its result in a list.

    The arguments are the caller's to keep: a row of a stack, which belongs to the staging, is
    copied.
    """
    stacked = [column.kind == "array" for column in parameters]

    def arguments(columns: tuple[Any, ...]) -> list[Any]:
        return [
            _copied(column[0]) if is_stack else column[0]
            for column, is_stack in zip(columns, stacked, strict=True)
        ]

    if inspect.iscoroutinefunction(inspect.unwrap(method)):

        @functools.wraps(method)
        async def run_async(*columns: Any) -> list[Any]:
            return [await method(*arguments(columns))]

        return run_async

    @functools.wraps(method)
    def run(*columns: Any) -> list[Any]:
        return [method(*arguments(columns))]

    return run


def _copied(row: Any) -> Any:
    return row.clone() if hasattr(row, "clone") else row.copy()
