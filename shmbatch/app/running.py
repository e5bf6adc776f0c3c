"""`app.run()`: an executor as a child of this process, under a private name."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from types import TracebackType

from ..client import pool
from ..errors import ConfigError
from ..protocol import descriptors, names, owners, ownership
from .child import end, lifeline_to, serving_child
from .starting import gone_on_leaving


class Running:
    """Context manager; see `App.run`. Each entry starts an executor of its own."""

    def __init__(
        self,
        app: str,
        file: Path,
        *,
        wait: str | None,
        transport: str | None,
        device: str | None,
    ) -> None:
        self._app = app
        self._file = file
        self._options = {"wait": wait, "transport": transport, "device": device}
        self._outer: dict[str, str | None] = {}  # what stood in the environment
        self._child: subprocess.Popen[bytes] | None = None
        self._private = ""
        self._outer_name: str | None = None

    @property
    def pid(self) -> int | None:
        """The executor's process, while it runs; another one after it has died."""
        if self._child is None:
            return None
        owner = owners.owner(self._private)
        return None if owner is None or owner.pid == self._child.pid else owner.pid

    def __enter__(self) -> Running:
        if self._child is not None:
            raise ConfigError(f"app {self._app!r} runs already in this context")
        self._private = f"{names.RUN}{secrets.token_hex(6)}"
        with descriptors.needed(f"start an executor of '{self._file}'"):
            lifeline = lifeline_to(os.getpid())
        self._child = serving_child(
            self._file,
            "--restart",
            lifeline=lifeline,
            name=self._private,
            app=self._app,
            run=self._private,
            **self._options,
        )
        self._outer_name = names.resolve(self._app)
        names.advertise(self._app, self._private)
        pool.rebind(self._app)
        # For producers, and for executors of classes, which they start when they use them first.
        for option, value in self._options.items():
            if value is not None:
                variable = f"SHMBATCH_{option.upper()}"
                self._outer[variable] = os.environ.get(variable)
                os.environ[variable] = value
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer_name in (None, self._app):
            names.withdraw(self._app)
        else:  # it runs in an outer context too
            names.advertise(self._app, self._outer_name)
        for variable, value in self._outer.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        self._outer.clear()
        self._end()

    def _end(self) -> None:
        """Have the executor drain, and wait until it is gone, and its supervisor."""
        child, self._child = self._child, None
        if child is None:
            return
        with gone_on_leaving(self._private):
            end(child)
        ownership.sweep()  # it, or an instance, may have been killed and left its own
        pool.forget(self._private, instances=True)
