"""LitServe: a process with FastAPI and uvicorn, and one that batches and executes.

Follows "Batching", "LitAPI" and "LitServer" of its documentation, and the server of its own
performance test: ``max_batch_size`` and ``batch_timeout`` of the work, ``fast_queue=True``, one
API server for one worker. Its examples send numbers as JSON and images as base64 in JSON; here a
request and a response are the bytes of an array, which FastAPI hands through and which is faster.
"""

from __future__ import annotations

import functools
import signal
from typing import Annotated, Any

import numpy as np

from benchmarks._crew import Crew
from benchmarks._load import Load
from benchmarks._works import Array, Work
from benchmarks.rivals._http import free_port, raw_producer
from benchmarks.rivals._serving import serving


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    address = free_port()
    with serving(__name__, work, address, signal.SIGINT), Crew() as crew:
        for number in range(load.producers):
            crew.add(raw_producer, work, load, number, address, "/predict")
        return crew.measure(warmup_s, measure_s)


def serve(work: Work, address: tuple[str, int]) -> None:
    """Serve until SIGINT."""
    import litserve

    api = api_class()(max_batch_size=work.max_batch_size, batch_timeout=work.wait_ns / 1e9)
    api.work = work
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True, timeout=False)
    host, port = address
    server.run(host=host, port=port, log_level="warning", generate_client_file=False)


@functools.cache
def api_class() -> Any:
    """Make the class, which needs LitServe; its worker, a fresh process, imports `Batching`."""
    import litserve
    from fastapi import Body, Response

    class Batching(litserve.LitAPI):  # type: ignore[misc]
        work: Work

        def setup(self, device: str) -> None:
            self.stacks = self.work.stacks()

        def decode_request(self, request: bytes) -> Array:
            return np.frombuffer(request, self.work.dtype).reshape(self.work.shape)

        # FastAPI looks at the annotation itself, which is a string in this file.
        decode_request.__annotations__["request"] = Annotated[bytes, Body()]

        def batch(self, inputs: list[Array]) -> Array:
            return np.stack(inputs, out=self.stacks[0][: len(inputs)])

        def predict(self, inputs: Array) -> Array:
            single = self.work.max_batch_size == 1  # then LitServe makes no batches
            batch = inputs[None] if single else inputs
            results = self.stacks[1][: len(batch)]
            self.work.function(batch, results)
            return results[0] if single else results

        def unbatch(self, output: Array) -> list[Array]:
            return list(output)

        def encode_response(self, output: Array) -> Any:
            return Response(output.tobytes(), media_type="application/octet-stream")

    Batching.__qualname__ = "Batching"
    return Batching


def __getattr__(name: str) -> Any:
    if name == "Batching":
        return api_class()
    raise AttributeError(name)
