"""Tools for who tests a batched function: a virtual clock, checks, strategies; loaded on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..executor.batcher import SealReason
    from .checking import check_batching
    from .comparing import Tolerance
    from .composing import Composed, run_batch
    from .invariance import check_batch_invariance
    from .producer import Call, Producer
    from .records import Batches, BatchRecord
    from .simulation import Simulation
    from .strategies import inputs, values

__all__ = [
    "BatchRecord",
    "Batches",
    "Call",
    "Composed",
    "Producer",
    "SealReason",
    "Simulation",
    "Tolerance",
    "check_batch_invariance",
    "check_batching",
    "inputs",
    "run_batch",
    "values",
]

_HOMES = {
    "BatchRecord": ".records",
    "Batches": ".records",
    "Call": ".producer",
    "Composed": ".composing",
    "Producer": ".producer",
    "SealReason": "..executor.batcher",
    "Simulation": ".simulation",
    "Tolerance": ".comparing",
    "check_batch_invariance": ".invariance",
    "check_batching": ".checking",
    "inputs": ".strategies",
    "run_batch": ".composing",
    "values": ".strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shmbatch.testing' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
