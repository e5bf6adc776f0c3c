"""How an option that several verbs have is written, and refused."""

from __future__ import annotations

import math
from typing import Any

import click

from ..contract.device import FORMS, device_name
from ..errors import ConfigError
from ..protocol.transport import TRANSPORTS


def _checked(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None  # the environment is looked at by whoever uses it
    try:
        return device_name(value)
    except ConfigError:
        raise click.BadParameter(f"{value!r} is not {FORMS}.", context, param) from None


class Number(click.FloatRange):
    """A number; NaN, which is in no range, is not refused by the range's own check."""

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        number = super().convert(value, param, context)
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, context)
        return number


app = click.option(
    "--app", "app_name", metavar="NAME", help="Which app, where the file has several."
)

transport = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="How segments are made and sleepers woken; linux by default. [env: SHMBATCH_TRANSPORT]",
)

device = click.option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    callback=_checked,
    help="Where functions on tensors run; auto by default: cuda:0 if torch sees it, else cpu. "
    "[env: SHMBATCH_DEVICE]",
)
