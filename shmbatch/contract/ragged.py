"""Values with axes of variable length: which are accepted, and what a function gets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputValueError
from . import coercion
from .pieces import Pieces

if TYPE_CHECKING:
    from .columns import Column


class Padded(NamedTuple):
    """What a function gets for a parameter with named axes and ``ragged="pad"``.

    Unpacks as ``rows, lengths = xs``. What lies beyond a row's lengths is zero.
    """

    rows: Any  # stack [n, *axes]; variable axes are as long as the longest of the batch
    lengths: Any  # int64 [n], or [n, k] where k axes are variable


def coerce_ragged(column: Column, value: object, subject: str) -> coercion.Array | Pieces:
    """Return the array that *value* is, or its shape and bytes, as *column*'s carrier says."""
    array = coercion.array_of(column, value, subject)
    _check_shape(column, array.shape, subject)
    array = np.asarray(array, dtype=column.wire_dtype, order="C")
    return array if column.carrier is np.ndarray else shaped(array)


def shaped(array: coercion.Array) -> Pieces:
    """Return a C-contiguous array as its shape and its bytes."""
    return Pieces((array.shape, memoryview(array.data if array.size else b"").cast("B")))


def _check_shape(column: Column, shape: tuple[int, ...], subject: str) -> None:
    wanted = f"({', '.join(map(str, _shown(column)))}{',' if len(column.shape) == 1 else ''})"
    fits = len(shape) == len(column.shape) and all(
        length == limit or limit < 0 for length, limit in zip(shape, column.shape, strict=True)
    )
    if not fits:
        if len(shape) == len(column.shape) + 1:
            remedy = "one call carries one value, without the batch axis"
        else:
            remedy = f"reshape it, or change the annotation {column.annotation}"
        raise InputValueError(f"{subject} must have shape {wanted}, got {shape}; {remedy}")
    lengths: dict[str, int] = {}
    for length, limit, axis in zip(shape, column.shape, column.axes, strict=True):
        if limit < 0 and length > -limit:
            raise InputValueError(
                f"{subject} must have at most {-limit} along axis {axis!r}, got shape {shape}; "
                f"cut it, or raise max_lengths[{axis!r}] in @batched"
            )
        if axis and lengths.setdefault(axis, length) != length:
            raise InputValueError(
                f"{subject} must have one length along both axes {axis!r}, got shape {shape}; "
                f"give different axes different names in {column.annotation}"
            )


def _shown(column: Column) -> list[str]:
    return [axis or str(length) for axis, length in zip(column.axes, column.shape, strict=True)]


def shared_axes(columns: Sequence[Column]) -> frozenset[str]:
    """Return the names of variable axes that stand in several columns."""
    seen: set[str] = set()
    shared: set[str] = set()
    for column in columns:
        axes = set(column.axes) - {""}
        shared |= axes & seen
        seen |= axes
    return frozenset(shared)


def check_shared(
    columns: Sequence[Column], values: Sequence[Any], shared: frozenset[str], function: str
) -> None:
    """Refuse the arguments of one call whose shared axes differ in length.

    Args:
        values: coerced, one a column.

    Raises:
        InputValueError: an axis has two lengths.
    """
    found: dict[str, tuple[int, str]] = {}
    for column, value in zip(columns, values, strict=True):
        for at in column.variable:
            axis = column.axes[at]
            if axis in shared:
                shape = value[0] if isinstance(value, Pieces) else value.shape
                length, first = found.setdefault(axis, (shape[at], column.name))
                if length != shape[at]:
                    raise InputValueError(
                        f"axis {axis!r} of {function} must have one length within a call, got "
                        f"{length} in {first!r} and {shape[at]} in {column.name!r}; "
                        "give different axes different names"
                    )
