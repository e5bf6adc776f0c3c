"""Dynamic batching over shared memory: many processes, one GPU, one machine.

The public names, loaded when they are first used; nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .app.app import App
    from .app.decorators import batched
    from .client.asking import statistics, stop
    from .client.call import FunctionCall
    from .client.connecting import connect
    from .client.function import Function

__all__ = [
    "App",
    "Function",
    "FunctionCall",
    "batched",
    "connect",
    "errors",
    "statistics",
    "stop",
]

_HOMES = {
    "App": "app.app",
    "Function": "client.function",
    "FunctionCall": "client.call",
    "batched": "app.decorators",
    "connect": "client.connecting",
    "statistics": "client.asking",
    "stop": "client.asking",
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
