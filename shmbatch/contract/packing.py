"""What this process makes of a column: how its values are coerced, packed and unpacked.

A column says how values travel. Those of the packed kinds need more: encoders, made once, and the
classes that the values are of, which another process describes and this one has to find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .columns import Column
from .pieces import Pieces
from .ragged import check_shared, shaped, shared_axes

if TYPE_CHECKING:
    from .signature import Signature

Coerce = Callable[[object, str], Any]  # (value, subject): what the core copies


class Packing(Protocol):
    """Turns values of one column into bytes and back. Threads may share it."""

    def pack(self, value: object, subject: str) -> Pieces:
        """Return what the core copies.

        Raises:
            InputTypeError, InputValueError: the value does not fit; *subject* begins the message.
        """

    def unpack(self, payload: Any, subject: str) -> Any:
        """Return the value of what the core copied out; *payload* is not trusted.

        Raises:
            InputTypeError, InputValueError: there is none; *subject* begins the message.
        """


def packing(column: Column, where: str, module: str | None = None) -> Packing | None:
    """Return how values of a packed kind are packed; None for the others.

    Args:
        where: the column as messages name it, as in ``parameter 'xs' of sums.add``.
        module: of the user's function, in an executor; what ``__main__`` means in a pickle.

    Raises:
        SignatureMismatch: a class of that name is here, and is another one.
    """
    if column.kind == "msgpack":
        from .messagepack import MessagePack

        return MessagePack(column, where)
    if column.kind == "pickle":
        from .pickling import Pickle

        return Pickle(column, module)
    if column.kind == "ndarray":
        from .ndarrays import Arrays

        return Arrays(column)
    return None


class Arguments:
    """Coerces the arguments of one function's calls, all of a call together.

    Args:
        function: its name, for messages.

    Raises:
        SignatureMismatch: as `packing`.
    """

    def __init__(self, signature: Signature, function: str) -> None:
        self._columns: Sequence[Column] = signature.parameters
        self._function = function
        self._subjects = [f"parameter {each.name!r} of {function}" for each in self._columns]
        self._coerce: list[Coerce] = []
        for column, subject in zip(self._columns, self._subjects, strict=True):
            packed = packing(column, subject)
            self._coerce.append(column.coerce if packed is None else packed.pack)
        self._shared = shared_axes(self._columns)

    def coerce(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return *values*, one a parameter, as the core copies them.

        Raises:
            InputError: a value does not fit its parameter, or they do not fit together.
        """
        coerced: list[Any] = [
            value if type(value) is Pieces else coerce(value, subject)
            for coerce, value, subject in zip(self._coerce, values, self._subjects, strict=True)
        ]
        if self._shared:
            check_shared(self._columns, coerced, self._shared, self._function)
            for number, column in enumerate(self._columns):
                if (
                    not self._shared.isdisjoint(column.axes)
                    and type(coerced[number]) is not Pieces
                ):
                    coerced[number] = shaped(coerced[number])
        return tuple(coerced)
