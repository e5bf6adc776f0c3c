"""What ``shmbatch start`` is to serve: an app of a file, or one instance of a class of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import LoadError

if TYPE_CHECKING:
    from ..app.app import App
    from ..app.classes import Class
    from ..app.parameters import Values
    from ..contract.definition import Definition


@dataclass(frozen=True)
class Target:
    """``FILE`` or ``FILE::CLASS``, with ``--app`` and ``--param``."""

    file: Path
    app: str | None
    user_class: str | None
    params: tuple[str, ...]  # each as "name=value"

    @classmethod
    def parse(cls, text: str, app: str | None, params: Sequence[str]) -> Target:
        """Read what stands on the command line.

        Raises:
            click.UsageError: there are parameters, and no class that they are of.
        """
        file, colons, user_class = text.partition("::")
        if params and not colons:
            raise click.UsageError(f"--param goes with a class, as in {file}::CLASS")
        return cls(Path(file), app, user_class if colons else None, tuple(params))

    def name(self, served: str | None) -> str:
        """Import the file; return the name that producers look for.

        Args:
            served: the name that it is to be served under instead, if there is one.

        Raises:
            LoadError: the file does not load, or lacks the app or the class.
            ConfigError: a parameter is wrong.
        """
        app = self._find_app(served)
        if self.user_class is None:
            return app.name
        chosen, values = self._chosen(app)
        return chosen.address(values, next(iter(chosen.members))).served_as()

    def definitions(self, served: str | None, *, under_run: bool) -> list[Definition]:
        """Import the file; return what there is to serve.

        Args:
            under_run: there may be nothing but instances with executors of their own, which are
                started on first use.

        Raises:
            LoadError, ConfigError: as `name`; or there are no functions.
        """
        app = self._find_app(served)
        if self.user_class is not None:
            chosen, values = self._chosen(app)
            return chosen.definitions(values)
        if not app.definitions and not app.classes:
            raise LoadError(f"app {app.name!r} has no functions; add one with @app.function()")
        if not app.definitions and not under_run:
            one = next(iter(app.classes.values()))
            raise LoadError(
                f"class {one.name} of app {app.name!r} needs parameters "
                f"({', '.join(one.parameters)}); serve one instance with "
                f"`shmbatch start {self.file}::{one.name} --param ...`"
            )
        return list(app.definitions.values())

    def _chosen(self, app: App) -> tuple[Class, Values]:
        if self.user_class not in app.classes:
            known = ", ".join(map(repr, app.classes)) or "none"
            raise LoadError(f"app {app.name!r} has no class {self.user_class!r}; it has {known}")
        chosen = app.classes[self.user_class]
        return chosen, chosen.read(self.params)

    def _find_app(self, served: str | None) -> App:
        from ..app.load import find_served_app, load_file

        return find_served_app(load_file(self.file), self.app, served)
