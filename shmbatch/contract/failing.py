"""What becomes of a batch whose function raises, or does not come to an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from ..errors import ConfigError
from .checking import shown

OnError: TypeAlias = Literal["raise", "isolate"]

MAX_EXECUTION_TIMEOUT_S = 86_400  # a day


@dataclass(frozen=True)
class FailureOptions:
    """What ``@batched`` says about executions of one function that fail."""

    idempotent: bool = False  # calls may be executed again
    on_error: OnError = "raise"
    execution_timeout_ns: int | None = None  # of one batch; None: no limit


def failure_options(
    idempotent: bool = False, on_error: str = "raise", execution_timeout: float | None = None
) -> FailureOptions:
    """Check what a person wrote. A function that isolates is idempotent: it is executed again.

    Raises:
        ConfigError: a value has the wrong type or is out of bounds.
    """
    if not isinstance(idempotent, bool):
        raise ConfigError(f"idempotent is {shown(idempotent)}; use True or False")
    if not isinstance(on_error, str) or on_error not in ("raise", "isolate"):
        raise ConfigError(
            f"on_error is {shown(on_error)}; use 'raise', and all calls of a batch get what the "
            "function raised, or 'isolate', and only bad inputs do"
        )
    limit_ns = None
    if execution_timeout is not None:
        # A NaN fails both comparisons; an int is compared exactly.
        if (
            not isinstance(execution_timeout, int | float)
            or isinstance(execution_timeout, bool)
            or not 0 < execution_timeout <= MAX_EXECUTION_TIMEOUT_S
        ):
            raise ConfigError(
                f"execution_timeout is {shown(execution_timeout)}; use a number of seconds above "
                f"0 and up to {MAX_EXECUTION_TIMEOUT_S}, or None for no limit"
            )
        limit_ns = max(1, round(execution_timeout * 1e9))
    return FailureOptions(idempotent or on_error == "isolate", cast(OnError, on_error), limit_ns)
