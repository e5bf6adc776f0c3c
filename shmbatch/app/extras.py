"""What is said where a module is missing that an extra of this package brings."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import ConfigError


def needed(extra: str, module: str) -> ModuleType:
    """Import *module* and return it.

    Args:
        extra: which brings it, as in ``pip install 'shmbatch[web]'``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # it is there; what it needs itself is not
        raise ConfigError(
            f"{package} is not installed; get it with `pip install 'shmbatch[{extra}]'`"
        ) from None
