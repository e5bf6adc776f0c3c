"""`App`: a named set of functions that one executor process serves."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.function import Function
from ..contract.definition import Definition
from ..contract.device import device_name
from ..contract.gpu import check_graphs
from ..contract.signature import signature_of, source_file
from ..errors import ConfigError
from ..protocol.names import Address, check_name
from ..protocol.spinning import wait_mode
from ..protocol.transport import transport_name
from .decorators import Batched
from .paths import resolved

if TYPE_CHECKING:
    from .running import Running


class App:
    """A named set of functions that one executor process serves.

    Args:
        name: 1 to 40 letters, digits, ``_`` or ``-``; by default the stem of the file.
    """

    def __init__(self, name: str | None = None, **refused: Any) -> None:
        _refuse_image(refused)
        if refused:
            raise ConfigError(f"App takes no {', '.join(refused)}; it takes a name")
        file = sys._getframe(1).f_globals.get("__file__")
        if name is None and file is None:
            raise ConfigError("App needs a name here, where there is no file to take it from")
        self.file = None if file is None else resolved(Path(file))
        self.name = check_name(name if name is not None else Path(str(file)).stem, "app name")
        self.definitions: dict[str, Definition] = {}
        self.entrypoints: dict[str, Callable[..., Any]] = {}

    def function(self, *misplaced: Any, **refused: Any) -> Callable[[Batched], Function]:
        """Have a batched function served by this app; returns its handle.

        Raises:
            ConfigError: it is not batched, cannot be batched, or its name is taken.
        """
        if misplaced:
            raise ConfigError("app.function takes no arguments; write @app.function()")
        _refuse_image(refused)
        if refused:
            raise ConfigError(
                f"app.function takes no {', '.join(refused)}; options go to @shmbatch.batched(...)"
            )

        def register(batched: Batched) -> Function:
            if not isinstance(batched, Batched):
                raise ConfigError(
                    f"{getattr(batched, '__name__', batched)!r} is not batched; put "
                    f"@shmbatch.batched(max_batch_size=..., wait_ms=...) below @app.function()"
                )
            name = check_name(batched.function.__name__, "function name")
            address = Address(self.name, name)
            signature = signature_of(batched.function, str(address), batched.values)
            source_file(batched.function)  # an interactive function cannot be served
            if name in self.definitions:
                raise ConfigError(f"app {self.name!r} has a function {name!r} already; rename one")
            definition = Definition(
                name,
                batched.function,
                signature,
                batched.parameters,
                batched.slots,
                batched.lockstep,
                batched.batch_sizes,
                batched.cuda_graphs,
                batched.direct_dma,
            )
            check_graphs(definition, str(address))
            self.definitions[name] = definition
            return Function(address, local=batched.function, signature=signature)

        return register

    def local_entrypoint(
        self, *misplaced: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function without parameters, sync or async, what ``shmbatch run`` calls.

        Raises:
            ConfigError: it takes parameters, or its name is taken.
        """
        if misplaced:
            raise ConfigError(
                "app.local_entrypoint takes no arguments; write @app.local_entrypoint()"
            )

        def register(entrypoint: Callable[..., Any]) -> Callable[..., Any]:
            if not inspect.isfunction(entrypoint) or inspect.signature(entrypoint).parameters:
                raise ConfigError(
                    f"entrypoint {getattr(entrypoint, '__name__', entrypoint)!r} must be a "
                    f"function without parameters"
                )
            if entrypoint.__name__ in self.entrypoints:
                raise ConfigError(
                    f"app {self.name!r} has an entrypoint {entrypoint.__name__!r} already"
                )
            self.entrypoints[entrypoint.__name__] = entrypoint
            return entrypoint

        return register

    def run(
        self,
        *,
        wait: str | None = None,
        transport: str | None = None,
        device: str | None = None,
    ) -> Running:
        """Return a context manager in which this app's executor runs as a child process.

        It has a private name: this app's handles resolve to it, here and in children started
        meanwhile. On leaving, calls already made finish, then the executor ends.

        Args:
            wait: ``"auto"``, ``"spin"`` or ``"park"``, for the executor and, through
                SHMBATCH_WAIT, for producers started meanwhile.
            transport: ``"linux"`` or ``"posix"``; by default what SHMBATCH_TRANSPORT says.
            device: where functions on tensors run, ``"auto"``, ``"cpu"``, ``"cuda"`` or
                ``"cuda:N"``; by default what SHMBATCH_DEVICE says, else ``"auto"``: ``cuda:0``
                if torch sees it, else ``cpu``.

        Raises:
            ConfigError: the app has no functions, or no file that an executor could load; or
                an argument, SHMBATCH_TRANSPORT or SHMBATCH_DEVICE is wrong.
            LoadError: the executor could not load the file.
        """
        if self.file is None:
            raise ConfigError(f"app {self.name!r} was made interactively; put it in a file")
        if not self.definitions:
            raise ConfigError(f"app {self.name!r} has no functions; add one with @app.function()")
        if wait is not None:
            wait_mode(wait)
        transport_name(transport)
        device_name(device)
        from .running import Running  # and with it subprocess: 10 ms, for who runs an app

        return Running(self.name, self.file, wait=wait, transport=transport, device=device)

    def __repr__(self) -> str:
        return f"<App {self.name!r}: {', '.join(self.definitions) or 'no functions'}>"


def _refuse_image(options: dict[str, Any]) -> None:
    if "image" in options:
        raise ConfigError("there is no image=: everything runs on this machine, as it is; drop it")
