"""``shmbatch run FILE``: an executor, an entrypoint as its producer, and an orderly end."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import click

from ..protocol.spinning import MODES
from . import options


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="FILE[::ENTRYPOINT]")
@click.argument("arguments", metavar="[OPTIONS OF ENTRYPOINT]", nargs=-1, type=click.UNPROCESSED)
@options.app
@options.transport
@options.device
@click.option(
    "--wait",
    type=click.Choice(MODES),
    envvar="SHMBATCH_WAIT",
    help="How executor and producers wait; auto by default. [env: SHMBATCH_WAIT]",
)
def command(
    target: str,
    arguments: tuple[str, ...],
    app_name: str | None,
    transport: str | None,
    device: str | None,
    wait: str | None,
) -> None:
    """Start FILE's executor, run its entrypoint, drain, stop.

    Parameters of the entrypoint are options, as in `shmbatch run train.py --n-steps 3`; one that
    is named like an option of this command goes behind `--`, as does `--help` for all of them.
    Writes nothing of its own to standard output.
    """
    from ..app.load import find_app, find_entrypoint, load_file
    from .entrypoint import parsed

    logging.getLogger("shmbatch").setLevel(logging.WARNING)
    file, _, entrypoint_name = target.partition("::")
    app = find_app(load_file(Path(file)), app_name)
    entrypoint = find_entrypoint(app, entrypoint_name or None)
    given = parsed(entrypoint, arguments, f"shmbatch run {target} --")
    with app.run(transport=transport, device=device, wait=wait):
        result = entrypoint(**given)
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
