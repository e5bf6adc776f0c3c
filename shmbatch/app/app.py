"""`App`: a named set of functions that one executor process serves."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.function import Function
from ..contract.definition import Definition
from ..contract.device import device_name
from ..contract.gpu import check_graphs
from ..contract.lending import check_read_only
from ..contract.signature import signature_of, source_file
from ..errors import ConfigError
from ..protocol.names import Address, check_name
from ..protocol.spinning import wait_mode
from ..protocol.transport import transport_name
from .decorators import Batched
from .endpoints import Endpoint, Registers
from .paths import resolved

if TYPE_CHECKING:
    from .classes import Class
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
        self.definitions: dict[str, Definition] = {}  # what its own executor serves
        self.classes: dict[str, Class] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.entrypoints: dict[str, Callable[..., Any]] = {}
        known.add(self)

    def function(self, *misplaced: Any, **refused: Any) -> Registers:
        """Have a batched function or a web endpoint served by this app.

        A batched function becomes its handle; an endpoint remains the function that it is.

        Raises:
            ConfigError: it is neither, cannot be batched, or its name is taken.
        """
        if misplaced:
            raise ConfigError("app.function takes no arguments; write @app.function()")
        _refuse_image(refused)
        if refused:
            raise ConfigError(
                f"app.function takes no {', '.join(refused)}; options go to @shmbatch.batched(...)"
            )

        def register(batched: Any) -> Any:
            if isinstance(batched, Endpoint):
                return self._register_endpoint(batched)
            if inspect.isclass(batched):
                raise ConfigError(f"{batched.__name__!r} is a class; use @app.cls()")
            if not isinstance(batched, Batched):
                raise ConfigError(
                    f"{getattr(batched, '__name__', batched)!r} is not batched; put "
                    f"@shmbatch.batched(max_batch_size=..., wait_ms=...) below @app.function()"
                )
            name = check_name(batched.function.__name__, "function name")
            inside = batched.function.__qualname__.rpartition(".")[0]
            if inside and not inside.endswith("<locals>"):
                raise ConfigError(
                    f"{name!r} is a method of class {inside!r}; put @app.cls() above the class, "
                    f"and only @shmbatch.batched(...) above the method"
                )
            address = Address(self.name, name)
            signature = signature_of(batched.function, str(address), batched.values)
            source_file(batched.function)  # an interactive function cannot be served
            self._refuse_taken(name)
            definition = batched.definition(name, signature)
            check_graphs(definition, str(address))
            check_read_only(definition, str(address))
            self.definitions[name] = definition
            return Function(
                address,
                local=batched.function,
                signature=signature,
                decorated=batched.parameters,
            )

        return register

    def _register_endpoint(self, endpoint: Endpoint) -> Callable[..., Any]:
        name = endpoint.checked_name()
        self._refuse_taken(name)
        self.endpoints[name] = endpoint
        return endpoint.function

    def _refuse_taken(self, name: str) -> None:
        if name in self.definitions or name in self.endpoints:
            raise ConfigError(f"app {self.name!r} has a function {name!r} already; rename one")

    def cls(self, *misplaced: Any, **refused: Any) -> Callable[[type], Class]:
        """Have the batched and the plain methods of a class served by this app.

        The executor makes one object of the class, enters it, and serves its methods; there is
        one more executor for each other set of its parameters. The class's name comes to stand
        for a `Class`: ``Policy().act.remote(x)``.

        Raises:
            ConfigError: it is no class, cannot be served, or its name is taken.
        """
        if misplaced:
            raise ConfigError("app.cls takes no arguments; write @app.cls()")
        _refuse_image(refused)
        if refused:
            raise ConfigError(
                f"app.cls takes no {', '.join(refused)}; options go to @shmbatch.batched(...)"
            )

        def register(user_class: type) -> Class:
            if not inspect.isclass(user_class):
                raise ConfigError(
                    f"@app.cls() decorates {user_class!r:.100}, which is no class; "
                    f"use @app.function()"
                )
            from .classes import Class  # for who has one

            made = Class(self, user_class)
            if made.name in self.classes:
                raise ConfigError(
                    f"app {self.name!r} has a class {made.name!r} already; rename one"
                )
            if not made.needs_parameters:
                served = made.definitions(made.values({}))
                self.definitions.update((each.name, each) for each in served)
            self.classes[made.name] = made
            return made

        return register

    def local_entrypoint(
        self, *misplaced: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make a function, sync or async, what ``shmbatch run`` calls.

        Its parameters become options of that command: ``n_steps: int = 3`` is ``--n-steps``.

        Raises:
            ConfigError: it takes ``*args``, ``**kwargs`` or parameters by position only, or its
                name is taken.
        """
        if misplaced:
            raise ConfigError(
                "app.local_entrypoint takes no arguments; write @app.local_entrypoint()"
            )

        def register(entrypoint: Callable[..., Any]) -> Callable[..., Any]:
            if not inspect.isfunction(entrypoint):
                raise ConfigError(f"entrypoint {entrypoint!r:.100} must be a function")
            for each in inspect.signature(entrypoint).parameters.values():
                if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                    raise ConfigError(
                        f"entrypoint {entrypoint.__name__!r} takes {each}, which is no option "
                        f"of a command; name each parameter"
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
        meanwhile. On leaving, calls already made finish, then the executor ends. If it dies
        before, another one is started; if that fails five times in a row, calls get
        `ExecutorGone` with the cause.

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
        if not self.definitions and not self.classes:
            raise ConfigError(f"app {self.name!r} has no functions; add one with @app.function()")
        if wait is not None:
            wait_mode(wait)
        transport_name(transport)
        device_name(device)
        from .running import Running  # and with it subprocess: 10 ms, for who runs an app

        return Running(self.name, self.file, wait=wait, transport=transport, device=device)

    def __repr__(self) -> str:
        return f"<App {self.name!r}: {', '.join(self.definitions) or 'no functions'}>"


# Every app of this process: a handle has the address of its function, and not its definition.
known: weakref.WeakSet[App] = weakref.WeakSet()


def _refuse_image(options: dict[str, Any]) -> None:
    if "image" in options:
        raise ConfigError("there is no image=: everything runs on this machine, as it is; drop it")
