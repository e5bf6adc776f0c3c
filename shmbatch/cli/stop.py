"""``shmbatch stop NAME``: have an executor drain and end, and wait for that."""

from __future__ import annotations

import click


@click.command("stop")
@click.argument("name")
@click.option("--now", is_flag=True, help="Do not let calls already made finish.")
def command(name: str, now: bool) -> None:
    """Let the executor NAME finish the calls already made, and wait until it has ended."""
    from ..client.asking import stop

    stop(name, now=now)
