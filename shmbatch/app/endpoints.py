"""`fastapi_endpoint` and `asgi_app`: what makes a function a web endpoint of its app."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, overload

from ..client.function import Function
from ..contract.signature import source_file
from ..errors import ConfigError
from ..protocol.names import check_name
from .decorators import Batched

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

# What `shmbatch serve` has at these paths itself; of openapi.json no function can have the name.
RESERVED = ("docs", "livez", "readyz", "healthz")


@dataclass(frozen=True)
class Endpoint:
    """A function that web workers serve, waiting for ``@app.function()``."""

    function: Callable[..., Any]
    method: str | None  # None: it returns an ASGI app
    docs: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"{self.function.__name__!r} is an endpoint but belongs to no app; "
            f"put @app.function() above its decorator"
        )

    def checked_name(self) -> str:
        """Return the name that its path has; raise `ConfigError` where it can have none."""
        name = check_name(self.function.__name__, "endpoint name")
        if name in RESERVED:
            raise ConfigError(
                f"endpoint {name!r} has the name of a page of `shmbatch serve` itself, "
                f"which are {', '.join(RESERVED)}; rename it"
            )
        source_file(self.function)  # workers import it
        return name


class Registers(Protocol):
    """What ``@app.function()`` does to what is below it."""

    @overload
    def __call__(self, decorated: Batched, /) -> Function: ...
    @overload
    def __call__(self, decorated: Endpoint, /) -> Callable[..., Any]: ...


def fastapi_endpoint(
    *misplaced: Any, method: str = "GET", docs: bool = False
) -> Callable[[Callable[..., Any]], Endpoint]:
    """Make a function, sync or async, a web endpoint, served by ``shmbatch serve``.

    It runs in web workers, each of which is a producer, and remains the plain function that it
    is. Parameters and result are FastAPI's business. Also called ``web_endpoint``.

    Args:
        method: of the requests that it answers, one of GET, POST, PUT, PATCH, DELETE, HEAD,
            OPTIONS.
        docs: list it at ``/docs``, where it can be tried out.

    Raises:
        ConfigError: an argument is wrong, or what is decorated is no function, is batched, or is
            a method of a class.
    """
    if misplaced:
        raise ConfigError(
            "@fastapi_endpoint takes its arguments by keyword; "
            'write @shmbatch.fastapi_endpoint(method="POST")'
        )
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise ConfigError(f"method is {method!r:.100}; it must be one of {', '.join(METHODS)}")
    if not isinstance(docs, bool):
        raise ConfigError(f"docs is {docs!r:.100}; use True or False")

    def decorate(function: Callable[..., Any]) -> Endpoint:
        _check_function(function, "@fastapi_endpoint")
        return Endpoint(function, method.upper(), docs)

    return decorate


web_endpoint = fastapi_endpoint


def asgi_app(*misplaced: Any) -> Callable[[Callable[[], Any]], Endpoint]:
    """Make a function without parameters, which returns an ASGI app, a web endpoint.

    It is called once in each web worker of ``shmbatch serve``, which mounts what it returns.

    Raises:
        ConfigError: what is decorated is no such function, is batched, or is a method of a class.
    """
    if misplaced:
        raise ConfigError("@asgi_app takes no arguments; write @shmbatch.asgi_app()")

    def decorate(function: Callable[[], Any]) -> Endpoint:
        _check_function(function, "@asgi_app")
        if inspect.iscoroutinefunction(function) or inspect.signature(function).parameters:
            raise ConfigError(
                f"@asgi_app decorates {function.__name__!r}; it must be a function, written with "
                f"def, that takes no parameters and returns the app"
            )
        return Endpoint(function, None)

    return decorate


def _check_function(function: object, decorator: str) -> None:
    if isinstance(function, Batched):
        raise ConfigError(
            f"{function.function.__name__!r} is batched, which runs in the executor; "
            f"put {decorator} on a function of its own that calls it with .remote"
        )
    if isinstance(function, Function):
        raise ConfigError(
            f"{decorator} decorates '{function.address}', a handle; put it on a function of its "
            f"own, below @app.function()"
        )
    if inspect.isclass(function):
        raise ConfigError(
            f"{decorator} decorates class {function.__name__!r}; it must be a function"
        )
    if not inspect.isfunction(function):
        raise ConfigError(f"{decorator} decorates {function!r:.100}; it must be a function")
    inside = function.__qualname__.rpartition(".")[0]
    if inside and not inside.endswith("<locals>"):
        raise ConfigError(
            f"{decorator} decorates a method of {inside!r}; an endpoint runs in a web worker, the "
            f"class in the executor: write a function outside the class"
        )
