"""What an app knows of one batched function, and an executor needs to serve it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .batching import BatchParameters
from .signature import Signature


@dataclass(frozen=True)
class Definition:
    """A batched function as its decorator describes it."""

    name: str  # within its app: "batch_add"
    function: Callable[..., Any]  # takes and returns lists or stacks; may be async
    signature: Signature
    parameters: BatchParameters
    slots: int | None  # per producer; None for the default
    lockstep: bool = False  # a batch is also due when nobody is left to wait for

    @property
    def is_async(self) -> bool:
        """Whether the function is async, also under a decorator such as ``torch.no_grad``."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))
