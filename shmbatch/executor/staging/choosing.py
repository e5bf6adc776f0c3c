"""Which device each function of an executor runs on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...contract.definition import Definition
from .devices import Cpu, Device

log = logging.getLogger("shmbatch.executor")


def devices_for(definitions: Sequence[Definition], device: str) -> list[Device]:
    """Return the device of each function: the one wanted for tensors, the CPU for all others.

    Args:
        device: as `contract.device.device_name` returns it. ``"auto"`` is ``"cuda:0"`` where
            torch sees a GPU, else the CPU. torch is imported only if a signature needs it, or a
            CUDA device is asked for by name.

    Raises:
        ConfigError: the device is not to be had.
    """
    on_tensors = [_takes_tensors(each) for each in definitions]
    chosen: Device = Cpu()
    if device not in ("auto", "cpu") or (device == "auto" and any(on_tensors)):
        from .runtime import cuda_runtime

        runtime = cuda_runtime(device)
        if runtime is not None:
            from .cuda import Cuda

            chosen = Cuda(runtime)
            log.info("functions on tensors run on %s", chosen.name)
    host = Cpu()
    return [chosen if takes else host for takes in on_tensors]


def _takes_tensors(definition: Definition) -> bool:
    signature = definition.signature
    return any(column.library == "torch" for column in (*signature.parameters, signature.result))
