"""Which values one call takes and which it gives back, read from a function's definition.

A `Signature` is data: it travels in the handshake, so that a producer needs neither the user's
file nor what that file imports. Arguments travel by position, one column each.
"""

from __future__ import annotations

import inspect
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ConfigError, InputError, InputTypeError, ProtocolError, SignatureMismatch
from .columns import Column
from .options import ValueOptions

if TYPE_CHECKING:
    from pathlib import Path

MAX_PARAMETERS = 64  # as many as the core has columns

_DEFAULTS = ValueOptions()


Default: TypeAlias = bool | int | float | str | bytes | None


@dataclass(frozen=True)
class Signature:
    """The columns of one function; equal signatures are interchangeable."""

    parameters: tuple[Column, ...]  # in the order of the definition; at least one, unless plain
    result: Column
    plain: bool = False  # the function takes single values, and not lists or stacks of them
    defaults: tuple[tuple[str, Default], ...] = ()  # plain: of the last parameters

    def describe(self) -> str:
        """Return the signature as a person would write it."""
        defaults = {name: f" = {value!r}" for name, value in self.defaults}
        parameters = ", ".join(
            f"{column.name}: {self._annotation(column)}{defaults.get(column.name, '')}"
            for column in self.parameters
        )
        return f"({parameters}) -> {self._annotation(self.result)}"

    def _annotation(self, column: Column) -> str:
        return column.plain_annotation if self.plain else column.annotation

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], function_name: str
    ) -> tuple[Any, ...]:
        """Return one value per parameter, in order; the values themselves are not checked.

        Cheap where all arguments are positional: then *args* comes back as it is.

        Raises:
            InputTypeError: too many, too few, unknown or doubly given arguments.
        """
        if not kwargs and len(args) == len(self.parameters):
            return args
        if len(args) > len(self.parameters):
            raise self._misfit(
                function_name, f"takes {_count(len(self.parameters))}, {len(args)} were given"
            )
        names = [column.name for column in self.parameters]
        defaults = dict(self.defaults)
        for name in kwargs:
            if name not in names:
                raise self._misfit(function_name, f"got an unexpected argument {name!r}")
            if name in names[: len(args)]:
                raise self._misfit(function_name, f"got multiple values for argument {name!r}")
        missing = [
            name for name in names[len(args) :] if name not in kwargs and name not in defaults
        ]
        if missing:
            raise self._misfit(
                function_name,
                f"takes {_count(len(names))}, missing {', '.join(map(repr, missing))}",
            )
        given = {**defaults, **kwargs}
        return args + tuple(given[name] for name in names[len(args) :])

    def _misfit(self, function_name: str, fact: str) -> InputTypeError:
        remedy = f"its signature is {self.describe()}"
        if not self.plain:
            remedy = f"give one value of each list or stack in {self.describe()}"
        return InputTypeError(f"{function_name}() {fact}; {remedy}")

    def mismatch(self, theirs: Signature, address: str) -> SignatureMismatch:
        """Return the error of a producer that has *theirs* where the executor has this one."""
        fact = f"'{address}' is {self.describe()} in the executor and "
        if self.describe() != theirs.describe():
            fact += f"{theirs.describe()} in this producer"
        else:  # the same annotations, with other options or of classes that have changed
            pairs = zip(
                (*self.parameters, self.result), (*theirs.parameters, theirs.result), strict=True
            )
            differing = [f"{a.name!r} in {a.differences(b)}" for a, b in pairs if a != b]
            fact += f"in this producer, but differs for {'; for '.join(differing)}"
        return SignatureMismatch(f"{fact}; restart the one with the older file")

    def to_message(self) -> dict[str, Any]:
        """Return the signature as data that MessagePack has."""
        return {
            "parameters": [column.to_message() for column in self.parameters],
            "result": self.result.to_message(),
            "plain": self.plain,
            "defaults": [list(each) for each in self.defaults],
        }

    @classmethod
    def from_message(cls, message: object) -> Signature:
        """Return the signature that `to_message` described; *message* is not trusted.

        Raises:
            ProtocolError: *message* describes no signature.
        """
        if (
            not isinstance(message, dict)
            or message.keys() != {"parameters", "result", "plain", "defaults"}
            or not isinstance(message["plain"], bool)
            or not isinstance(message["parameters"], list)
            or not (not message["plain"]) <= len(message["parameters"]) <= MAX_PARAMETERS
            or (not message["plain"] and message["defaults"] != [])
        ):
            raise ProtocolError(
                f"a signature arrived as {reprlib.repr(message)}, not with 1 to {MAX_PARAMETERS} "
                "parameters and a result; use one version of shmbatch in both processes"
            )
        parameters = tuple(Column.from_message(column) for column in message["parameters"])
        result = Column.from_message(message["result"])
        names = [column.name for column in parameters]
        if len(set(names)) != len(names) or result.name != "result":
            raise ProtocolError(
                f"a signature arrived with parameters {reprlib.repr(names)} and result "
                f"{result.name!r}; parameters have different names, a result is named 'result'"
            )
        return cls(
            parameters, result, message["plain"], _defaults_from(message["defaults"], names)
        )


