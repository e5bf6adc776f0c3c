"""Which inputs hypothesis draws for a batched function: whatever its annotations accept.

::

    annotation                             values
    -------------------------------------  ------------------------------------------------------
    list[int]                              from -2**63 to 2**63 - 1
    list[float]                            finite, of at most *magnitude*
    list[bool], list[str], list[bytes]     all, of at most `max_bytes`
    list[np.ndarray]                       numbers or bools of any dtype, up to three axes
    Float32[np.ndarray, "batch 3 4"]       that dtype and shape; floats of at most *magnitude*
    Float32[Tensor, "batch seq 4"]         likewise; each named axis has one length within a call
    other list[T]                          what `hypothesis.strategies.from_type` makes of T
    no annotation, codec="pickle"          None, bools, numbers, text, bytes, lists and dicts
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from ..app.extras import needed
from ..contract import schema
from ..contract.columns import Column
from ..contract.definition import Definition
from ..contract.packing import packing
from ..contract.signature import Signature
from ..errors import ConfigError, InputError
from .drawing import Bounds, Strategy, any_arrays, arrays, floats
from .targets import Meant, Target, sole_described
from .typed import Typed, anything


def inputs(
    target: Target,
    *,
    parameters: Mapping[str, Strategy] | None = None,
    min_lengths: Mapping[str, int] | None = None,
    magnitude: float = 1000.0,
    nonfinite: bool = False,
) -> Strategy:
    """Return a strategy for the arguments of one call, as a tuple, one value a parameter.

    Args:
        target: one batched function.
        parameters: strategies to use instead, by the names of parameters.
        min_lengths: fewest elements along each named axis, by its name; by default 0.
        magnitude: floats are at most that far from zero, and at most what their dtype holds.
        nonfinite: draw NaN and infinities too.

    Raises:
        ConfigError: hypothesis is not installed, makes no values of some type, or an argument
            names what is not there.
    """
    meant = sole_described(target)
    return inputs_of(meant, parameters or {}, min_lengths or {}, Bounds(magnitude, nonfinite))


def values(
    target: Target,
    name: str,
    *,
    lengths: Mapping[str, int] | None = None,
    magnitude: float = 1000.0,
    nonfinite: bool = False,
) -> Strategy:
    """Return a strategy for single values of one parameter.

    Args:
        target: one batched function.
        name: of the parameter.
        lengths: of named axes, by their names; of others it is drawn.
        magnitude, nonfinite: as of `inputs`.

    Raises:
        ConfigError: as `inputs`.
    """
    meant = sole_described(target)
    column = _column(meant, name)
    bounds = Bounds(magnitude, nonfinite)
    known = dict(lengths or {})
    drawn = _lengths([column], known, meant)
    return drawn.flatmap(lambda each: _values(meant, column, each | known, bounds))


def inputs_of(
    meant: Meant,
    parameters: Mapping[str, Strategy],
    min_lengths: Mapping[str, int],
    bounds: Bounds,
) -> Strategy:
    """Do as `inputs`."""
    st = needed("testing", "hypothesis.strategies")
    columns = meant.definition.signature.parameters
    for name in parameters:
        _column(meant, name)
    derived = [column for column in columns if column.name not in parameters]

    def drawn(lengths: dict[str, int]) -> Strategy:
        strategy: Strategy = st.tuples(
            *(
                parameters[column.name]
                if column.name in parameters
                else _values(meant, column, lengths, bounds)
                for column in columns
            )
        )
        return strategy

    lengths = _lengths(derived, min_lengths, meant)
    if not any(column.variable for column in derived):
        return drawn({})
    return lengths.flatmap(drawn)


def given_inputs(meant: Meant, strategy: Strategy | None) -> Strategy:
    """Return the strategy that a person gave for the arguments of calls, or else `inputs`.

    Raises:
        ConfigError: it is no strategy; or, when it is used, it draws something but tuples.
    """
    st = needed("testing", "hypothesis.strategies")
    if strategy is None:
        return inputs_of(meant, {}, {}, Bounds())
    advice = "use one of tuples of arguments, as testing.inputs(f) or st.tuples(...)"
    if not isinstance(strategy, st.SearchStrategy):
        raise ConfigError(f"{strategy!r:.100} is no strategy of hypothesis; {advice}")

    def tupled(values: Any) -> Any:
        if not isinstance(values, tuple):
            raise ConfigError(
                f"the strategy for inputs of '{meant.address}' drew {values!r:.100}; {advice}"
            )
        return values

    checked: Strategy = strategy.map(tupled)
    return checked


def _column(meant: Meant, name: str) -> Column:
    signature: Signature = meant.definition.signature
    for column in signature.parameters:
        if column.name == name:
            return column
    known = ", ".join(column.name for column in signature.parameters)
    raise ConfigError(f"'{meant.address}' has no parameter {name!r}; it has {known}")


def _lengths(columns: list[Column], least: Mapping[str, int], meant: Meant) -> Strategy:
    """Draw one length for each named axis: the same in all parameters that have it."""
    st = needed("testing", "hypothesis.strategies")
    most: dict[str, int] = {}
    for column in columns:
        for at in column.variable:
            most[column.axes[at]] = -column.shape[at]
    for axis, length in least.items():
        if axis not in most:
            known = ", ".join(most) or "none"
            raise ConfigError(f"'{meant.address}' has no named axis {axis!r}; it has {known}")
        if not isinstance(length, int) or not 0 <= length <= most[axis]:
            raise ConfigError(
                f"the length of axis {axis!r} is {length!r:.100}; use an int from 0 to the "
                f"maximum of {most[axis]} in @batched"
            )
    chosen: Strategy = st.fixed_dictionaries(
        {axis: st.integers(least.get(axis, 0), length) for axis, length in most.items()}
    )
    return chosen


def _values(meant: Meant, column: Column, lengths: Mapping[str, int], bounds: Bounds) -> Strategy:
    """Return a strategy for values of a column."""
    st = needed("testing", "hypothesis.strategies")
    where = f"parameter {column.name!r} of '{meant.address}'"
    strategy: Strategy
    match column.kind:
        case "int":
            strategy = st.integers(-(2**63), 2**63 - 1)
        case "float":
            strategy = floats(bounds)
        case "bool":
            strategy = st.booleans()
        case "str":
            text = st.text(max_size=column.max_bytes)
            strategy = text.filter(lambda value: len(value.encode()) <= column.max_bytes)
        case "bytes":
            strategy = st.binary(max_size=column.max_bytes)
        case "ndarray":
            strategy = any_arrays(column, bounds)
        case "array" | "ragged":
            axes = column.axes or ("",) * len(column.shape)
            shape = tuple(
                lengths[axis] if axis else length
                for axis, length in zip(axes, column.shape, strict=True)
            )
            strategy = arrays(column, shape, bounds)
        case "msgpack":
            typed = Typed(bounds, where).of(schema.resolve(column.element))
            strategy = _accepted(typed, column, where)
        case _:
            pickled = _pickled(meant.definition, column, bounds, where)
            strategy = _accepted(pickled, column, where)
    return strategy


def _pickled(definition: Definition, column: Column, bounds: Bounds, where: str) -> Strategy:
    """Return a strategy by the annotation, of which a column of pickles says nothing."""
    hint = typing.get_type_hints(definition.function).get(column.name)
    (element,) = typing.get_args(hint) or (Any,)
    if typing.get_origin(hint) is not list or element is Any:
        return anything(bounds)
    return Typed(bounds, where).of(element)


def _accepted(strategy: Strategy, column: Column, where: str) -> Strategy:
    """Leave out the values that a producer would refuse."""
    packed = packing(column, where)
    assert packed is not None

    def fits(value: Any) -> bool:
        try:
            packed.pack(value, where)
        except InputError:
            return False
        return True

    return strategy.filter(fits)
