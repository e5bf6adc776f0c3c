"""An instance of a class as producers know it: an object whose methods are handles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..client.function import Function
from ..protocol.names import MOST_SHOWN
from .parameters import Values, shown

if TYPE_CHECKING:
    from .classes import Class


class Instance:
    """An instance of a class, as producers know it: its methods are handles."""

    def __init__(self, of: Class, values: Values) -> None:
        self._of = of
        self._values = values
        self._made: Any = None
        self._making = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        of = self._of
        if name in of.parameters:
            return dict(self._values)[name]
        if name not in of.members:
            raise AttributeError(
                f"{name!r} of {self!r} is not served; it has {', '.join(of.members)}"
                + ("; decorate it with @shmbatch.method()" if hasattr(of.user_class, name) else "")
            )
        handle = of.handle(self._values, name, self._local(name))
        self.__dict__[name] = handle
        return handle

    def _local(self, name: str) -> Callable[..., Any]:
        """Return a method on an object in this process, which is made when it is first called."""

        def local(*args: Any, **kwargs: Any) -> Any:
            with self._making:
                if self._made is None:
                    self._made = self._of.entered(self._values)
            return getattr(self._made, name)(*args, **kwargs)

        return local

    def __reduce__(self) -> tuple[Any, ...]:
        handles = {name: getattr(self, name) for name in self._of.members}
        return _RemoteInstance, (repr(self), handles, dict(self._values))

    def __repr__(self) -> str:
        return f"<{self._of.app.name}.{self._of.name}({shown(self._values):.{MOST_SHOWN}})>"


class _RemoteInstance:
    """An instance that came from another process: its handles, without its class."""

    def __init__(self, name: str, handles: dict[str, Function], values: dict[str, Any]) -> None:
        self._arguments = (name, handles, values)
        self.__dict__.update(handles | values)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RemoteInstance, self._arguments

    def __repr__(self) -> str:
        return self._arguments[0]
