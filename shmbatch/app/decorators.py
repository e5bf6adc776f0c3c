"""`batched`: what makes a function on lists a batched function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..contract.batching import BatchParameters, batch_parameters, slot_capacity
from ..contract.definition import Definition, DirectDma, InstanceDefinition
from ..contract.failing import FailureOptions, failure_options
from ..contract.gpu import direct_dma_mode, graphs_wanted
from ..contract.lending import read_only_promised
from ..contract.options import DEFAULT_MAX_BYTES, ValueOptions, value_options
from ..contract.signature import Signature
from ..contract.sizes import allowed_sizes
from ..errors import ConfigError
from .members import Member


@dataclass(frozen=True)
class Batched(Member):
    """A function with its batching parameters, waiting for ``@app.function()`` or a class."""

    parameters: BatchParameters
    slots: int | None = None
    lockstep: bool = False
    values: ValueOptions = field(default_factory=ValueOptions)
    batch_sizes: tuple[int, ...] | None = None
    cuda_graphs: bool = False
    direct_dma: DirectDma = "auto"
    failing: FailureOptions = field(default_factory=FailureOptions)
    read_only: bool = False

    def definition(
        self, name: str, signature: Signature, instance: InstanceDefinition | None = None
    ) -> Definition:
        """Return what an executor needs to serve it as *name*."""
        return Definition(
            name,
            self.function,
            signature,
            self.parameters,
            self.slots,
            self.lockstep,
            self.batch_sizes,
            self.cuda_graphs,
            self.direct_dma,
            instance,
            self.failing,
            self.read_only,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"{self.function.__name__!r} is batched but belongs to no app; "
            f"put @app.function() above @shmbatch.batched(...)"
        )


_MISSING: Any = object()


def batched(
    *args: Any,
    max_batch_size: int = _MISSING,
    wait_ms: float = _MISSING,
    slots: int | None = None,
    lockstep: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lengths: Mapping[str, int] | None = None,
    ragged: str = "list",
    codec: str | None = None,
    batch_sizes: Sequence[int] | None = None,
    cuda_graphs: bool = False,
    direct_dma: DirectDma = "auto",
    idempotent: bool = False,
    on_error: str = "raise",
    execution_timeout: float | None = None,
    read_only: bool = False,
) -> Callable[[Callable[..., Any]], Batched]:
    """Make a function on lists run on batches of single calls.

    The function takes a list or a stack for each parameter, all of one length, and returns a
    list or a stack of that length. Annotations say how single values travel.

    Args:
        max_batch_size: most calls in a batch, 1 to 65536. Keyword-only, required.
        wait_ms: how long the oldest call of a batch waits for company, in milliseconds, 0 to
            600000, fractions allowed. Keyword-only, required.
        slots: calls that one producer can have pending; by default twice *max_batch_size* and
            at least 64.
        lockstep: a batch is also due when every producer has as many calls outstanding as it
            had lately at most, so that nobody is left to wait for. For producers that call,
            wait, and call again: they never sit out *wait_ms*, which remains the bound.
        max_bytes: most bytes of one str (in UTF-8), bytes, array of a ``list[np.ndarray]``, or
            value in MessagePack or pickled; 1 to 2**32. Every slot has room for that.
        max_lengths: most elements along each named axis beside the batch, as ``{"seq": 512}``.
        ragged: what the function gets for parameters with named axes: ``"list"``, a list of
            arrays; ``"pad"``, a pair (rows, lengths) of a stack padded with zeros and the true
            lengths. With ``"pad"`` it may return such a pair as well.
        codec: ``"pickle"`` has every value travel as a pickle, whatever the annotations say;
            None, as they say.
        batch_sizes: a tuple or list of increasing sizes that ends with *max_batch_size*, as
            ``(1, 8, 32)``. The function then gets batches of these sizes only: one of another
            size is padded to the next by repeating its last input, and the results of these
            padding rows are dropped. The function must return one for each all the same. A sync
            function of arrays of fixed shape is run with zeros first, once for each size.
        cuda_graphs: on a GPU, capture one CUDA graph for each of *batch_sizes* and replay it,
            where the function allows that. For sync functions whose parameters and result are
            tensors of fixed shape.
        direct_dma: on a GPU, whether inputs are copied there straight from the slots, not
            through a staging buffer: ``"auto"``, where that is quicker; True, wherever it can
            be done; False, nowhere.
        idempotent: whether a call may be executed again that may have been executed already. A
            batch for which memory does not suffice is then halved and retried, and what an
            executor had begun when it died is begun again by the one that replaces it.
        on_error: what becomes of a batch when the function raises: ``"raise"``, all its calls
            get that; ``"isolate"``, it is halved and retried until only bad inputs fail, in at
            most 2 k log2(n) + 1 executions for k bad of n, and *idempotent* is taken as said.
        execution_timeout: most seconds that one execution of a batch may take, up to 86400.
            Beyond that the executor ends, callers get `ExecutorGone`, and where it is supervised
            another one takes its place. None: no limit.
        read_only: the function promises to leave its inputs as they are. Stacked arrays then come
            read-only; and on the CPU, where the calls of a batch stand next to each other in one
            producer's slots, stacks of arrays or tensors of fixed shape are views of these slots
            and nothing is copied, unless *batch_sizes* or ``ragged="pad"`` have it pad, or the
            producer is another user's. A tensor cannot be read-only: a function that writes to
            one all the same has changed what is executed again.

    Raises:
        ConfigError: a value is missing or out of bounds, contradicts another, or what is
            decorated is no function.
    """
    if args:
        raise ConfigError(
            "@batched takes its arguments by keyword; "
            "write @shmbatch.batched(max_batch_size=..., wait_ms=...)"
        )
    for name, value in (("max_batch_size", max_batch_size), ("wait_ms", wait_ms)):
        if value is _MISSING:
            raise ConfigError(f"@batched needs {name}; write @shmbatch.batched({name}=...)")
    parameters = batch_parameters(max_batch_size, wait_ms)
    slot_capacity(max_batch_size, slots, 0, 0)  # checks slots
    if not isinstance(lockstep, bool):
        raise ConfigError(f"lockstep is {lockstep!r:.100}; use True or False")
    values = value_options(max_bytes, max_lengths, ragged, codec)
    sizes = allowed_sizes(batch_sizes, max_batch_size)
    graphs = graphs_wanted(cuda_graphs, sizes)
    direct = direct_dma_mode(direct_dma)
    failing = failure_options(idempotent, on_error, execution_timeout)
    reads = read_only_promised(read_only)

    def decorate(function: Callable[..., Any]) -> Batched:
        if inspect.isclass(function):
            raise ConfigError(
                f"@batched decorates class {function.__name__!r}; decorate its method instead"
            )
        if not inspect.isfunction(function):
            raise ConfigError(f"@batched decorates {function!r}; it must be a function")
        return Batched(
            *(function, parameters, slots, lockstep, values),
            *(sizes, graphs, direct, failing, reads),
        )

    return decorate
