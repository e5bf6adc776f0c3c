"""``shmbatch run FILE``: an executor, an entrypoint as its producer, and an orderly end."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import click

from ..protocol.spinning import MODES
from ..protocol.transport import TRANSPORTS
from . import options


@click.command("run")
@click.argument("target", metavar="FILE[::ENTRYPOINT]")
@click.option("--app", "app_name", metavar="NAME", help="Which app, where the file has several.")
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="How segments are made and sleepers woken; linux by default. [env: SHMBATCH_TRANSPORT]",
)
@options.device
@click.option(
    "--wait",
    type=click.Choice(MODES),
    envvar="SHMBATCH_WAIT",
    help="How executor and producers wait; auto by default. [env: SHMBATCH_WAIT]",
)
def command(
    target: str,
    app_name: str | None,
    transport: str | None,
    device: str | None,
    wait: str | None,
) -> None:
    """Start FILE's executor, run its entrypoint, drain, stop.

    Writes nothing of its own to standard output.
    """
    from ..app.load import find_app, find_entrypoint, load_file

    logging.getLogger("shmbatch").setLevel(logging.WARNING)
    file, _, entrypoint_name = target.partition("::")
    app = find_app(load_file(Path(file)), app_name)
    entrypoint = find_entrypoint(app, entrypoint_name or None)
    with app.run(transport=transport, device=device, wait=wait):
        result = entrypoint()
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
