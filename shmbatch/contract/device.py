"""What a person may call the device on which an executor runs functions on tensors.

Whether there is such a device, only the executor finds out: this needs no torch.
"""

from __future__ import annotations

import os
import re

from ..errors import ConfigError

FORMS = "auto, cpu, cuda or cuda:N"

_NAME = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?")


def device_name(device: str | None) -> str:
    """Return *device*, else what SHMBATCH_DEVICE says, else ``"auto"``.

    Raises:
        ConfigError: it is none of `FORMS`.
    """
    chosen = device if device is not None else os.environ.get("SHMBATCH_DEVICE", "auto")
    if not isinstance(chosen, str) or _NAME.fullmatch(chosen) is None:
        source = "device" if device is not None else "SHMBATCH_DEVICE"
        raise ConfigError(f"{source} is {chosen!r:.100}; use {FORMS}, as in cuda:0")
    return chosen
