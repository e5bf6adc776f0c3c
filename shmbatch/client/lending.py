"""How a value looks to whom it is lent: an array or a tensor over shared memory."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract.coercion import Array
from ..contract.columns import Column
from ..protocol._core import Lent

if TYPE_CHECKING:
    from .call import FunctionCall
    from .connection import Connection


def array_over(column: Column, lent: Lent) -> Array:
    """Return the array of a column's wire dtype that a lent value is; no copy.

    The array has a reference to the value, which holds its memory, and a result's slot.
    """
    buffer: Any = lent  # which numpy's types do not know to be one
    return np.ndarray(column.shape, column.wire_dtype, buffer)


def result_over(connection: Connection, lent: Lent) -> Any:
    """Return a result that is lent, as its caller sees it; no copy."""
    array = array_over(connection.signature.result, lent)
    if connection.finish is not None:
        return connection.finish(array)
    array.flags.writeable = False
    return array


def read_only(array: Any) -> Any:
    """Return an array that cannot be written to, over the same memory; all else as it is."""
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array


class Borrowed:
    """A result where it stands, for as long as a ``with`` lasts; see `FunctionCall.borrow`."""

    def __init__(self, call: FunctionCall, timeout: float | None) -> None:
        self._call = call
        self._timeout = timeout
        self._result: Any = None

    def __enter__(self) -> Any:
        try:
            self._result = self._call._borrow(self._timeout)
            return self._result
        finally:
            del self  # as in `FunctionCall.get`

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._result = None
