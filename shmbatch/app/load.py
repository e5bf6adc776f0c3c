"""How a user's file becomes a module, and which of its apps and entrypoints is meant."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import LoadError
from .app import App
from .paths import resolved


class _Anew(SourceFileLoader):
    """Loads what the file says now: reads no bytecode, and leaves none.

    Bytecode is taken for that of the file if both tell of the same second and size; a file that
    was loaded, changed by a character and is loaded again is not to be what it was before.
    """

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"no bytecode for '{path}'")


def load_file(path: Path) -> ModuleType:
    """Import a user's file, once, as a module named by its stem.

    Its folder is put in front of ``sys.path``, as for a script.

    Raises:
        LoadError: the file is missing, its stem is no module name or is taken, or it raises.
    """
    path = resolved(path)
    if not path.is_file():
        raise LoadError(f"there is no file '{path}'")
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise LoadError(f"'{path.name}' cannot be imported; name it like a module, as in sums.py")
    known = sys.modules.get(name)
    if known is not None:
        known_file = getattr(known, "__file__", None)
        if known_file and resolved(Path(known_file)) == path:
            return known
        raise LoadError(f"'{path}' has the name of module {name!r}, in use already; rename it")
    if name in sys.stdlib_module_names:  # whoever imports that later would get this file
        raise LoadError(f"'{path}' has the name of Python's own module {name!r}; rename it")
    loader = _Anew(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LoadError(f"'{path}' does not import: {_where(error, path)}") from error
    return module


def find_app(module: ModuleType, name: str | None = None) -> App:
    """Return the module's app, or that called *name*.

    Raises:
        LoadError: there is none, or there are several and *name* does not choose.
    """
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    found = [app for app in apps.values() if name is None or app.name == name]
    where = f"'{module.__file__}'"
    if not apps:
        raise LoadError(f"{where} has no app; add `app = shmbatch.App()`")
    names = ", ".join(repr(app.name) for app in apps.values())
    if not found:
        raise LoadError(f"{where} has no app {name!r}; it has {names}")
    if len(found) > 1:
        raise LoadError(f"{where} has several apps, {names}; choose one with --app")
    return found[0]


def find_served_app(module: ModuleType, name: str | None, served: str | None) -> App:
    """Return the app called *name*, else that called as it is served, else the only one.

    Raises:
        LoadError: as `find_app`.
    """
    if name is None and served is not None:
        try:
            return find_app(module, served)
        except LoadError:
            pass
    return find_app(module, name)


def find_entrypoint(app: App, name: str | None = None) -> Callable[[], Any]:
    """Return the app's entrypoint, or that called *name*.

    Raises:
        LoadError: there is none, or there are several and *name* does not choose.
    """
    names = ", ".join(map(repr, app.entrypoints))
    if not app.entrypoints:
        raise LoadError(
            f"app {app.name!r} has no entrypoint; decorate one with @app.local_entrypoint()"
        )
    if name is None and len(app.entrypoints) > 1:
        raise LoadError(f"app {app.name!r} has several entrypoints, {names}; use FILE::NAME")
    if name is not None and name not in app.entrypoints:
        raise LoadError(f"app {app.name!r} has no entrypoint {name!r}; it has {names}")
    return app.entrypoints[name if name is not None else next(iter(app.entrypoints))]


def _where(error: BaseException, path: Path) -> str:
    """Describe an error by the last line of the user's file that it came through."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    line = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{line}"
