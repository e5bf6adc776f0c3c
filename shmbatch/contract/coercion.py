"""Which values a column accepts, and the one form in which the core copies them.

This is the slow path behind the core's own check, which takes exact scalars and C-contiguous
arrays as they are; torch tensors always come through here. Nothing is cast: a value that would
have to change is refused with the expression that changes it.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from ..errors import InputTypeError, InputValueError

if TYPE_CHECKING:
    from .columns import Column
    from .pieces import Pieces

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Value: TypeAlias = "int | float | bool | str | bytes | Array | memoryview[bytes] | Pieces"


def tensor_type() -> Any:
    """Return ``torch.Tensor`` if this process has imported torch, else ``()``.

    Whoever holds a tensor has imported torch, so looking is enough; ``()`` makes every
    ``isinstance`` false.
    """
    return getattr(sys.modules.get("torch"), "Tensor", ())


def coerce_int(value: object, subject: str) -> int:
    """Return an exact int; numpy integers are ints, bools are not."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool | np.timedelta64):
        _refuse_scalar("int", value, subject)
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise InputValueError(
            f"{subject} must be an int from -2**63 to 2**63 - 1, got {shown(number)}"
        )
    return number


def coerce_float(value: object, subject: str) -> float:
    """Return an exact float; ints are floats too, NaN and infinities pass."""
    number_types = float | int | np.floating | np.integer
    if not isinstance(value, number_types) or isinstance(value, bool | np.timedelta64):
        _refuse_scalar("float", value, subject)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Of these types only a long int and a finite longdouble differ from their float's infinity.
    if math.isinf(number) and number != value:
        raise InputValueError(
            f"{subject} must be a float of at most {sys.float_info.max}, got {shown(value)}"
        )
    return number


def coerce_bool(value: object, subject: str) -> bool:
    """Return an exact bool; numpy's bool is one, 0 and 1 are not."""
    if not isinstance(value, bool | np.bool_):
        _refuse_scalar("bool", value, subject)
    return bool(value)


def coerce_str(value: object, max_bytes: int, subject: str) -> str:
    """Return an exact str; subclasses, such as numpy's, are strs."""
    if not isinstance(value, str):
        remedy = "use .decode()" if isinstance(value, bytes | bytearray) else ""
        _refuse_scalar("str", value, subject, remedy)
    text = str.__str__(value)
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"{subject} must be text that UTF-8 can hold, got a str with the surrogate "
            f"{text[error.start]!r} at {error.start}; drop it, or use list[bytes] and "
            f".encode('utf-8', 'surrogatepass')"
        ) from None
    if nbytes > max_bytes:
        refuse_size(nbytes, "in UTF-8", max_bytes, subject)
    return text


def coerce_bytes(value: object, max_bytes: int, subject: str) -> bytes:
    """Return exact bytes; subclasses, such as numpy's, are bytes, other buffers are not."""
    if not isinstance(value, bytes):
        remedy = "use .encode()" if isinstance(value, str) else ""
        if isinstance(value, bytearray | memoryview):
            remedy = "use bytes(value)"
        _refuse_scalar("bytes", value, subject, remedy)
    data = bytes(value)
    if len(data) > max_bytes:
        refuse_size(len(data), "", max_bytes, subject)
    return data


def refuse_size(nbytes: int, form: str, max_bytes: int, subject: str) -> NoReturn:
    """Refuse a value of *nbytes*, counted in that *form*, for being longer than *max_bytes*."""
    raise InputValueError(
        f"{subject} must take at most {max_bytes} bytes, got {nbytes}{' ' if form else ''}{form}; "
        f"raise max_bytes= in @batched"
    )


def coerce_array(column: Column, value: object, subject: str) -> Array | memoryview[bytes]:
    """Return the bytes of an array, a numpy scalar or a CPU tensor as *column* wants them.

    A numpy scalar is numpy's array without axes. A tensor is read in place, detached where it
    requires a gradient, and copied only if it is not contiguous or is lazily conjugated. What
    this returned comes back as it is.
    """
    raw = column.carrier is memoryview
    if raw and type(value) is memoryview and _is_packed(value, column.nbytes):
        return value
    array = array_of(column, value, subject)
    if array.shape != column.shape:
        _refuse_shape(column, array.shape, subject)
    array = np.asarray(array, dtype=column.wire_dtype, order="C")
    return raw_bytes(array) if raw else array


def _is_packed(value: memoryview[Any], nbytes: int) -> bool:
    return value.c_contiguous and (value.format, value.shape) == ("c", (nbytes,))


def raw_bytes(array: Array) -> memoryview[bytes]:
    """Return the bytes of a C-contiguous array as the core takes those of raw dtypes."""
    # memoryview.cast() refuses views that hold a zero length.
    return memoryview(array.data if array.size else b"").cast("c")


