"""Whether a function that is read-only has left its inputs as they are."""

from __future__ import annotations

from typing import Any

from ..contract.definition import Definition
from ..contract.ragged import Padded
from .comparing import Tolerance, difference

_EXACT = Tolerance(0.0, 0.0)


class Promise:
    """The stacks of a batch before the function runs; of tensors only, since arrays are read-only.

    Costs a copy of them, if the function is read-only.
    """

    def __init__(self, definition: Definition, address: str, inputs: tuple[Any, ...]) -> None:
        self._address = address
        self._stacks: list[tuple[str, Any, Any]] = []
        if definition.read_only:
            for column, stack in zip(definition.signature.parameters, inputs, strict=True):
                if column.library == "torch" and not isinstance(stack, list):
                    parts = stack if isinstance(stack, Padded) else (stack,)
                    self._stacks += ((column.name, part, part.clone()) for part in parts)

    def check(self) -> None:
        """Raise AssertionError if one of them is not what it was."""
        for name, stack, before in self._stacks:
            fact = difference(stack, before, _EXACT)
            if fact is not None:
                raise AssertionError(
                    f"'{self._address}' is read_only, and has changed parameter {name!r}: {fact}; "
                    f"have it write to a clone, or drop read_only"
                )
