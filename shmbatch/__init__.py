"""Dynamic batching over shared memory: many processes, one GPU, one machine.

The public names, loaded when they are first used; nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .app.app import App
    from .app.decorators import batched
    from .app.endpoints import asgi_app, fastapi_endpoint, web_endpoint
    from .app.ensuring import ensure
    from .app.members import enter, exit, method  # noqa: A004 - Modal's names
    from .app.parameters import parameter
    from .client.asking import statistics
    from .client.call import FunctionCall
    from .client.connecting import connect
    from .client.function import Function
    from .client.stopping import stop
    from .contract.ragged import Padded

__all__ = [
    "App",
    "Function",
    "FunctionCall",
    "Padded",
    "asgi_app",
    "batched",
    "connect",
    "ensure",
    "enter",
    "errors",
    "exit",
    "fastapi_endpoint",
    "method",
    "parameter",
    "statistics",
    "stop",
    "web_endpoint",
]

_HOMES = {
    "App": "app.app",
    "Function": "client.function",
    "FunctionCall": "client.call",
    "Padded": "contract.ragged",
    "asgi_app": "app.endpoints",
    "batched": "app.decorators",
    "connect": "client.connecting",
    "ensure": "app.ensuring",
    "enter": "app.members",
    "exit": "app.members",
    "fastapi_endpoint": "app.endpoints",
    "method": "app.members",
    "parameter": "app.parameters",
    "statistics": "client.asking",
    "stop": "client.stopping",
    "web_endpoint": "app.endpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shmbatch' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
