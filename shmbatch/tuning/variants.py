"""Batching parameters as they are tried, and as they are written down for the user to paste."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ..contract.batching import BatchParameters, batch_parameters
from ..contract.columns import Column
from ..contract.definition import Definition
from ..contract.options import DEFAULT_MAX_BYTES


@dataclass(frozen=True)
class Parameters:
    """What `@batched` is to be given; *batch_sizes* None allows every size."""

    max_batch_size: int
    wait_ms: float
    batch_sizes: tuple[int, ...] | None = None

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Self:
        """Return what `dataclasses.asdict` has made data of, and JSON lists."""
        sizes = message["batch_sizes"]
        return cls(**{**message, "batch_sizes": None if sizes is None else tuple(sizes)})

    def checked(self) -> BatchParameters:
        """Return what the executor makes of it."""
        return batch_parameters(self.max_batch_size, self.wait_ms)

    def decorator(self, others: Sequence[str] = ()) -> str:
        """Return the line to paste, with *others*, options that stay as they were."""
        return f"@shmbatch.batched({', '.join([self.short(), *others])})"

    def short(self) -> str:
        """Return the same as arguments."""
        options = [f"max_batch_size={self.max_batch_size}", f"wait_ms={self.wait_ms:g}"]
        if self.batch_sizes is not None:
            options.append(f"batch_sizes={self.batch_sizes!r}")
        return ", ".join(options)


def variant(definition: Definition, parameters: Parameters) -> Definition:
    """Return *definition* with other batching parameters.

    A function with CUDA graphs has to say its sizes; where *parameters* do not, it is the largest.
    """
    size = parameters.max_batch_size
    sizes = parameters.batch_sizes
    if sizes is None and definition.cuda_graphs:
        sizes = (size,)
    return replace(definition, parameters=parameters.checked(), batch_sizes=sizes)


def other_options(definition: Definition) -> Iterator[str]:
    """Yield what the function's decorator says beside its batching parameters, as Python."""
    signature = definition.signature
    columns = (*signature.parameters, signature.result)
    if definition.slots is not None:
        yield f"slots={definition.slots}"
    if definition.lockstep:
        yield "lockstep=True"
    max_bytes = max(column.max_bytes for column in columns)
    if max_bytes not in (0, DEFAULT_MAX_BYTES):
        yield f"max_bytes={max_bytes}"
    lengths = dict(_max_lengths(columns))
    if lengths:
        yield f"max_lengths={lengths!r}"
    if any(column.padded for column in columns):
        yield "ragged='pad'"
    if any(column.kind == "pickle" for column in columns):
        yield "codec='pickle'"
    if definition.cuda_graphs:
        yield "cuda_graphs=True"
    if definition.direct_dma != "auto":
        yield f"direct_dma={definition.direct_dma}"
    failing = definition.failing
    if failing.on_error != "raise":
        yield f"on_error={failing.on_error!r}"
    elif failing.idempotent:
        yield "idempotent=True"
    if failing.execution_timeout_ns is not None:
        yield f"execution_timeout={failing.execution_timeout_ns / 1e9:g}"
    if definition.read_only:
        yield "read_only=True"


def _max_lengths(columns: Sequence[Column]) -> Iterator[tuple[str, int]]:
    for column in columns:
        for at in column.variable:
            yield column.axes[at], -column.shape[at]
