"""``shmbatch serve FILE``: an executor, and web workers that call it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..contract.device import device_name
from ..protocol.spinning import MODES
from ..protocol.transport import transport_name
from . import options


@click.command("serve")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Serve under this name instead of the app's.")
@options.app
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8080,
    show_default=True,
    help="The port to listen on; 0 for one that is free.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="How many processes answer requests, each of them a producer.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Most requests in progress in a worker; it answers one more with 503.",
)
@click.option(
    "--grace",
    type=options.Number(2),  # idle connections have one of these
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long accepted requests have to finish at a stop or reload, before they are cut off.",
)
@options.transport
@options.device
@click.option(
    "--wait",
    type=click.Choice(MODES),
    envvar="SHMBATCH_WAIT",
    help="How executor and workers wait; auto by default. [env: SHMBATCH_WAIT]",
)
def command(
    file: Path,
    name: str | None,
    app_name: str | None,
    host: str,
    port: int,
    workers: int,
    limit: int,
    grace: float,
    transport: str | None,
    device: str | None,
    wait: str | None,
) -> None:
    """Serve FILE's endpoints over HTTP, and the functions that they call.

    SIGTERM and Ctrl-C let requests that were accepted finish; a second signal does not. SIGHUP
    reloads FILE; connections wait meanwhile.
    """
    from ..app.paths import resolved
    from ..protocol import directory
    from ..web.listening import listen
    from ..web.supervisor import Settings, supervise

    transport = transport_name(transport)
    device = device_name(device)
    if name is not None:
        directory.socket_path(name)  # says what is wrong with it
    settings = Settings(
        resolved(file), app_name, name, workers, limit, grace, transport, device, wait
    )
    with listen(host, port) as listener:
        status = supervise(settings, listener)
    sys.exit(status)