def _defaults_from(message: object, names: Sequence[str]) -> tuple[tuple[str, Default], ...]:
    """Return the defaults of the last of *names*; *message* is not trusted."""
    pairs: list[Any] = message if isinstance(message, list) else [None]
    if not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], Default)
        for pair in pairs
    ) or [pair[0] for pair in pairs] != list(names[len(names) - len(pairs) :]):
        raise ProtocolError(
            f"a signature arrived with defaults {reprlib.repr(message)} for parameters "
            f"{reprlib.repr(names)}; use one version of shmbatch in both processes"
        )
    return tuple((name, value) for name, value in pairs)


def signature_of(
    function: Callable[..., Any],
    name: str,
    options: ValueOptions = _DEFAULTS,
    *,
    method: bool = False,
    plain: bool = False,
) -> Signature:
    """Read the signature of a function that is to be served.

    Args:
        name: of the function, begins the message of an error, as in ``sums.batch_add``.
        options: how its values travel where an annotation leaves a choice.
        method: the first parameter is ``self``, and no part of the signature.
        plain: the function takes single values, and not lists or stacks of them; it may have
            no parameters, and defaults.

    Raises:
        ConfigError: the function cannot be batched, or an annotation is not supported.
    """
    from .annotations import parse_annotation  # for definitions only

    _check_kind(function, name)
    parameters = dict(inspect.signature(function).parameters)
    if method:
        if not parameters:
            raise ConfigError(f"{name} has no parameters; a method's first one is self")
        del parameters[next(iter(parameters))]
    if not parameters and not plain:
        raise ConfigError(f"{name} has no parameters; a batch needs at least 1 list or stack")
    if len(parameters) > MAX_PARAMETERS:
        raise ConfigError(f"{name} has {len(parameters)} parameters; use at most {MAX_PARAMETERS}")
    for parameter in parameters.values():
        _check_parameter(parameter, name, plain)
    hints = _hints(function, name)
    empty = inspect.Parameter.empty
    signature = Signature(
        tuple(
            parse_annotation(
                hints.get(key, empty), key, f"parameter {key!r} of {name}", options, plain=plain
            )
            for key in parameters
        ),
        parse_annotation(
            hints.get("return", empty), "result", f"result of {name}", options, plain=plain
        ),
        plain,
        tuple(
            (each.name, each.default)
            for each in parameters.values()
            if each.default is not each.empty
        ),
    )
    _check_options(signature, options, name)
    _check_defaults(signature, name)
    return signature


def _check_defaults(signature: Signature, name: str) -> None:
    """Refuse a default that a call could not give, or that does not travel in a handshake."""
    if not signature.defaults:
        return
    from .packing import packing  # for definitions only

    columns = {column.name: column for column in signature.parameters}
    for parameter, value in signature.defaults:
        where = f"the default of parameter {parameter!r} of {name}"
        if not isinstance(value, Default):
            raise ConfigError(
                f"{where} is a {type(value).__name__}; use None, a bool, a number, str or bytes"
            )
        if value != value:
            raise ConfigError(f"{where} is nan, which equals no other in a handshake; use None")
        column = columns[parameter]
        packed = packing(column, where)
        try:
            (column.coerce if packed is None else packed.pack)(value, where)
        except InputError as misfit:
            raise ConfigError(str(misfit)) from None


