"""How an entrypoint's parameters are written on the command line, as options of its own."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from ..errors import ConfigError

_SIMPLE = {int: click.INT, float: click.FLOAT, str: click.STRING}


def parsed(
    entrypoint: Callable[..., Any], arguments: Sequence[str], command_line: str
) -> dict[str, Any]:
    """Return what *arguments* give to *entrypoint*, by the names of its parameters.

    ``n_steps: int = 3`` is ``--n-steps``; a bool is a flag with a ``--no-`` twin; a ``list[T]``
    may be given several times; what has no default must be given.

    Args:
        command_line: what stands before *arguments*, for messages.

    Raises:
        ConfigError: a parameter has an annotation that no option can have.
        click.UsageError: an option is unknown, missing or malformed.
    """
    name = entrypoint.__name__
    command = click.Command(
        name,
        params=[
            _option(parameter, hint, f"parameter {parameter.name!r} of entrypoint {name!r}")
            for parameter, hint in _parameters(entrypoint)
        ],
        help=inspect.getdoc(entrypoint),
    )
    with command.make_context(command_line, list(arguments)) as context:
        # What is not given has Python's default, whatever that is.
        return {
            given: value
            for given, value in context.params.items()
            if context.get_parameter_source(given) is not ParameterSource.DEFAULT
        }


def _parameters(entrypoint: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    parameters = inspect.signature(entrypoint).parameters.values()
    if not parameters:
        return []
    try:
        hints = typing.get_type_hints(entrypoint)
    except Exception as error:
        raise ConfigError(
            f"an annotation of entrypoint {entrypoint.__name__!r} cannot be resolved "
            f"({type(error).__name__}: {error}); use names that the module has when it runs"
        ) from error
    return [(each, hints.get(each.name, _unannotated(each))) for each in parameters]


def _unannotated(parameter: inspect.Parameter) -> Any:
    """Return what a parameter without annotation is taken for: what its default is, or a str."""
    kind = type(parameter.default)
    return kind if kind in (*_SIMPLE, bool) else str


def _option(parameter: inspect.Parameter, hint: Any, where: str) -> click.Option:
    flag = "--" + parameter.name.replace("_", "-")
    options: dict[str, Any] = {"required": parameter.default is parameter.empty}
    if not options["required"] and parameter.default not in (None, ""):
        options["help"] = f"{_shown(parameter.default)} by default."
    hint = _without_none(hint)
    if hint is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", parameter.name], **options)
    if typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
        options["multiple"] = True
        options["callback"] = lambda context, option, values: list(values)
    return click.Option([flag, parameter.name], type=_type(hint, where), **options)


def _shown(default: Any) -> str:
    """Return a default as it would be written on the command line."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, enum.Enum):
        return default.name
    if isinstance(default, list | tuple):
        return ", ".join(map(_shown, default))
    return str(default)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(others) == 1:
            return others[0]
    return hint


def _type(hint: Any, where: str) -> Any:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, Path):
        return click.Path(path_type=hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _Choice({each.name: each for each in hint})
    if typing.get_origin(hint) is Literal:
        return _Choice({str(each): each for each in typing.get_args(hint)})
    # Not imported: an entrypoint whose parameter it is has done that.
    if getattr(hint, "__module__", "") == "datetime" and hint.__name__ == "datetime":
        return click.DateTime()
    raise ConfigError(
        f"{where} has annotation {inspect.formatannotation(hint)[:200]}; use int, float, str, "
        f"bool, Path, datetime, an Enum, a Literal, or a list of one of these"
    )


class _Choice(click.Choice[Any]):
    """One of some values, each written by its name."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(list(values))
        self._values = values

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        return self._values[super().convert(value, param, context)]
