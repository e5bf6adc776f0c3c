"""Which column an annotation asks for."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal, cast, get_args, get_origin

import numpy as np

from ..errors import ConfigError
from . import coercion, schema
from .columns import RAW_DTYPES, SCALAR_DTYPES, WIRE_DTYPES, Column, Kind
from .options import ValueOptions

_DEFAULTS = ValueOptions()
_FIXED_AXIS = re.compile(r"(?:[A-Za-z_]\w*=)?([0-9]{1,18})")  # jaxtyping: "3" or "channels=3"
_SUPPORTED = (
    "supported are list[int], list[str], list[np.ndarray], list[T] of any other T that "
    'MessagePack has, and jaxtyping arrays, such as Float32[Tensor, "batch 3 224 224"]'
)


_PLAIN = (
    "supported are int, str, np.ndarray, any other type that MessagePack has, and jaxtyping "
    'arrays of fixed shape, such as Float32[Tensor, "3 224 224"]'
)


def parse_annotation(
    annotation: object,
    name: str,
    where: str,
    options: ValueOptions = _DEFAULTS,
    *,
    plain: bool = False,
) -> Column:
    """Return the column that *annotation* asks for.

    jaxtyping's classes are recognised by their public attributes, jaxtyping is not imported.
    ``inspect.Parameter.empty`` stands for no annotation.

    Args:
        name: of the parameter, or "result".
        where: begins the message of an error, as in ``parameter 'xs' of sums.add``.
        options: of the function; that of its axes which are not here is not looked at.
        plain: the annotation is of one value, and not of a list or a stack of them.

    Raises:
        ConfigError: the annotation is of a form that is not supported.
    """
    fact = f"{where} has {_shown(annotation)}"
    array_type = getattr(annotation, "array_type", None)
    library: Literal["numpy", "torch"] | None = None
    if array_type is np.ndarray:
        library = "numpy"
    elif isinstance(array_type, type) and array_type is coercion.tensor_type():
        library = "torch"
    dim_str = getattr(annotation, "dim_str", None)
    is_array = library is not None and isinstance(dim_str, str)
    is_list = annotation in (inspect.Parameter.empty, list) or get_origin(annotation) is list
    if not is_array and not is_list and not plain:
        raise ConfigError(f"{fact}; {_SUPPORTED}")
    if options.pickled:
        return Column(name, "pickle", "", "", (), max_bytes=options.max_bytes)
    if not is_array:
        element = annotation
        if annotation is inspect.Parameter.empty:
            element = Any
        elif not plain:
            (element,) = get_args(annotation) or (Any,)
        if plain and element is coercion.tensor_type():
            raise ConfigError(f"{fact}; {_PLAIN}")
        return _element_column(element, name, fact, options)
    assert library is not None
    dtype = _sole_dtype(getattr(annotation, "dtypes", None), library, fact)
    axes_text = f"batch {dim_str}" if plain else str(dim_str)
    shape, axes = _shape(axes_text, fact, dict(options.max_lengths))
    try:
        if any(axes):
            padded = options.ragged == "pad"
            return Column(name, "ragged", library, dtype, shape, axes, padded)
        return Column(name, "array", library, dtype, shape)
    except ValueError as fault:
        raise ConfigError(f"{fact}, but {fault}; use a smaller shape") from None


def _element_column(element: Any, name: str, fact: str, options: ValueOptions) -> Column:
    """Return the column of a parameter whose single values are of type *element*."""
    if element in (int, float, bool):
        kind = cast(Kind, element.__name__)
        return Column(name, kind, "", SCALAR_DTYPES[kind], ())
    if element in (str, bytes, np.ndarray):
        return Column(name, element.__name__, "", "", (), max_bytes=options.max_bytes)
    tree, fingerprint = schema.checked(element, fact)
    return Column(
        name,
        "msgpack",
        "",
        "",
        (),
        max_bytes=options.max_bytes,
        element=tree,
        fingerprint=fingerprint,
    )


def _sole_dtype(dtypes: object, library: str, fact: str) -> str:
    names = [str(name) for name in dtypes] if isinstance(dtypes, tuple | list) else []
    if names == ["bool", "bool_"]:  # jaxtyping's Bool goes by numpy's old name as well
        names = ["bool"]
    if len(names) != 1:
        count = f"{len(names)} dtypes" if names else "any dtype"
        raise ConfigError(f"{fact}, which stands for {count}; name one, such as Float32 or Int64")
    (dtype,) = names
    if dtype in RAW_DTYPES and library == "numpy":
        raise ConfigError(f"{fact}, but numpy has no {dtype}; use Tensor instead of np.ndarray")
    if dtype not in WIRE_DTYPES:
        raise ConfigError(
            f"{fact}, but {dtype} is not supported; use one of {', '.join(WIRE_DTYPES)}"
        )
    return dtype


def _shape(
    dim_str: str, fact: str, max_lengths: dict[str, int]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the lengths of a value's axes and the names of those that are variable."""
    batch, *axes = dim_str.split() or [""]
    if not _is_name(batch):
        raise ConfigError(
            f"{fact}, whose first axis {batch!r} is not a name; "
            'the first axis is the batch, as in "batch 3 224 224"'
        )
    shape, names = [], []
    for axis in axes:
        fixed = _FIXED_AXIS.fullmatch(axis)
        if fixed is not None:
            shape.append(int(fixed[1]))
            names.append("")
        elif not _is_name(axis):
            raise ConfigError(
                f"{fact}, whose axis {axis!r} is neither an integer nor a name; "
                'write "batch 3 224 224", or "batch seq 16" with max_lengths={"seq": ...}'
            )
        elif axis not in max_lengths:
            raise ConfigError(
                f"{fact}, whose axis {axis!r} has no maximum; add max_lengths="
                f'{{"{axis}": ...}}, or write the axis as an integer'
            )
        else:
            shape.append(-max_lengths[axis])
            names.append(axis)
    return tuple(shape), tuple(names)


def _is_name(axis: str) -> bool:
    return axis.isidentifier() and not axis.startswith("_")


def _shown(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return "no annotation"
    if annotation is type(None):  # what typing.get_type_hints() makes of None
        return "annotation None"
    return f"annotation {inspect.formatannotation(annotation).replace('jaxtyping.', '')[:200]}"
