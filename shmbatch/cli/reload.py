"""``shmbatch reload NAME``: have an executor replaced by one that has loaded its file anew."""

from __future__ import annotations

import click

from .printing import say


@click.command("reload")
@click.argument("name")
def command(name: str) -> None:
    """Load the file of a supervised executor anew; the old one serves until the new one can.

    For executors of `shmbatch start --restart`. No call fails: those made before run in the old
    executor, later ones in the new one. If the file does not load, the old one goes on.
    """
    from ..client.reloading import reload

    reloaded = reload(name)
    say(
        f"{name} is served by process {reloaded.pid}: loading took {reloaded.load_s:.2f} s, and "
        f"nobody accepted calls for {reloaded.gap_s * 1e3:.1f} ms"
    )
