"""Which floats and which arrays hypothesis draws."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..app.extras import needed
from ..contract.columns import RAW_DTYPES, Column
from ..executor.staging.devices import as_seen

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Strategy: TypeAlias = "SearchStrategy[Any]"

# The largest floats that a dtype holds, rounded down.
_LARGEST = {"float16": 6e4, "bfloat16": 1e38, "float8_e5m2": 5e4, "float8_e5m2fnuz": 5e4}
_LARGEST |= {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0}
_WIDTHS = {"float16": 16, "float32": 32, "float64": 64, "complex64": 32, "complex128": 64}
_NUMBERS = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool"),
    *("uint64", "uint32", "uint16", "uint8", "complex64", "complex128"),
)


@dataclass(frozen=True)
class Bounds:
    """Which floats are drawn: none further from zero than *magnitude*, and perhaps NaN and
    infinities."""

    magnitude: float = 1000.0
    nonfinite: bool = False


def floats(bounds: Bounds, width: int = 64) -> Strategy:
    """Return a strategy for floats of so many bits."""
    st = needed("testing", "hypothesis.strategies")
    most = bounds.magnitude
    if width < 64:  # a bound has to be a float of that width
        most = float(np.dtype(f"float{width}").type(most))
    strategy: Strategy = st.floats(-most, most, width=width, allow_nan=False)
    if bounds.nonfinite:
        strategy |= st.sampled_from([float("nan"), float("inf"), float("-inf")])
    return strategy


def arrays(column: Column, shape: tuple[int, ...], bounds: Bounds) -> Strategy:
    """Return a strategy for arrays, or tensors, of a column's dtype and of one shape."""
    numpy_extra = needed("testing", "hypothesis.extra.numpy")
    dtype = np.dtype("float32") if column.dtype in RAW_DTYPES else column.wire_dtype
    drawn: Strategy = numpy_extra.arrays(
        dtype, shape, elements=_elements(dtype, column.dtype, bounds)
    )
    if column.library == "numpy":
        return drawn

    def tensor(array: np.ndarray[Any, Any]) -> Any:
        seen = as_seen(_Plain(dtype.name), array)  # type: ignore[arg-type]
        return seen.to(getattr(sys.modules["torch"], column.dtype))

    return drawn.map(tensor)


def any_arrays(column: Column, bounds: Bounds) -> Strategy:
    """Return a strategy for arrays that each have a dtype and a shape of their own."""
    numpy_extra = needed("testing", "hypothesis.extra.numpy")
    st = needed("testing", "hypothesis.strategies")
    dtypes = st.sampled_from([np.dtype(name) for name in _NUMBERS])
    shapes = numpy_extra.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)

    def made(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        return numpy_extra.arrays(dtype, shape, elements=_elements(dtype, dtype.name, bounds))

    drawn: Strategy = st.tuples(dtypes, shapes).flatmap(lambda each: made(*each))
    return drawn.filter(lambda array: bool(array.nbytes <= column.max_bytes))


def _elements(dtype: np.dtype[Any], name: str, bounds: Bounds) -> Strategy:
    """Return a strategy for elements of an array.

    Args:
        dtype: of the array that is drawn.
        name: of the dtype that they are to become.
    """
    strategy: Strategy
    if dtype.kind not in "fc":
        strategy = needed("testing", "hypothesis.extra.numpy").from_dtype(dtype)
        return strategy
    most = min(bounds.magnitude, _LARGEST.get(name, np.inf))
    part = floats(Bounds(most, bounds.nonfinite), _WIDTHS[dtype.name])
    if dtype.kind == "f":
        return part
    strategy = needed("testing", "hypothesis.strategies").builds(complex, part, part)
    return strategy


@dataclass(frozen=True)
class _Plain:
    """As much of a column as it takes to see an array as a tensor."""

    dtype: str
    library: str = "torch"
