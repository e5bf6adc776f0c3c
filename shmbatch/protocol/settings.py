"""Which of a few words a setting is: an argument, else an environment variable, else the first."""

from __future__ import annotations

import os

from ..errors import ConfigError


def setting(name: str, given: str | None, allowed: tuple[str, ...]) -> str:
    """Return *given*, else what ``SHMBATCH_<NAME>`` says, else the first of *allowed*.

    Raises:
        ConfigError: it is none of *allowed*.
    """
    variable = f"SHMBATCH_{name.upper()}"
    chosen = given if given is not None else os.environ.get(variable, allowed[0])
    if chosen not in allowed:
        source = name if given is not None else variable
        raise ConfigError(f"{source} is {chosen!r}; it must be one of {', '.join(allowed)}")
    return chosen
