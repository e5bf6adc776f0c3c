"""What a caller gets: a column's bytes as the value, array or tensor that it declares."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..contract.columns import Column
from ..contract.packing import packing
from ..errors import ConfigError, InputError, ResultError

ARRAYS = ("native", "numpy")


def finisher(column: Column, arrays: str, function: str) -> Callable[[Any], Any] | None:
    """Return what turns a polled result into the caller's; None where it already is.

    ``arrays="numpy"`` leaves tensors as the arrays that carry them, and never imports torch;
    bfloat16 and fp8 then arrive as unsigned integers of the same size.

    Args:
        function: its name, for messages.

    Raises:
        ConfigError: *arrays* is neither, or the result is a tensor and torch is not installed.
        SignatureMismatch: as `packing`.
    """
    if arrays not in ARRAYS:
        raise ConfigError(f"arrays is {arrays!r}; it must be one of {', '.join(ARRAYS)}")
    subject = f"result of {function}"
    packed = packing(column, subject)
    if packed is not None:
        unpack = packed.unpack

        def unpacked(payload: Any) -> Any:
            try:
                return unpack(payload, subject)
            except InputError as error:
                raise ResultError(str(error)) from error

        return unpacked
    return viewer(column, arrays, "the result")


def viewer(column: Column, arrays: str, what: str) -> Callable[[Any], Any] | None:
    """Return what makes of a column's array, over the same memory, what a caller sees.

    None where that is the array itself.

    Args:
        what: the column, for messages.

    Raises:
        ConfigError: it is a tensor, and torch is not installed.
    """
    if column.library != "torch" or arrays == "numpy":
        return None
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ConfigError(
            f"{what} is a torch tensor and torch is not installed here; "
            'use connect(..., arrays="numpy") or `pip install shmbatch[torch]`'
        ) from None
    from_numpy: Callable[[Any], Any] = torch.from_numpy
    if column.wire_dtype.name == column.dtype:
        return from_numpy
    dtype = getattr(torch, column.dtype)
    return lambda array: from_numpy(array).view(dtype)
