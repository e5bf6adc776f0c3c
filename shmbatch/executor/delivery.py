"""Which outcome each call of a batch gets from what the function returned or raised.

::

    the function ...                                      outcome of call i
    ---------------------------------------------------   -----------------------------------------
    raised                                                that exception, for every call
    returned no list, no stack, or of the wrong length    BatchResultError, for every call
    returned a list; item i is an Exception               that exception, for call i alone
    returned a list; item i does not fit                  ResultError, for call i alone
    returned a stack of the wrong dtype or row shape      ResultError, for every call
    returned what it declared                             item or row i

A list is accepted for every kind of result, a stack (array or tensor) for array results.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np

from ..contract.coercion import tensor_type
from ..contract.columns import Column
from ..contract.exceptions import pack_exception
from ..errors import BatchResultError, InputError, ResultError
from ..protocol._core import Batch


class Delivery:
    """Writes the outcomes of one function's batches into their slots.

    Args:
        address: of the function, for messages.
        result: what one result looks like.
        record_nbytes: room for an error record in a slot.
    """

    def __init__(self, address: str, result: Column, record_nbytes: int) -> None:
        self._address = address
        self._record_nbytes = record_nbytes
        self._result = result
        self._stacks: dict[int, Column] = {}  # the result column with a batch axis, by length

    def returned(self, batch: Batch, value: Any) -> int:
        """Write what the function returned; return how many calls got an error."""
        if batch.scatter(value):
            return 0
        count = batch.count
        if isinstance(value, list):
            if len(value) == count:
                return self._list(batch, value)
        elif (
            self._result.kind == "array"
            and isinstance(value, (np.ndarray, tensor_type()))
            and value.ndim
            and len(value) == count
        ):
            return self._stack(batch, value)
        return self.raised(batch, self._misfit(value, count))

    def raised(self, batch: Batch, error: BaseException) -> int:
        """Give every call of the batch this error."""
        record = pack_exception(error, self._record_nbytes)
        for row in range(batch.count):
            batch.fail(row, record)
        return batch.count

    def _list(self, batch: Batch, values: list[Any]) -> int:
        failed = 0
        for row, value in enumerate(values):
            error = value if isinstance(value, Exception) else self._put(batch, row, value)
            if error is not None:
                batch.fail(row, pack_exception(error, self._record_nbytes))
                failed += 1
        return failed

    def _put(self, batch: Batch, row: int, value: Any) -> Exception | None:
        """Store one result; return why it does not fit."""
        if batch.put(row, value):
            return None
        try:
            value = self._result.coerce(value, f"result {row} of {self._address}")
        except InputError as misfit:
            return ResultError(str(misfit))
        except Exception as error:  # the user's class has methods of its own
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

    def _misfit(self, value: Any, count: int) -> BatchResultError:
        if inspect.iscoroutine(value):
            value.close()
        if isinstance(value, list) or (
            isinstance(value, (np.ndarray, tensor_type())) and value.ndim
        ):
            got = f"{type(value).__name__} of length {len(value)}"
        else:
            got = type(value).__name__
        wanted = "list" if self._result.kind != "array" else "list or stack"
        return BatchResultError(
            f"'{self._address}' returned a {got} for {count} inputs; "
            f"it must return a {wanted} of length {count}, one {self._result.kind} each"
        )
