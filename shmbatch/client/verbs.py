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
        return partial(type(self)._twin, *self.args)


class verb:  # noqa: N801 - a decorator, like property
    """Decorate a method, and with ``.twin`` its asyncio version."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._name = method.__name__
        self._bound = Verb
        self.__doc__ = method.__doc__

    def twin(self, method: Callable[..., Any]) -> verb:
        """Set the asyncio version."""
        # A class for each verb, so that binding one creates a single object.
        self._bound = type(f"Verb[{self._name}]", (Verb,), {"_twin": staticmethod(method)})
        return self

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        bound = self._bound(self._method, instance)
        # Where there is a dictionary the verb is found there next time, at a third of the cost.
        if owner.__dictoffset__:
            instance.__dict__[self._name] = bound
        return bound
