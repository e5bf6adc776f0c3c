"""How an option that several verbs have is written, and refused."""

from __future__ import annotations

import click

from ..contract.device import FORMS, device_name
from ..errors import ConfigError


def _checked(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None  # the environment is looked at by whoever uses it
    try:
        return device_name(value)
    except ConfigError:
        raise click.BadParameter(f"{value!r} is not {FORMS}.", context, param) from None


device = click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    callback=_checked,
    help="Where functions on tensors run; auto by default: cuda:0 if torch sees it, else cpu. "
    "[env: SHMBATCH_DEVICE]",
)
