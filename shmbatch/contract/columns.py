"""How the values of one parameter or result look in memory, as its annotation says.

An annotation becomes a `Column` once, at definition; from then on the column alone says which
values are accepted and which bytes one value occupies in a slot. Nothing is guessed per call.

::

    annotation                           kind    library  dtype      shape   bytes of one value
    -----------------------------------  ------  -------  ---------  ------  ------------------
    list[int]                            int              int64      ()      8
    list[float]                          float            float64    ()      8
    list[bool]                           bool             bool       ()      8, an int64
    Float32[np.ndarray, "batch 3 4"]     array   numpy    float32    (3, 4)  4 * 3 * 4
    BFloat16[Tensor, "batch 16"]         array   torch    bfloat16   (16,)   2 * 16, raw
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_origin

import numpy as np

from ..errors import ConfigError, ProtocolError
from . import coercion

MAX_NDIM = 32  # axes of one value; numpy before 2.0 has no more
MAX_VALUE_NBYTES = 2**40  # so that offsets of whole columns stay far inside an int64

_SCALAR_DTYPES = {"int": "int64", "float": "float64", "bool": "bool"}

# dtypes that numpy lacks travel as unsigned integers of the same size.
_RAW = {"bfloat16": np.dtype("uint16")} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), np.dtype("uint8")
)
_WIRE: dict[str, np.dtype[Any]] = _RAW | {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}

_FIELDS = ("name", "kind", "library", "dtype", "shape")
_FIXED_AXIS = re.compile(r"(?:[A-Za-z_]\w*=)?([0-9]{1,18})")  # jaxtyping: "3" or "channels=3"
_SUPPORTED = (
    "supported are list[int], list[float], list[bool] and jaxtyping arrays of fixed shape, "
    'such as Float32[Tensor, "batch 3 224 224"] or Int64[np.ndarray, "batch 16"]'
)


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one parameter or result; what two processes agree on in the handshake.

    Raises:
        ValueError: the fields contradict each other, or a size is out of bounds.
    """

    name: str  # of the parameter, or "result"
    kind: Literal["int", "float", "bool", "array"]
    library: Literal["", "numpy", "torch"]  # which kind of array the function sees
    dtype: str  # numpy's or torch's name of it
    shape: tuple[int, ...]  # of one value, without the batch axis; () for scalars

    def __post_init__(self) -> None:
        # The fields may come from a peer: their types are checked too.
        show = reprlib.repr
        if not isinstance(self.name, str) or not self.name.isidentifier() or len(self.name) > 255:
            raise ValueError(f"{show(self.name)} is not an identifier of up to 255 characters")
        if (
            not isinstance(self.shape, tuple)
            or len(self.shape) > MAX_NDIM
            or any(type(length) is not int or length < 0 for length in self.shape)
        ):
            raise ValueError(f"{show(self.shape)} is not a shape of up to {MAX_NDIM} lengths")
        if not isinstance(self.kind, str) or not isinstance(self.dtype, str):
            known = False
        elif self.kind == "array":
            numpy_dtype = self.dtype in _WIRE and self.dtype not in _RAW
            known = numpy_dtype if self.library == "numpy" else self.dtype in _WIRE
            known = known and self.library in ("numpy", "torch")
        else:
            known = self.library == "" and self.shape == ()
            known = known and _SCALAR_DTYPES.get(self.kind) == self.dtype
        if not known:
            raise ValueError(
                f"there is no kind {show(self.kind)} with library {show(self.library)}, "
                f"dtype {show(self.dtype)} and shape {show(self.shape)}"
            )
        # numpy refuses (2**60, 2**60, 0) too: a zero does not make up for the other lengths.
        nbytes = self.wire_dtype.itemsize * math.prod(length or 1 for length in self.shape)
        if nbytes > MAX_VALUE_NBYTES:
            raise ValueError(f"one value takes {nbytes} bytes, the limit is {MAX_VALUE_NBYTES}")

    @property
    def wire_dtype(self) -> np.dtype[Any]:
        """dtype of the bytes in the column; a bool scalar occupies an int64 of 0 or 1."""
        return _WIRE["int64" if self.kind == "bool" else self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of one value in a slot; 0 if a length is 0."""
        return self.wire_dtype.itemsize * math.prod(self.shape)

    @property
    def carrier(self) -> type:
        """Type of what `coerce` returns, which is what the C fast path accepts."""
        if self.kind == "array":
            return memoryview if self.dtype in _RAW else np.ndarray
        return {"int": int, "float": float, "bool": bool}[self.kind]

    @property
    def annotation(self) -> str:
        """The annotation as a person would write it."""
        if self.kind != "array":
            return f"list[{self.kind}]"
        dtype = self.dtype.capitalize().replace("_", "")
        for prefix in ("UInt", "BFloat"):
            dtype = re.sub(f"^{prefix}", prefix, dtype, flags=re.IGNORECASE)
        array = "Tensor" if self.library == "torch" else "np.ndarray"
        return f'{dtype}[{array}, "{" ".join(["batch", *map(str, self.shape)])}"]'

    def coerce(self, value: object, subject: str) -> coercion.Value:
        """Return *value* in the one form the core copies, or refuse it.

        That form is an exact int, float or bool; a C-contiguous ndarray of `wire_dtype` and
        `shape`; or, for dtypes that numpy lacks, a one-dimensional memoryview of format ``c``.
        Arrays may share memory with *value*; those that are not C-contiguous are copied once.

        Args:
            subject: begins every message, as in ``parameter 'xs' of sums.add``.

        Raises:
            InputTypeError: wrong type, dtype, byte order, layout or device.
            InputValueError: wrong shape, or a number that int64 or float64 cannot hold.
        """
        if self.kind == "array":
            return coercion.coerce_array(self, value, subject)
        if self.kind == "int":
            return coercion.coerce_int(value, subject)
        if self.kind == "float":
            return coercion.coerce_float(value, subject)
        return coercion.coerce_bool(value, subject)

    def to_message(self) -> dict[str, Any]:
        """Return the column as data that MessagePack has."""
        message = {field: getattr(self, field) for field in _FIELDS}
        return message | {"shape": list(self.shape)}

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
        shape = message["shape"]
        try:
            return cls(**message | {"shape": tuple(shape) if isinstance(shape, list) else shape})
        except ValueError as fault:
            raise ProtocolError(
                f"a column arrived malformed: {fault}; "
                "use one version of shmbatch in both processes"
            ) from None


def parse_annotation(annotation: object, name: str, where: str) -> Column:
    """Return the column that *annotation* asks for.

    jaxtyping's classes are recognised by their public attributes, jaxtyping is not imported.
    ``inspect.Parameter.empty`` stands for no annotation.

    Args:
        name: of the parameter, or "result".
        where: begins the message of an error, as in ``parameter 'xs' of sums.add``.

    Raises:
        ConfigError: the annotation is missing, or of a form that is not supported.
    """
    if get_origin(annotation) is list:
        for scalar in (int, float, bool):
            if get_args(annotation) == (scalar,):
                kind = cast(Literal["int", "float", "bool"], scalar.__name__)
                return Column(name, kind, "", _SCALAR_DTYPES[kind], ())
    array_type = getattr(annotation, "array_type", None)
    library: Literal["numpy", "torch"] | None = None
    if array_type is np.ndarray:
        library = "numpy"
    elif isinstance(array_type, type) and array_type is coercion.tensor_type():
        library = "torch"
    dim_str = getattr(annotation, "dim_str", None)
    fact = f"{where} has {_shown(annotation)}"
    if library is None or not isinstance(dim_str, str):
        raise ConfigError(f"{fact}; {_SUPPORTED}")
    dtype = _sole_dtype(getattr(annotation, "dtypes", None), library, fact)
    shape = _fixed_shape(dim_str, fact)
    try:
        return Column(name, "array", library, dtype, shape)
    except ValueError as fault:
        raise ConfigError(f"{fact}, but {fault}; use a smaller shape") from None


def _sole_dtype(dtypes: object, library: str, fact: str) -> str:
    names = [str(name) for name in dtypes] if isinstance(dtypes, tuple | list) else []
    if names == ["bool", "bool_"]:  # jaxtyping's Bool goes by numpy's old name as well
        names = ["bool"]
    if len(names) != 1:
        count = f"{len(names)} dtypes" if names else "any dtype"
        raise ConfigError(f"{fact}, which stands for {count}; name one, such as Float32 or Int64")
    (dtype,) = names
    if dtype in _RAW and library == "numpy":
        raise ConfigError(f"{fact}, but numpy has no {dtype}; use Tensor instead of np.ndarray")
    if dtype not in _WIRE:
        raise ConfigError(f"{fact}, but {dtype} is not supported; use one of {', '.join(_WIRE)}")
    return dtype


def _fixed_shape(dim_str: str, fact: str) -> tuple[int, ...]:
    batch, *axes = dim_str.split() or [""]
    if not batch.isidentifier() or batch.startswith("_"):
        raise ConfigError(
            f"{fact}, whose first axis {batch!r} is not a name; "
            'the first axis is the batch, as in "batch 3 224 224"'
        )
    lengths = [_FIXED_AXIS.fullmatch(axis) for axis in axes]
    for axis, length in zip(axes, lengths, strict=True):
        if length is None:
            raise ConfigError(
                f"{fact}, whose axis {axis!r} is not an integer; "
                'variable lengths are not supported yet, write them out as in "batch 3 224 224"'
            )
    return tuple(int(length[1]) for length in lengths if length is not None)


def _shown(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return "no annotation"
    if annotation is type(None):  # what typing.get_type_hints() makes of None
        return "annotation None"
    return f"annotation {inspect.formatannotation(annotation).replace('jaxtyping.', '')[:200]}"
