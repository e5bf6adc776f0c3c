"""Methods with an asyncio twin: ``f.remote(x)`` and ``await f.remote.aio(x)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class Verb(partial[Any]):
    """A bound method; its asyncio twin is `aio`."""

    _twin: Callable[..., Any]

    @property
    def aio(self) -> Callable[..., Any]:
        """The same for event loops: a coroutine function, or an async generator function."""
        return partial(self._twin, *self.args)


class verb:  # noqa: N801 - a decorator, like property
    """Decorate a method, and with ``.twin`` its asyncio version."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._twin = method
        self._name = method.__name__
        self.__doc__ = method.__doc__

    def twin(self, method: Callable[..., Any]) -> verb:
        """Set the asyncio version."""
        self._twin = method
        return self

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        bound = Verb(self._method, instance)
        bound._twin = self._twin
        # Where there is a dictionary the verb is found there next time, which is twice as fast.
        if hasattr(instance, "__dict__"):
            instance.__dict__[self._name] = bound
        return bound
