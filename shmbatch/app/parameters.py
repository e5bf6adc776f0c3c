"""What a class is to be told before an instance of it is made: which values, and how written."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

_TYPES = (int, str, float, bool, bytes)
MAX_NBYTES = 65_536  # of a str or bytes; Linux takes 128 KiB an argument of a command
REQUIRED: Any = object()
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Values = tuple[tuple[str, Any], ...]  # of parameters, in the order of the class


@dataclass(frozen=True)
class Parameter:
    """What a class is to be told before it is made; see `parameter`."""

    default: Any
    name: str = ""
    type: Any = object

    def checked(self, value: Any, where: str) -> Any:
        """Return *value*, which must be of the parameter's type; an int is taken for a float."""
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type:
            raise ConfigError(f"{where} is {value!r:.100}; use a value of {self.type.__name__}")
        # An executor is told on its command line.
        if self.type in (str, bytes):
            try:
                encoded = os.fsencode(value)
            except UnicodeEncodeError:
                encoded = b"\0"
            if b"\0" in encoded:
                raise ConfigError(f"{where} is {value!r:.100}; drop what UTF-8 lacks, and NUL")
            if len(encoded) > MAX_NBYTES:
                raise ConfigError(
                    f"{where} has {len(encoded)} bytes, at most {MAX_NBYTES} fit; "
                    f"name a file that it is in"
                )
        if self.type is int and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{where} needs {value.bit_length()} bits; use an int of 64")
        return value

    def read(self, text: str, where: str) -> Any:
        """Return the value that a person means by *text*."""
        try:
            if self.type is bool:
                return _BOOLS[text.lower()]
            return os.fsencode(text) if self.type is bytes else self.type(text)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{where} is {text[:100]!r}; write a value of {self.type.__name__}"
            ) from None


def parameter(*misplaced: Any, default: Any = REQUIRED) -> Any:
    """Declare a parameter of an `App.cls` class: ``seed: int = shmbatch.parameter(default=0)``.

    The annotation is int, str, float, bool or bytes. Each set of values has an executor of its
    own; that of the defaults is the app's.

    Args:
        default: a value of that type; without one, every instance has to be given a value.

    Raises:
        ConfigError: *default* is not given by keyword.
    """
    if misplaced:
        raise ConfigError("parameter takes its default by keyword; write parameter(default=...)")
    return Parameter(default)


def parameters_of(attributes: Mapping[str, Any], user_class: type) -> dict[str, Parameter]:
    """Return the parameters of a class, by name.

    Args:
        attributes: what it and those that it inherits from define.

    Raises:
        ConfigError: a name is private, an annotation is missing or not supported, or a default
            does not fit it.
    """
    found = {name: each for name, each in attributes.items() if isinstance(each, Parameter)}
    if not found:
        return {}
    try:
        hints = typing.get_type_hints(user_class)
    except Exception as error:
        raise ConfigError(
            f"an annotation of class {user_class.__name__} cannot be resolved "
            f"({type(error).__name__}: {error}); use names that the module has when it runs"
        ) from error
    parameters = {}
    for name, each in found.items():
        where = f"parameter {name!r} of {user_class.__name__}"
        if name.startswith("_"):
            raise ConfigError(f"{where} begins with an underscore; what is told is public")
        kind = hints.get(name)
        if kind not in _TYPES:
            names = ", ".join(allowed.__name__ for allowed in _TYPES)
            raise ConfigError(f"{where} needs an annotation, one of {names}")
        typed = Parameter(each.default, name, kind)
        if each.default is not REQUIRED:
            typed = Parameter(typed.checked(each.default, f"the default of {where}"), name, kind)
        parameters[name] = typed
    return parameters


def shown(values: Values) -> str:
    """Write values as a person would, as in ``seed=3``."""
    return ", ".join(f"{name}={value!r}" for name, value in values)
