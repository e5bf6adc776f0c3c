"""A function as CUDA graphs: one for each allowed size, captured before the first call.

A graph reads and writes memory that is fixed when it is captured. Inputs are copied into it, on
the device, in front of each replay, and the result is copied out behind it. So copies from the
host need not wait for the batch before, and a result is not overwritten by the next batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ...contract.signature import Signature
from .runtime import Graph, Runtime, first_line

log = logging.getLogger("shmbatch.executor")

_WARM_UPS = 3  # before a capture: libraries choose their kernels in the first runs


class Graphs:
    """Calls a function through its graphs; where there is none, as it is.

    Args:
        function: takes and returns tensors of an allowed size.
        stream: on which it runs.
        address: of the function, for messages.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Signature,
        runtime: Runtime,
        stream: Any,
        address: str,
    ) -> None:
        self._function = function
        self._parameters = signature.parameters
        self._runtime = runtime
        self._stream = stream
        self._address = address
        self._captured: dict[int, tuple[list[Any], Graph, Any]] = {}

    def capture(self, sizes: Sequence[int]) -> None:
        """Capture a graph for each of *sizes*; none, and say why in one line, if one fails."""
        try:
            for size in sizes:
                self._captured[size] = self._capture(size)
        except Exception as error:
            self._captured.clear()
            reason = f"{type(error).__name__}: {first_line(error)}"
            log.warning("%s runs without CUDA graphs: %s", self._address, reason)
            self._runtime.synchronize()

    def __call__(self, *inputs: Any) -> Any:
        captured = self._captured.get(len(inputs[0]))
        if captured is None:
            return self._function(*inputs)
        fixed, graph, result = captured
        for to, given in zip(fixed, inputs, strict=True):
            to.copy_(given, non_blocking=True)
        graph.replay()
        return result.clone()

    def _capture(self, size: int) -> tuple[list[Any], Graph, Any]:
        fixed = [
            self._runtime.zeros(column.dtype, (size, *column.shape)) for column in self._parameters
        ]

        def run() -> Any:
            return self._function(*(each.detach() for each in fixed))

        for _ in range(_WARM_UPS):
            run()
        self._runtime.synchronize()
        graph, result = self._runtime.capture(run, self._stream)
        if not self._runtime.is_ours(result):
            raise TypeError(f"it returned a {type(result).__name__}, not a tensor on the device")
        return fixed, graph, result.detach()
