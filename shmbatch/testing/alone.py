"""What an input gets in a batch of its own: the outcome that checks compare others with."""

from __future__ import annotations

from typing import Any

from .comparing import shown
from .composing import composed
from .producer import Call
from .targets import Meant


class Alone:
    """Runs inputs in batches of one, and knows whether that has ever given a result."""

    def __init__(self, meant: Meant, device: str) -> None:
        self._meant = meant
        self._device = device
        self._has_result = False
        self._error: Exception | None = None  # the last there was

    def outcome(self, values: tuple[Any, ...]) -> Any:
        """Return the result of an input that runs alone, or its error."""
        outcome = outcome_of(composed(self._meant, [values], device=self._device).calls[0])
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._has_result = True
        return outcome

    def check_results(self) -> None:
        """Raise AssertionError if every input failed: then nothing has been compared."""
        if self._error is not None and not self._has_result:
            raise AssertionError(
                f"no input of '{self._meant.address}' that was tried has a result by itself, so "
                f"there was nothing to compare; the last gets {shown(self._error)}"
            )


def outcome_of(call: Call) -> Any:
    """Return the result of a call, or its error."""
    error = call.error()
    return call.get() if error is None else error
