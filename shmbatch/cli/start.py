"""``shmbatch start FILE``: the executor daemon, in the foreground."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..contract.definition import Definition
from ..errors import LoadError, ShmbatchError
from ..protocol.spinning import MODES


@click.command("start")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Serve under this name instead of the app's.")
@click.option("--app", "app_name", metavar="NAME", help="Which app, where the file has several.")
@click.option(
    "--transport",
    type=click.Choice(["linux", "posix"]),  # TRANSPORTS would import the core
    default="linux",
    envvar="SHMBATCH_TRANSPORT",
    show_default=True,
    help="How segments are made and sleepers woken. [env: SHMBATCH_TRANSPORT]",
)
@click.option(
    "--wait",
    type=click.Choice(MODES),
    default="auto",
    envvar="SHMBATCH_WAIT",
    show_default=True,
    help="How the executor waits for calls: auto spins where a CPU is spare, spin always does, "
    "park never. [env: SHMBATCH_WAIT]",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--supervisor-fd", type=int, hidden=True)
def command(
    file: Path,
    name: str | None,
    app_name: str | None,
    transport: str,
    wait: str,
    ready_fd: int | None,
    supervisor_fd: int | None,
) -> None:
    """Serve FILE's functions until stopped.

    SIGTERM, Ctrl-C and `shmbatch stop` let calls already made finish; a second signal does not.
    """
    from ..app.load import find_app, load_file
    from ..client.function import serving
    from ..executor.process import serve

    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
        # A child of somebody: what it says is the parent's business.
        logging.getLogger("shmbatch").setLevel(logging.WARNING)
    if supervisor_fd is not None:
        os.set_inheritable(supervisor_fd, False)

    def report(message: dict[str, Any]) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as pipe:
                pipe.write(json.dumps(message) + "\n")
            ready_fd = None

    def load() -> Sequence[Definition]:
        app = find_app(load_file(file), app_name)
        serving(app.name)
        serving(served)
        if not app.definitions:
            raise LoadError(f"app {app.name!r} has no functions; add one with @app.function()")
        return list(app.definitions.values())

    try:
        # The name is needed before the file is loaded, unless the file has to say it.
        served = name if name is not None else find_app(load_file(file), app_name).name
        serve(
            served,
            load,
            transport=transport,
            wait=wait,
            ready=lambda: report({"ready": True}),
            supervisor_fd=supervisor_fd,
        )
    except ShmbatchError as error:
        if ready_fd is None:
            raise
        report({"error": type(error).__name__, "message": str(error)})
        sys.exit(1)  # who started us says why
