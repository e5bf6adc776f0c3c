"""How a number that a person wrote is checked, and shown in the message that refuses it."""

from __future__ import annotations

from ..errors import ConfigError


def check_count(name: str, value: object, most: int) -> None:
    """Raise `ConfigError` unless *value* is an int from 1 to *most*."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{name} is {shown(value)}; use an int from 1 to {most}")


def shown(value: object) -> str:
    """Return *value* in at most 100 characters; its type where it is neither number nor text."""
    if isinstance(value, int) and value.bit_length() > 128:  # str() has a limit on digits
        return f"an int of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, int | float | str) else type(value).__name__
    return text if len(text) <= 100 else text[:97] + "..."
