"""Values of any type that MessagePack has, typed by ``list[T]`` where there is a ``T``."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import InputError, InputTypeError, InputValueError, SignatureMismatch
from . import schema
from .coercion import refuse_size, shown, tensor_type
from .columns import Column
from .pieces import Pieces

_ARRAYS = (
    "annotate the parameter itself with an array, such as list[np.ndarray], "
    'or use codec="pickle" in @batched'
)


class MessagePack:
    """Packs the values of one column.

    Where this process cannot find the classes of ``T``, plain data goes and comes: dicts, lists
    and scalars, which the executor checks.

    Raises:
        SignatureMismatch: a class of that name is here, and is another one.
    """

    def __init__(self, column: Column, where: str) -> None:
        import msgspec

        self._max_bytes = column.max_bytes
        self._annotation = column.annotation
        self._encode = msgspec.msgpack.Encoder(enc_hook=_refuse_object).encode
        resolved = _resolved(column, where)
        self._is_typed = resolved is not Any
        self._decode = msgspec.msgpack.Decoder(resolved).decode
        self._invalid = msgspec.ValidationError

    def pack(self, value: object, subject: str) -> Pieces:
        """Encode *value*, and decode it once to see that it is a ``T``."""
        try:
            data = self._encode(value)
        except _Lacking as lacking:
            _refuse(lacking.args[0], value, subject)
        except OverflowError:
            raise InputValueError(
                f"{subject} must have ints from -2**63 to 2**64 - 1, got {shown(value)} with "
                "another; use a str or a float there"
            ) from None
        except UnicodeEncodeError as error:
            raise InputValueError(
                f"{subject} must have text that UTF-8 can hold, got a str with the surrogate "
                f"{error.object[error.start]!r} at {error.start}; drop it, or use bytes there"
            ) from None
        except RecursionError:
            raise InputValueError(
                f"{subject} is nested too deep for MessagePack; use lists beside each other"
            ) from None
        except Exception as error:  # whatever a property of the user's raises
            raise _unfit(subject, shown(value), "be packed", error) from error
        if len(data) > self._max_bytes:
            refuse_size(len(data), "in MessagePack", self._max_bytes, subject)
        if self._is_typed:
            try:
                self._decode(data)
            except self._invalid as error:
                raise InputTypeError(
                    f"{subject} must be of the type in {self._annotation}, got {shown(value)}: "
                    f"{_line(error)}"
                ) from None
            except Exception as error:
                raise _unfit(subject, shown(value), "be read back", error) from error
        return Pieces((data,))

    def unpack(self, payload: bytes, subject: str) -> Any:
        try:
            return self._decode(payload)
        except self._invalid as error:
            raise InputTypeError(
                f"{subject} does not fit {self._annotation}: {_line(error)}"
            ) from None
        except Exception as error:  # msgspec's own, and a user's __post_init__
            raise _unfit(subject, f"{len(payload)} bytes", "be read", error) from error


class _Lacking(Exception):
    """MessagePack has no such object."""


def _refuse_object(value: object) -> NoReturn:
    raise _Lacking(value)


def _refuse(lacking: Any, value: object, subject: str) -> NoReturn:
    import numpy as np

    cls = type(lacking)
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    if isinstance(lacking, np.generic):
        remedy = "use .item()"
    elif isinstance(lacking, (np.ndarray, tensor_type())):
        remedy = _ARRAYS
    else:
        remedy = 'use a dataclass or a msgspec.Struct for it, or codec="pickle" in @batched'
    inside = "" if lacking is value else f" in a {type(value).__name__}"
    raise InputTypeError(
        f"{subject} must be of types that MessagePack has, got a {name}{inside}; {remedy}"
    )


def _resolved(column: Column, where: str) -> Any:
    """Return the ``T`` of the column, `Any` where this process lacks its classes."""
    if column.element == schema.ANY:
        return Any
    try:
        resolved = schema.resolve(column.element)
        found = schema.fingerprint(resolved)
    except (LookupError, TypeError, ValueError, RecursionError, schema.Unsupported):
        return Any
    if found != column.fingerprint:
        raise SignatureMismatch(
            f"{where} is a {column.annotation} whose fields differ between the executor and this "
            "process; restart the one with the older file"
        )
    return resolved


def _unfit(subject: str, got: str, what: str, error: Exception) -> InputError:
    return InputValueError(
        f"{subject} cannot {what} as MessagePack, got {got}: "
        f"{type(error).__name__}: {_line(error)}"
    )


def _line(error: Exception) -> str:
    """The first line of what an exception says; whatever its methods do."""
    try:
        return str(error).partition("\n")[0][:300]
    except Exception:
        return "(it says nothing)"
