"""What a function promises of its inputs, so that it may be lent the slots in which they stand."""

from __future__ import annotations

from ..errors import ConfigError
from .checking import shown
from .definition import Definition


def read_only_promised(read_only: object) -> bool:
    """Check what a person wrote as ``read_only``; `check_read_only` looks at the function.

    Raises:
        ConfigError: it is no bool.
    """
    if not isinstance(read_only, bool):
        raise ConfigError(f"read_only is {shown(read_only)}; use True or False")
    return read_only


def check_read_only(definition: Definition, name: str) -> None:
    """Refuse a promise of a function that gets no stack: its lists are its own.

    Args:
        name: of the function, in the message of an error, as in ``sums.batch_add``.

    Raises:
        ConfigError: it promises to leave its inputs as they are, and none of them is a stack.
    """
    if not definition.read_only:
        return
    if not any(
        column.kind == "array" or column.padded for column in definition.signature.parameters
    ):
        raise ConfigError(
            f"read_only=True means nothing for {name}, none of whose parameters is a stack, as of "
            'Float32[np.ndarray, "batch 16"]; annotate one so, or drop read_only'
        )
