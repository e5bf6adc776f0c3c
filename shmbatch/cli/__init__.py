"""The command line, verb first; one file a verb, imported when it is used.

Results go to standard output, everything else to standard error. Exit status: 0 done, 1 found a
problem, 2 usage.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import NoReturn

import click

from ..errors import ShmbatchError
from ..protocol.descriptors import shortage
from .printing import leave_terminals_that_hung_up

_VERBS = ("run", "serve", "start", "reload", "stop", "ps", "stats", "tune", "doctor")


class _Verbs(click.Group):
    """Imports a verb's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        command = importlib.import_module(f".{name}", __name__).command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Verbs)
@click.version_option(package_name="shmbatch")
def _group() -> None:
    """Dynamic batching over shared memory: many processes, one GPU, one machine."""


def main() -> None:
    """Run the command line; the script ``shmbatch``."""
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, format=form)
    logging.getLogger("shmbatch").setLevel(logging.INFO)  # other libraries' warnings only
    try:
        _group(prog_name="shmbatch")
    except ShmbatchError as error:
        _fail(error)
    except OSError as error:
        told = shortage("go on", error)
        if told is None:
            raise
        _fail(told)
    finally:
        leave_terminals_that_hung_up()


def _fail(error: ShmbatchError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(1)
