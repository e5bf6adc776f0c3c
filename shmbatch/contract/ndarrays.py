"""Arrays each of a dtype and a shape of its own, as ``list[np.ndarray]`` takes them.

A payload is two pieces: what the array is, and at a multiple of 16 bytes its data::

    u32 size of the text | dtype | "|" | lengths of the axes, separated by commas
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from ..errors import InputTypeError, InputValueError
from .coercion import refuse_size, shown, tensor_type, without_mask
from .columns import HEADER_NBYTES, MAX_NDIM, Column
from .pieces import Pieces, align

_STRUCTURED = "["  # begins the description of a dtype with fields
_TEXT_NBYTES = HEADER_NBYTES - 32  # the rest is its size, and room to begin at a multiple of 16
_KEPT = 256  # dtypes remembered by their descriptions


class Arrays:
    """Packs the values of one column. Any dtype but objects, and in any byte order."""

    def __init__(self, column: Column) -> None:
        self._max_bytes = column.max_bytes
        self._dtypes: dict[bytes, np.dtype[Any]] = {}

    def pack(self, value: Any, subject: str) -> Pieces:
        if not isinstance(value, (np.ndarray, np.generic)):
            remedy = "use numpy.asarray(value)"
            if isinstance(value, tensor_type()):
                remedy = "use .detach().cpu().numpy()"
            raise InputTypeError(f"{subject} must be an array, got {shown(value)}; {remedy}")
        array = np.asarray(without_mask(value, subject), order="C")
        if array.dtype.hasobject:
            raise InputTypeError(
                f"{subject} must have a dtype without objects, got dtype "
                f"{str(array.dtype)[:100]}; use .astype(...), or list[T] with the type of its "
                'items, or codec="pickle" in @batched'
            )
        if array.nbytes > self._max_bytes:
            form = f"in an array of shape {array.shape}"
            refuse_size(array.nbytes, form, self._max_bytes, subject)
        if array.ndim > MAX_NDIM:
            raise InputValueError(
                f"{subject} must have at most {MAX_NDIM} axes, got {array.ndim}; reshape it"
            )
        text = f"{_description(array.dtype, subject)}|{','.join(map(str, array.shape))}".encode()
        if len(text) > _TEXT_NBYTES:
            raise InputTypeError(
                f"{subject} must have a dtype described in at most {_TEXT_NBYTES} bytes, "
                f"got {len(text)} for {len(array.dtype.names or ())} fields; "
                "use fewer fields or shorter names"
            )
        # Not the array itself: dtypes such as datetime64 have no buffers.
        data = array.reshape(-1).view(np.uint8) if array.size and array.itemsize else b""
        return Pieces((struct.pack("=I", len(text)) + text, data))

    def unpack(self, payload: Any, subject: str) -> Any:
        """Return the array, which is a view of *payload*."""
        try:
            (length,) = struct.unpack_from("=I", payload)
            if length > _TEXT_NBYTES:
                raise ValueError("its header is broken")
            described, _, lengths = bytes(payload[4 : 4 + length]).rpartition(b"|")
            dtype = self._dtype(described)
            shape = tuple(map(int, lengths.split(b","))) if lengths else ()
            data = payload[align(4 + length) :]
            if len(shape) > MAX_NDIM or math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError("its header is broken")
            return np.ndarray(shape, dtype, data)
        except Exception as error:
            raise InputValueError(
                f"{subject} is no array: {type(error).__name__}: {error}"[:300]
            ) from None

    def _dtype(self, described: bytes) -> np.dtype[Any]:
        dtype = self._dtypes.get(described)
        if dtype is None:
            dtype = _parse(described.decode())
            if dtype.hasobject:
                raise ValueError("it would hold objects")
            if len(self._dtypes) < _KEPT:
                self._dtypes[described] = dtype
        return dtype


def _description(dtype: np.dtype[Any], subject: str) -> str:
    text = dtype.str
    try:
        if dtype.names is not None:
            text = repr(np.lib.format.dtype_to_descr(dtype))
        same = (dtype.names is not None or dtype.kind != "V") or _parse(text) == dtype
    except Exception:
        same = False
    if not same:  # other libraries' dtypes, and those whose fields overlap
        raise InputTypeError(
            f"{subject} must have a dtype of numpy's own, got {str(dtype)[:100]}; "
            "use .view() or .astype() to one of those"
        )
    return text


def _parse(text: str) -> np.dtype[Any]:
    if not text.startswith(_STRUCTURED):
        return np.dtype(text)
    import ast

    return np.lib.format.descr_to_dtype(ast.literal_eval(text))
