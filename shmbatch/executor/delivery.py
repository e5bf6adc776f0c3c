"""Which outcome each call of a batch gets from what the function returned or raised.

::

    the function ...                                      outcome of call i
    ---------------------------------------------------   -----------------------------------------
    raised                                                that exception, for every call
    returned no list, no stack, or of the wrong length    BatchResultError, for every call
    returned a list; item i is an Exception               that exception, for call i alone
    returned a list; item i does not fit                  ResultError, for call i alone
    returned a stack of the wrong dtype or row shape      ResultError, for every call
    returned a padded stack; length i is none of it       ResultError, for call i alone
    returned what it declared                             item or row i

A list is accepted for every kind of result, a stack (array or tensor) for arrays, and for those
with named axes under ``ragged="pad"`` also a pair (rows, lengths), which is trimmed row by row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..contract.coercion import tensor_type
from ..contract.columns import Column
from ..contract.exceptions import pack_exception
from ..contract.packing import packing
from ..errors import BatchResultError, InputError, ResultError
from ..protocol._core import Batch

_ARRAYS = ("array", "ragged", "ndarray")  # kinds whose results may come as a stack


class Delivery:
    """Writes the outcomes of one function's batches into their slots.

    Args:
        address: of the function, for messages.
        result: what one result looks like.
        record_nbytes: room for an error record in a slot.
        note: told of each error, how many calls get it, and how loudly to say so.
        module: that of the user's function.
    """

    def __init__(
        self,
        address: str,
        result: Column,
        record_nbytes: int,
        note: Callable[[BaseException, int, int], None] = lambda error, calls, level: None,
        module: str | None = None,
    ) -> None:
        self._address = address
        self._record_nbytes = record_nbytes
        self._note = note
        self._result = result
        packed = packing(result, f"result of {address}", module)
        self._coerce = result.coerce if packed is None else packed.pack
        self._stacks: dict[int, Column] = {}  # the result column with a batch axis, by length

    def scattered(self, batch: Batch, value: Any) -> bool:
        """Write what the function returned, if all of it is just what it declared."""
        try:
            return batch.scatter(value)
        except BaseException:  # `returned` will raise it again
            return False

    def returned(self, batch: Batch, value: Any) -> int:
        """Write what the function returned; return how many calls got an error."""
        if batch.scatter(value):
            return 0
        count = batch.count
        if isinstance(value, list):
            if len(value) == count:
                return self._list(batch, value)
        elif self._result.kind in _ARRAYS and _is_stack(value) and len(value) == count:
            # Rows of arrays that may differ in shape are as good as a list of them.
            if self._result.kind == "array":
                return self._stack(batch, value)
            return self._list(batch, list(value))
        elif self._result.padded and isinstance(value, tuple) and len(value) == 2:
            return self._pair(batch, *value)
        return self.raised(batch, self._misfit(value, count))

    def without_padding(self, value: Any, count: int, size: int) -> Any:
        """Return the first *count* of *size* results, wherever they are.

        Raises:
            BatchResultError: the function did not return *size*.
        """
        if size == count:
            return value
        if self._result.padded and isinstance(value, tuple) and len(value) == 2:
            return tuple(self.without_padding(each, count, size) for each in value)
        if not (isinstance(value, list) or _is_stack(value)) or len(value) != size:
            raise self._misfit(value, size)
        return value[:count]

    def raised(self, batch: Batch, error: BaseException) -> int:
        """Give every call of the batch this error."""
        self._note(error, batch.count, logging.WARNING)
        record = pack_exception(error, self._record_nbytes)
        for row in range(batch.count):
            batch.fail(row, record)
        return batch.count

    def _list(self, batch: Batch, values: list[Any]) -> int:
        failed: list[tuple[BaseException, int]] = []
        for row, value in enumerate(values):
            error = value if isinstance(value, Exception) else self._put(batch, row, value)
            if error is not None:
                batch.fail(row, pack_exception(error, self._record_nbytes))
                # What the function returned on purpose is worth less of a noise.
                failed.append((error, logging.INFO if error is value else logging.WARNING))
        for error, level in failed:  # only now: if looking at a value raised, all get that
            self._note(error, 1, level)
        return len(failed)

    def _put(self, batch: Batch, row: int, value: Any) -> BaseException | None:
        """Store one result; return why it does not fit."""
        if batch.put(row, value):
            return None
        try:
            value = self._coerce(value, f"result {row} of {self._address}")
        except InputError as misfit:
            return ResultError(str(misfit))
        except BaseException as error:  # the user's class has methods of its own, and may exit
            return error
        stored = batch.put(row, value)
        assert stored, "the core takes what coerce returns"
        return None

    def _stack(self, batch: Batch, stack: Any) -> int:
        column = self._stacks.get(batch.count)
        if column is None:
            column = replace(self._result, shape=(batch.count, *self._result.shape))
            self._stacks[batch.count] = column
        try:
            packed = column.coerce(stack, f"result stack of {self._address}")
        except InputError as misfit:
            return self.raised(batch, ResultError(str(misfit)))
        stored = batch.scatter(packed)
        assert stored, "the core takes what coerce returns"
        return 0

    def _pair(self, batch: Batch, rows: Any, lengths: Any) -> int:
        """Deliver a padded stack, each row cut to its lengths."""
        variable = self._result.variable
        wanted = (batch.count, len(variable)) if len(variable) > 1 else (batch.count,)
        if not _is_stack(rows) or rows.ndim != 1 + len(self._result.shape):
            return self.raised(batch, self._misfit(rows, batch.count))
        if len(rows) != batch.count:
            return self.raised(batch, self._misfit(rows, batch.count))
        table = np.asarray(lengths)
        if table.shape != wanted or table.dtype.kind not in "iu":
            return self.raised(
                batch,
                BatchResultError(
                    f"'{self._address}' returned rows with lengths of shape {table.shape} and "
                    f"dtype {table.dtype}; lengths must be integers of shape {wanted}"
                ),
            )
        values: list[Any] = []
        for row, counts in zip(rows, table.reshape(batch.count, -1).tolist(), strict=True):
            where = [slice(None)] * row.ndim
            for axis, length in zip(variable, counts, strict=True):
                where[axis] = slice(length)
            room = [row.shape[axis] for axis in variable]
            if all(0 <= length <= most for length, most in zip(counts, room, strict=True)):
                values.append(row[tuple(where)])
            else:
                values.append(
                    ResultError(
                        f"result {len(values)} of {self._address} has lengths {counts}, but its "
                        f"row has {room}; lengths say how much of a row is there"
                    )
                )
        return self._list(batch, values)

    def _misfit(self, value: Any, count: int) -> BatchResultError:
        if inspect.iscoroutine(value):
            value.close()
        if isinstance(value, list) or _is_stack(value):
            got = f"{type(value).__name__} of length {len(value)}"
        else:
            got = type(value).__name__
        kind = self._result.kind
        wanted, each = "list", kind if kind not in ("msgpack", "pickle") else "result"
        if kind in _ARRAYS:
            wanted, each = "list or stack", "array"
        if self._result.padded:
            wanted = "list, stack or pair (rows, lengths)"
        return BatchResultError(
            f"'{self._address}' returned a {got} for {count} inputs; "
            f"it must return a {wanted} of length {count}, one {each} each"
        )


def _is_stack(value: Any) -> bool:
    return isinstance(value, (np.ndarray, tensor_type())) and bool(value.ndim)