def array_of(column: Column, value: object, subject: str) -> Any:
    """Return *value* as an array of the column's wire dtype; its shape is not looked at."""
    raw = column.wire_dtype.name != column.dtype
    if isinstance(value, tensor_type()):
        return _tensor_array(column, value, raw, subject)
    if not isinstance(value, (np.ndarray, np.generic)):
        _refuse_other(column, value, subject)
    if raw or value.dtype != column.wire_dtype:
        _refuse_numpy_dtype(column, value, raw, subject)
    return without_mask(value, subject)


def without_mask(value: Any, subject: str) -> Any:
    """Return an array as it is, unless it has a mask that would be lost."""
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        raise InputTypeError(
            f"{subject} must be an array without a mask, got a masked array; use .filled()"
        )
    return value


def _tensor_array(column: Column, tensor: Any, raw: bool, subject: str) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != column.dtype:
        raise InputTypeError(
            f"{subject} must have dtype {column.dtype}, got {dtype}; use .to(torch.{column.dtype})"
        )
    if tensor.requires_grad:
        tensor = tensor.detach()
    try:
        if raw:
            tensor = tensor.view(getattr(sys.modules["torch"], column.wire_dtype.name))
        array: Array = tensor.numpy()
    except (RuntimeError, TypeError) as error:
        # Only now: asking each of these first would cost more than reading the tensor.
        if tensor.device.type == "meta":
            raise InputTypeError(f"{subject} must hold data, got a tensor on meta") from None
        if tensor.device.type != "cpu":
            raise InputTypeError(
                f"{subject} must be on the CPU, got a tensor on {tensor.device}; use .cpu()"
            ) from None
        if str(tensor.layout) != "torch.strided":
            raise InputTypeError(
                f"{subject} must be dense, got a tensor of layout {tensor.layout}; use .to_dense()"
            ) from None
        if tensor.is_conj() or tensor.is_neg():
            return _tensor_array(column, tensor.resolve_conj().resolve_neg(), raw, subject)
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputTypeError(
            f"{subject} must be a plain tensor, got {type(tensor).__name__}: {reason}"
        ) from error
    return array


def _refuse_scalar(kind: str, value: object, subject: str, remedy: str = "") -> NoReturn:
    if remedy:
        pass
    elif isinstance(value, (np.ndarray, tensor_type())):
        remedy = "use .item() if it holds one number"
        if kind in ("str", "bytes"):
            remedy = "annotate the parameter with an array, such as list[np.ndarray]"
    elif isinstance(value, list | tuple):
        remedy = "one call carries one value, not a batch"
    elif kind == "bytes":  # bytes(3) is no remedy
        remedy = "say how it is encoded"
    else:
        remedy = f"use {kind}(value) if that is what you mean"
    wanted = {"int": "an int", "bytes": "bytes"}.get(kind, f"a {kind}")
    raise InputTypeError(f"{subject} must be {wanted}, got {shown(value)}; {remedy}")


def _refuse_numpy_dtype(
    column: Column, value: np.ndarray[Any, Any] | np.generic, raw: bool, subject: str
) -> NoReturn:
    wanted, got = column.dtype, str(value.dtype)[:100]
    if raw:
        fact = f"dtype {wanted}, which numpy lacks, got {got}"
        remedy = f"use torch.from_numpy(value).to(torch.{wanted})"
    elif value.dtype.newbyteorder("=") == column.wire_dtype:
        fact, remedy = f"native byte order, got dtype {got}", f"use .astype({wanted!r})"
    else:
        fact, remedy = f"dtype {wanted}, got {got}", f"use .astype({wanted!r})"
    raise InputTypeError(f"{subject} must have {fact}; {remedy}")


def _refuse_shape(column: Column, shape: tuple[int, ...], subject: str) -> NoReturn:
    if shape[1:] == column.shape:
        remedy = "one call carries one value, without the batch axis"
    else:
        remedy = f"reshape it, or change the annotation {column.annotation}"
    raise InputValueError(f"{subject} must have shape {column.shape}, got {shape}; {remedy}")


def _refuse_other(column: Column, value: object, subject: str) -> NoReturn:
    if column.library == "torch":
        kind, remedy = "a tensor", f"torch.tensor(value, dtype=torch.{column.dtype})"
    else:
        kind, remedy = "an array", f"numpy.asarray(value, dtype={column.dtype!r})"
    axes = column.axes or ("",) * len(column.shape)
    shape = ", ".join(axis or str(length) for axis, length in zip(axes, column.shape, strict=True))
    raise InputTypeError(
        f"{subject} must be {kind} of dtype {column.dtype} and shape "
        f"({shape}{',' if len(axes) == 1 else ''}), got {shown(value)}; use {remedy}"
    )


def shown(value: object) -> str:
    """Name what was given; short, and safe for values whose repr is long or raises."""
    name = type(value).__name__
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{name} of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        return f"{name} {value[:40]!r}{'...' if len(value) > 40 else ''}"
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return f"{name} {value!s}"  # format() would make a longdouble a float
    if isinstance(value, (np.ndarray, tensor_type())):
        return f"{name} of shape {tuple(value.shape)}"
    return "None" if value is None else name
