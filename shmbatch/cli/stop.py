"""``shmbatch stop NAME``: have executors drain and end, and wait for that."""

from __future__ import annotations

import os
import sys

import click

from .printing import say


@click.command("stop")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Stop all there are, and print their names.")
@click.option("--now", is_flag=True, help="Do not let calls already made finish.")
def command(names: tuple[str, ...], everyone: bool, now: bool) -> None:
    """Let executors finish the calls already made, and wait until they have ended."""
    if everyone == bool(names):
        raise click.UsageError("give names, or --all")
    from ..client.stopping import stop_all
    from ..protocol import owners
    from ..protocol.names import PRIVATE_NAMES

    chosen = list(dict.fromkeys(names))
    if everyone:
        os.environ.pop(PRIVATE_NAMES, None)  # inside a run too: these are no app's names
        chosen = [owner.app for owner in owners.owners()]
    problem = False
    for stopped in stop_all(chosen, now=now):
        if stopped.error is None:
            if everyone:
                say(stopped.app)
        elif not everyone or owners.owner(stopped.app) is not None:  # or it ended by itself
            problem = True
            click.echo(f"error: {stopped.error}", err=True)
    if problem:
        sys.exit(1)
