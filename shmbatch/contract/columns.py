"""How the values of one parameter or result look in memory, as its annotation says.

An annotation becomes a `Column` once, at definition (see `annotations`); from then on the column
alone says which values are accepted and which bytes one value occupies in a slot. Nothing is
guessed per call.

::

    annotation                             kind      dtype      shape     bytes of one value
    -------------------------------------  --------  ---------  --------  ----------------------
    list[int]                              int       int64      ()        8
    list[float]                            float     float64    ()        8
    list[bool]                             bool      bool       ()        8, an int64
    Float32[np.ndarray, "batch 3 4"]       array     float32    (3, 4)    4 * 3 * 4
    BFloat16[Tensor, "batch 16"]           array     bfloat16   (16,)     2 * 16, raw
    Float32[np.ndarray, "batch seq 4"]     ragged    float32    (-9, 4)   shape, then 4 * seq * 4
    list[str]                              str                  ()        length, then UTF-8
    list[bytes]                            bytes                ()        length, then the bytes
    list[np.ndarray]                       ndarray              ()        length, header, data
    other list[T], list, no annotation     msgpack              ()        length, then MessagePack
    any, with codec="pickle"               pickle               ()        length, pickle, buffers

The last five have room for `max_bytes`. An axis of variable length stands in a shape as the
negative of its maximum, here of ``max_lengths={"seq": 9}``.
"""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import ProtocolError
from . import coercion, ragged
from .options import MAX_LENGTH, MAX_MAX_BYTES
from .pieces import Pieces, align

Kind: TypeAlias = Literal[
    "int", "float", "bool", "array", "ragged", "str", "bytes", "ndarray", "msgpack", "pickle"
]

MAX_NDIM = 32  # axes of one value; numpy before 2.0 has no more
MAX_VALUE_NBYTES = 2**40  # so that offsets of whole columns stay far inside an int64
HEADER_NBYTES = 1024  # room for what an array of kind "ndarray" says of itself

SCALAR_DTYPES = {"int": "int64", "float": "float64", "bool": "bool"}
_PACKED = ("ndarray", "msgpack", "pickle")
_SIZED = ("str", "bytes", *_PACKED)
_LENGTH_NBYTES = 16  # a length, and the payload begins at a multiple of 16