def _check_options(signature: Signature, options: ValueOptions, name: str) -> None:
    """Refuse what was said about axes that are not there."""
    columns = (*signature.parameters, signature.result)
    axes = {axis for column in columns for axis in column.axes if axis}
    for axis, _ in options.max_lengths:
        if axis not in axes:
            known = f"named axes are {', '.join(sorted(axes))}" if axes else "no axis is named"
            raise ConfigError(
                f"max_lengths has {axis!r}, which is no axis of a value of {name} "
                f"({known}, beside the first, which is the batch); drop it"
            )
    if options.ragged == "pad" and not axes:
        raise ConfigError(
            f"ragged='pad' means nothing for {name}, which has no named axis; drop it, "
            'or name one as in "batch seq 16" with max_lengths={"seq": 512}'
        )


def source_file(function: Callable[..., Any]) -> Path:
    """Return the file from which the executor can import *function*.

    Raises:
        ConfigError: there is none; the function was typed into a session or made by ``exec``.
    """
    from pathlib import Path  # 4 ms, for definitions only

    code = getattr(inspect.unwrap(function), "__code__", None)
    filename = code.co_filename if isinstance(code, types.CodeType) else ""
    main = sys.modules.get("__main__")
    in_session = function.__module__ == "__main__" and not getattr(main, "__file__", None)
    # A notebook names files that do not exist, for the sake of its tracebacks.
    if in_session or not Path(filename).is_file():
        raise ConfigError(
            f"{function.__qualname__} was not defined in a file (its source is "
            f"{filename or 'unknown'!r}), so no executor can import it; put it in a file"
        )
    return Path(filename).resolve()


def _count(number: int) -> str:
    return f"{number} argument{'' if number == 1 else 's'}"


def _check_kind(function: object, name: str) -> None:
    if isinstance(function, type):
        raise ConfigError(f"{name} is a class; decorate its batched methods instead")
    if not inspect.isfunction(function):
        raise ConfigError(
            f"{name} is of type {type(function).__name__}; write it with def or async def"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{name} is a generator, which gives its results one by one; "
            "return a list with one result per input"
        )


def _check_parameter(parameter: inspect.Parameter, name: str, plain: bool) -> None:
    where = f"parameter {parameter.name!r} of {name}"
    if parameter.kind is parameter.VAR_POSITIONAL:
        raise ConfigError(
            f"{name} takes *{parameter.name}; name each parameter, one column stands for one"
        )
    if parameter.kind is parameter.VAR_KEYWORD:
        raise ConfigError(
            f"{name} takes **{parameter.name}; name each parameter, one column stands for one"
        )
    if parameter.kind is parameter.KEYWORD_ONLY:
        raise ConfigError(f"{where} is keyword-only, values are passed by position; drop the '*'")
    if parameter.default is not parameter.empty and not plain:
        raise ConfigError(
            f"{where} has a default, but in a batch every call gives a value; drop the default"
        )


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        culprit = _unresolvable(function)
        where = f"annotation of {culprit} of {name}" if culprit else f"an annotation of {name}"
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(
            f"{where} cannot be resolved ({reason}); "
            "annotate with names that the module has when it runs"
        ) from error


def _unresolvable(function: Callable[..., Any]) -> str:
    """Name the first parameter whose annotation fails alone, or "" if that cannot be said."""
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        annotations = dict(function.__annotations__)
    except Exception:  # from Python 3.14 on annotations are evaluated only here
        return ""
    for name, annotation in annotations.items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            typing.get_type_hints(alone, namespace, include_extras=True)
        except Exception:
            return "the result" if name == "return" else f"parameter {name!r}"
    return ""
