"""What an app knows of one batched function, and an executor needs to serve it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .batching import BatchParameters
from .signature import Signature

DirectDma: TypeAlias = Literal["auto", True, False]


@dataclass(frozen=True)
class Definition:
    """A batched function as its decorator describes it."""

    name: str  # within its app: "batch_add"
    function: Callable[..., Any]  # takes and returns lists or stacks; may be async
    signature: Signature
    parameters: BatchParameters
    slots: int | None  # per producer; None for the default
    lockstep: bool = False  # a batch is also due when nobody is left to wait for
    batch_sizes: tuple[int, ...] | None = None  # those a batch may have; None: any
    cuda_graphs: bool = False  # one is captured for each of batch_sizes
    direct_dma: DirectDma = "auto"  # whether inputs go from slots to the GPU without staging

    @property
    def is_async(self) -> bool:
        """Whether the function is async, also under a decorator such as ``torch.no_grad``."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))
