"""Whether two outcomes are the same, within a tolerance, and how to say what differs."""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..contract.coercion import tensor_type
from ..errors import ConfigError

_SHOWN = 200  # characters of a value in a message


class Tolerance(NamedTuple):
    """How far two floats may be apart: ``atol + rtol * abs(expected)``, as in `numpy.allclose`.

    Everything else has to be equal.
    """

    rtol: float = 1e-5
    atol: float = 1e-8


CLOSE = Tolerance()


def tolerance_of(value: Tolerance | float) -> Tolerance:
    """Return what a person wrote; one number stands for both.

    Raises:
        ConfigError: it is negative, NaN, or no number.
    """
    pair = value if isinstance(value, tuple) else (value, value)
    numbers = [each for each in pair if isinstance(each, int | float) and each >= 0]
    if len(numbers) != 2:
        raise ConfigError(
            f"tolerance is {value!r:.100}; use a number of 0 or more, or a Tolerance of two"
        )
    return Tolerance(*numbers)


def difference(found: Any, expected: Any, tolerance: Tolerance) -> str | None:
    """Say how two values differ; None where they do not.

    Exceptions are the same if they are of one class and say the same. Objects that cannot be
    compared are taken for the same if they consist of the same.
    """
    if isinstance(found, BaseException) or isinstance(expected, BaseException):
        same = type(found) is type(expected) and str(found) == str(expected)
        return None if same else "one of them is an error" + _both(found, expected)
    if _is_array(found) or _is_array(expected):
        return _of_arrays(found, expected, tolerance)
    if _is_number(found) and _is_number(expected):
        return _of_numbers(found, expected, tolerance)
    if type(found) is not type(expected):
        return f"one is a {type(found).__name__}, the other a {type(expected).__name__}"
    if isinstance(found, Mapping):
        if found.keys() != expected.keys():
            return f"keys {list(found)} and {list(expected)}"[:_SHOWN]
        return _first(((f"[{key!r}]", found[key], expected[key]) for key in found), tolerance)
    if isinstance(found, list | tuple):
        if len(found) != len(expected):
            return f"lengths {len(found)} and {len(expected)}"
        pairs = zip(found, expected, strict=True)
        return _first(((f"[{at}]", *pair) for at, pair in enumerate(pairs)), tolerance)
    if getattr(type(found), "__eq__", None) is object.__eq__:
        return difference(_parts(found), _parts(expected), tolerance)
    return None if bool(found == expected) else f"{shown(found)} and {shown(expected)}"


def shown(value: Any) -> str:
    """Return a value as a message shows it, on one line."""
    if isinstance(value, BaseException):
        text = f"{type(value).__name__}({value})"
    elif isinstance(value, tensor_type()) and str(value.layout) == "torch.strided":
        dtype = str(value.dtype).removeprefix("torch.")
        text = _array_shown("tensor", _as_numpy(value), dtype)
    elif isinstance(value, np.ndarray):
        text = _array_shown("array", value, str(value.dtype))
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def call_shown(name: str, values: tuple[Any, ...]) -> str:
    """Return a call as a person would write it."""
    return f"{name}({', '.join(map(shown, values))})"


def _array_shown(kind: str, array: np.ndarray[Any, Any], dtype: str) -> str:
    listed = np.array2string(array, separator=", ", threshold=20, floatmode="unique")
    emptiness = "" if array.size else f", shape={array.shape}"
    return f"{kind}({listed}, dtype={dtype}{emptiness})"


def _both(found: Any, expected: Any) -> str:
    return f": {shown(found)} and {shown(expected)}"


def _first(parts: Iterable[tuple[str, Any, Any]], tolerance: Tolerance) -> str | None:
    """Say how the first of several parts differs that does."""
    for where, found, expected in parts:
        fact = difference(found, expected, tolerance)
        if fact is not None:
            return f"at {where}: {fact}"
    return None


def _parts(value: Any) -> Any:
    return getattr(value, "__dict__", None) or repr(type(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic, tensor_type()))


def _as_numpy(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, tensor_type()):
        value = value.detach().cpu()
        if str(value.dtype).startswith(("torch.bfloat16", "torch.float8")):
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)


def _of_arrays(found: Any, expected: Any, tolerance: Tolerance) -> str | None:
    if not (_is_array(found) and _is_array(expected)):
        return f"one is a {type(found).__name__}, the other a {type(expected).__name__}"
    one, other = _as_numpy(found), _as_numpy(expected)
    if str(found.dtype) != str(expected.dtype):
        return f"dtypes {found.dtype} and {expected.dtype}"
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    if one.dtype.kind not in "fc":
        apart = _unequal(one, other)
    else:
        with np.errstate(all="ignore"):
            close = np.isclose(one, other, tolerance.rtol, tolerance.atol, equal_nan=True)
        apart = ~close
    count = int(np.count_nonzero(apart))
    if not count:
        return None
    if one.size == 1:
        return _gap(one.reshape(-1)[0], other.reshape(-1)[0])
    first = tuple(int(at[0]) for at in np.nonzero(apart))
    return f"{count} of {one.size} elements, first at {list(first)}: " + _gap(
        one[first], other[first]
    )


def _unequal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Any:
    apart = one != other
    if one.dtype.kind in "mM":  # NaT is not equal to itself
        apart &= ~(np.isnat(one) & np.isnat(other))
    return apart


def _of_numbers(found: Any, expected: Any, tolerance: Tolerance) -> str | None:
    if found == expected:
        return None
    if isinstance(found, int) and isinstance(expected, int):
        return _gap(found, expected)
    if cmath.isnan(found) and cmath.isnan(expected):
        return None
    bound = tolerance.atol + tolerance.rtol * abs(expected)
    if math.isfinite(bound) and abs(found - expected) <= bound:
        return None
    return _gap(found, expected)


def _gap(found: Any, expected: Any) -> str:
    """Say how far two scalars are apart, where that means anything."""
    kinds = (bool, np.bool_, str, bytes, np.datetime64, np.timedelta64, np.void)
    if isinstance(found, kinds) or isinstance(expected, kinds):
        return f"{found!s} and {expected!s}"[:_SHOWN]
    if isinstance(found, int | np.integer) and isinstance(expected, int | np.integer):
        return f"{found} and {expected}, {abs(int(found) - int(expected))} apart"
    with np.errstate(all="ignore"):
        return f"{found:.9g} and {expected:.9g}, {abs(found - expected):.3g} apart"
