"""What an app knows of one function, and an executor needs to serve it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .batching import BatchParameters
from .failing import FailureOptions
from .signature import Signature

DirectDma: TypeAlias = Literal["auto", True, False]
Hook: TypeAlias = Callable[[Any], Any]  # of an instance; may be async


@dataclass(frozen=True, eq=False)
class InstanceDefinition:
    """An object of a user's class that an executor makes, and whose methods it serves."""

    name: str  # as a person would write it: "Policy(seed=3)"
    make: Callable[[], Any]
    enter: tuple[Hook, ...] = ()  # called before anything is served, in this order
    exit: tuple[Hook, ...] = ()  # called when nothing is served any more


@dataclass(frozen=True)
class Definition:
    """A function, or a method of an instance, as its decorator describes it."""

    name: str  # within its app: "batch_add", "Policy.act"
    function: Callable[..., Any]  # takes and returns lists or stacks; may be async
    signature: Signature
    parameters: BatchParameters
    slots: int | None  # per producer; None for the default
    lockstep: bool = False  # a batch is also due when nobody is left to wait for
    batch_sizes: tuple[int, ...] | None = None  # those a batch may have; None: any
    cuda_graphs: bool = False  # one is captured for each of batch_sizes
    direct_dma: DirectDma = "auto"  # whether inputs go from slots to the GPU without staging
    instance: InstanceDefinition | None = None  # whose method it is: `function` takes self first
    failing: FailureOptions = field(default_factory=FailureOptions)
    read_only: bool = False  # it leaves its inputs as they are

    @property
    def idempotent(self) -> bool:
        """Whether a call may be executed again that may have been executed already."""
        return self.failing.idempotent

    @property
    def is_async(self) -> bool:
        """Whether the function is async, also under a decorator such as ``torch.no_grad``."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))
