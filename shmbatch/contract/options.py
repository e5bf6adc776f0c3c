"""How values travel where an annotation leaves a choice: the limits and the forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from ..errors import ConfigError
from .checking import check_count, shown

DEFAULT_MAX_BYTES = 65_536
MAX_MAX_BYTES = 2**32  # every slot has room for one such value
MAX_LENGTH = 2**40

RAGGED = ("list", "pad")
CODECS = ("pickle",)


@dataclass(frozen=True)
class ValueOptions:
    """What ``@batched`` says about the values of one function."""

    max_bytes: int = DEFAULT_MAX_BYTES  # of one str, bytes, array or packed value
    max_lengths: tuple[tuple[str, int], ...] = ()  # of named axes
    ragged: Literal["list", "pad"] = "list"  # what a function gets for named axes
    pickled: bool = False


def value_options(
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lengths: Mapping[str, int] | None = None,
    ragged: str = "list",
    codec: str | None = None,
) -> ValueOptions:
    """Check what a person wrote; whether the axes are there is for `signature_of` to say.

    Raises:
        ConfigError: a value has the wrong type or is out of bounds.
    """
    check_count("max_bytes", max_bytes, MAX_MAX_BYTES)
    max_lengths = {} if max_lengths is None else max_lengths
    if not isinstance(max_lengths, Mapping):
        raise ConfigError(
            f"max_lengths is {shown(max_lengths)}; "
            'use a dict from names of axes to lengths, as in {"seq": 512}'
        )
    for axis, length in max_lengths.items():
        if not isinstance(axis, str) or not axis.isidentifier():
            raise ConfigError(
                f"max_lengths has the key {shown(axis)}; "
                'keys are names of axes, as in {"seq": 512}'
            )
        check_count(f"max_lengths[{axis!r}]", length, MAX_LENGTH)
    if ragged not in RAGGED:
        raise ConfigError(f"ragged is {shown(ragged)}; use 'list' or 'pad'")
    if codec is not None and codec not in CODECS:
        raise ConfigError(
            f"codec is {shown(codec)}; use 'pickle', or leave it out to have annotations decide"
        )
    if codec is not None and max_lengths:
        raise ConfigError("max_lengths means nothing with codec='pickle'; drop one of them")
    if codec is not None and ragged != "list":
        raise ConfigError("ragged='pad' means nothing with codec='pickle'; drop one of them")
    return ValueOptions(
        max_bytes,
        tuple(sorted(max_lengths.items())),
        cast(Literal["list", "pad"], ragged),
        codec is not None,
    )
