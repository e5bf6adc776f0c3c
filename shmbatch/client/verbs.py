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


def _bound_class(method: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Verb]:
    """Return a class for one verb, so that binding it creates a single object."""
    attributes = {"_twin": staticmethod(twin), "__doc__": method.__doc__}
    return type(f"Verb[{method.__name__}]", (Verb,), attributes)


class _VerbMethod:
    """A method in its class; binds as a `Verb`."""

    def __init__(self, method: Callable[..., Any], twin: Callable[..., Any]) -> None:
        self._method = method
        self._name = method.__name__
        self._bound = _bound_class(method, twin)
        self.__doc__ = method.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        bound = self._bound(self._method, instance)
        # Where there is a dictionary the verb is found there next time, at a third of the cost.
        if owner.__dictoffset__:
            instance.__dict__[self._name] = bound
        return bound


def verb(twin: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a method whose asyncio version is *twin*."""

    def decorate(method: Callable[..., Any]) -> _VerbMethod:
        return _VerbMethod(method, twin)

    return decorate


def static_verb(twin: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a static method whose asyncio version is *twin*, a static method itself."""

    def decorate(method: Callable[..., Any]) -> Any:
        return staticmethod(_bound_class(method, twin)(method))

    return decorate
