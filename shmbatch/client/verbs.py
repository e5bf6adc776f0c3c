"""Methods with an asyncio twin: ``f.remote(x)`` and ``await f.remote.aio(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocol._core import Verb


class VerbMethod:
    """A method in its class; binds as a `Verb`."""

    def __init__(self, method: Callable[..., Any], twin: Callable[..., Any]) -> None:
        self.__wrapped__ = method
        self.__doc__ = method.__doc__
        self._twin = twin

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else Verb(*self.bound(instance))

    def bound(self, instance: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the method of *instance*, and its twin."""
        return self.__wrapped__.__get__(instance), self._twin.__get__(instance)


def verb(twin: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a method whose asyncio version is *twin*."""

    def decorate(method: Callable[..., Any]) -> VerbMethod:
        return VerbMethod(method, twin)

    return decorate


def static_verb(twin: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a static method whose asyncio version is *twin*, a static method itself."""

    def decorate(method: Callable[..., Any]) -> Any:
        return staticmethod(Verb(method, twin))

    return decorate