# dtypes that numpy lacks travel as unsigned integers of the same size.
RAW_DTYPES = {"bfloat16": np.dtype("uint16")} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), np.dtype("uint8")
)
WIRE_DTYPES: dict[str, np.dtype[Any]] = RAW_DTYPES | {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one parameter or result; what two processes agree on in the handshake.

    Raises:
        ValueError: the fields contradict each other, or a size is out of bounds.
    """

    name: str  # of the parameter, or "result"
    kind: Kind
    library: Literal["", "numpy", "torch"]  # which kind of array the function sees
    dtype: str  # numpy's or torch's name of it; "" where there is none
    shape: tuple[int, ...]  # of one value, without the batch axis; () for all but arrays
    axes: tuple[str, ...] = ()  # ragged: names of the variable axes, "" for fixed ones
    padded: bool = False  # ragged: the function gets a padded stack, not a list
    max_bytes: int = 0  # where a value has no size of its own
    element: tuple[Any, ...] = ()  # msgpack: the T of list[T], as schema.py describes it
    fingerprint: str = ""  # msgpack: of what the classes in it consist of

    def __post_init__(self) -> None:
        # The fields may come from a peer: their types are checked too.
        show = reprlib.repr
        if not isinstance(self.name, str) or not self.name.isidentifier() or len(self.name) > 255:
            raise ValueError(f"{show(self.name)} is not an identifier of up to 255 characters")
        least = -MAX_LENGTH if self.kind == "ragged" else 0
        if (
            not isinstance(self.shape, tuple)
            or len(self.shape) > MAX_NDIM
            or any(type(length) is not int or length < least for length in self.shape)
        ):
            raise ValueError(f"{show(self.shape)} is not a shape of up to {MAX_NDIM} lengths")
        if not isinstance(self.kind, str) or not isinstance(self.dtype, str):
            known = False
        elif self.kind in ("array", "ragged"):
            numpy_dtype = self.dtype in WIRE_DTYPES and self.dtype not in RAW_DTYPES
            known = numpy_dtype if self.library == "numpy" else self.dtype in WIRE_DTYPES
            known = known and self.library in ("numpy", "torch")
        else:
            known = self.library == "" and self.shape == ()
            known = known and SCALAR_DTYPES.get(self.kind, "") == self.dtype
            known = known and (self.dtype != "" or self.kind in _SIZED)
        if not known:
            raise ValueError(
                f"there is no kind {show(self.kind)} with library {show(self.library)}, "
                f"dtype {show(self.dtype)} and shape {show(self.shape)}"
            )
        self._check_axes()
        self._check_size()
        self._check_element()

    def _check_axes(self) -> None:
        known = isinstance(self.axes, tuple) and isinstance(self.padded, bool)
        if self.kind == "ragged":
            known = known and len(self.axes) == len(self.shape) and min(self.shape, default=0) < 0
            known = known and all(
                isinstance(axis, str) and (axis.isidentifier() if length < 0 else axis == "")
                for axis, length in zip(self.axes, self.shape, strict=True)
            )
        else:
            known = known and self.axes == () and not self.padded
        if not known:
            raise ValueError(
                f"axes {reprlib.repr(self.axes)} do not belong to shape {reprlib.repr(self.shape)}"
            )

    def _check_size(self) -> None:
        least, most = (1, MAX_MAX_BYTES) if self.kind in _SIZED else (0, 0)
        if type(self.max_bytes) is not int or not least <= self.max_bytes <= most:
            raise ValueError(
                f"max_bytes {reprlib.repr(self.max_bytes)} is not from {least} to {most}"
            )
        if self.kind in ("array", "ragged"):
            # numpy refuses (2**60, 2**60, 0) too: a zero does not make up for other lengths.
            elements = math.prod(abs(length) or 1 for length in self.shape)
            nbytes = self.wire_dtype.itemsize * elements
            if nbytes > MAX_VALUE_NBYTES:
                raise ValueError(
                    f"one value takes {nbytes} bytes, the limit is {MAX_VALUE_NBYTES}"
                )

    def _check_element(self) -> None:
        if self.kind == "msgpack":
            from . import schema  # 3 ms, for these columns only

            schema.check(self.element)
        elif self.element != ():
            raise ValueError(f"values of kind {self.kind} have no type of their own")
        if (
            not isinstance(self.fingerprint, str)
            or len(self.fingerprint) > 64
            or (self.fingerprint != "" and self.kind != "msgpack")
        ):
            raise ValueError(f"{reprlib.repr(self.fingerprint)} is not the fingerprint of a type")

    @property
    def wire_dtype(self) -> np.dtype[Any]:
        """dtype of the bytes in the column; a bool scalar occupies an int64 of 0 or 1."""
        return WIRE_DTYPES["int64" if self.kind == "bool" else self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of one value in a slot; 0 if a length is 0."""
        if self.kind in _SIZED:
            header = HEADER_NBYTES if self.kind == "ndarray" else 0
            return align(_LENGTH_NBYTES + header + self.max_bytes)
        data = self.wire_dtype.itemsize * math.prod(map(abs, self.shape))
        return align(8 * len(self.shape)) + align(data) if self.kind == "ragged" else data

    @property
    def variable(self) -> tuple[int, ...]:
        """Which axes of a value are of variable length."""
        return tuple(at for at, axis in enumerate(self.axes) if axis)

    @property
    def carrier(self) -> type:
        """Type of what `coerce` returns, which is what the C fast path accepts."""
        if self.kind == "array":
            return memoryview if self.dtype in RAW_DTYPES else np.ndarray
        if self.kind == "ragged":
            repeated = len(set(self.axes) - {""}) < len(self.variable)
            return Pieces if self.dtype in RAW_DTYPES or repeated else np.ndarray
        scalars = {"int": int, "float": float, "bool": bool, "str": str, "bytes": bytes}
        return scalars.get(self.kind, Pieces)

    @property
    def annotation(self) -> str:
        """The annotation as a person would write it, of a list or a stack."""
        if self.kind in ("array", "ragged"):
            return self._array_annotation("batch")
        return f"list[{each}]" if (each := self.plain_annotation) != "object" else "list"

    @property
    def plain_annotation(self) -> str:
        """The annotation of a single value; ``object`` where it may be any."""
        if self.kind in ("array", "ragged"):
            return self._array_annotation()
        if self.kind == "msgpack":
            from . import schema

            return "object" if self.element == schema.ANY else schema.text(self.element)
        return {"pickle": "object", "ndarray": "np.ndarray"}.get(self.kind, self.kind)

    def _array_annotation(self, *batch: str) -> str:
        dtype = self.dtype.capitalize().replace("_", "")
        for prefix in ("UInt", "BFloat"):
            dtype = re.sub(f"^{prefix}", prefix, dtype, flags=re.IGNORECASE)
        array = "Tensor" if self.library == "torch" else "np.ndarray"
        axes = self.axes or ("",) * len(self.shape)
        shown = [axis or str(length) for axis, length in zip(axes, self.shape, strict=True)]
        return f'{dtype}[{array}, "{" ".join([*batch, *shown])}"]'

    def differences(self, theirs: Column) -> str:
        """Say in which fields *theirs* differs, as ``max_bytes 10 and 20``."""
        facts = []
        for field in _FIELDS:
            one, other = getattr(self, field), getattr(theirs, field)
            if one != other and field == "fingerprint":
                facts.append(f"fields of {self.annotation}")
            elif one != other:
                facts.append(f"{field} {one!r} and {other!r}"[:200])
        return ", ".join(facts)

    def coerce(self, value: object, subject: str) -> coercion.Value:
        """Return *value* in the one form the core copies, or refuse it.

        That form is an exact int, float, bool, str or bytes; a C-contiguous ndarray of
        `wire_dtype` and the value's shape; or, for dtypes that numpy lacks, a one-dimensional
        memoryview of format ``c``, with its shape in `Pieces` if that is variable. Arrays may
        share memory with *value*; those that are not C-contiguous are copied once.

        Values of the packed kinds need more than a column knows; see packing.py.

        Args:
            subject: begins every message, as in ``parameter 'xs' of sums.add``.

        Raises:
            InputTypeError: wrong type, dtype, byte order, layout or device.
            InputValueError: wrong shape, too long, or what int64, float64 or UTF-8 cannot hold.
        """
        if self.kind == "array":
            return coercion.coerce_array(self, value, subject)
        if self.kind == "ragged":
            return ragged.coerce_ragged(self, value, subject)
        if self.kind == "str":
            return coercion.coerce_str(value, self.max_bytes, subject)
        if self.kind == "bytes":
            return coercion.coerce_bytes(value, self.max_bytes, subject)
        if self.kind == "int":
            return coercion.coerce_int(value, subject)
        if self.kind == "float":
            return coercion.coerce_float(value, subject)
        assert self.kind == "bool", "values of packed kinds are packed"
        return coercion.coerce_bool(value, subject)

    def to_message(self) -> dict[str, Any]:
        """Return the column as data that MessagePack has."""
        return {field: _listed(getattr(self, field)) for field in _FIELDS}

    @classmethod
    def from_message(cls, message: object) -> Column:
        """Return the column that `to_message` described; *message* is not trusted.

        Raises:
            ProtocolError: *message* describes no column.
        """
        if not isinstance(message, dict) or message.keys() != set(_FIELDS):
            raise ProtocolError(
                f"a column arrived as {reprlib.repr(message)}, not with the fields "
                f"{', '.join(_FIELDS)}; use one version of shmbatch in both processes"
            )
        try:
            return cls(**{field: _tupled(value) for field, value in message.items()})
        except (ValueError, RecursionError) as fault:
            raise ProtocolError(
                f"a column arrived malformed: {fault}; "
                "use one version of shmbatch in both processes"
            ) from None


_FIELDS = tuple(each.name for each in fields(Column))


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value
