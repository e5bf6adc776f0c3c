"""Mosec: an HTTP server in Rust that batches, and a Python process that executes batches.

Follows "Interface", "Concept and FAQs" and "Arguments" of its reference, and the README's
"Performance tuning": one stage, ``max_batch_size`` and ``max_wait_time`` of the work, and
`serialize` and `deserialize` of its own instead of JSON; an input and a result are the bytes of
an array and nothing else, which is less than any of its mixins makes of them.

The worker is forked and not spawned, because its class depends on the work.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._crew import Crew
from benchmarks._load import Load
from benchmarks._works import Array, Work
from benchmarks.rivals._http import free_port, raw_producer
from benchmarks.rivals._serving import serving

TIMEOUT_MS = 60_000  # no load may end in a "408 Request Timeout"


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    address = free_port()
    with serving(__name__, work, address), Crew() as crew:
        for number in range(load.producers):
            crew.add(raw_producer, work, load, number, address, "/inference")
        return crew.measure(warmup_s, measure_s)


def serve(work: Work, address: tuple[str, int]) -> None:
    """Serve until SIGTERM."""
    host, port = address
    os.environ |= {
        "MOSEC_ADDRESS": host,
        "MOSEC_PORT": str(port),
        "MOSEC_PATH": str(Path(tempfile.gettempdir(), f"mosec-{port}")),
        "MOSEC_TIMEOUT": str(TIMEOUT_MS),
        "MOSEC_LOG_LEVEL": "warning",
    }
    from mosec import Server, Worker

    batch, results = work.stacks()

    class Batching(Worker):  # type: ignore[misc]
        def deserialize(self, data: bytes) -> Array:
            return np.frombuffer(data, work.dtype).reshape(work.shape)

        def forward(self, data: Any) -> Any:
            inputs = data if work.max_batch_size > 1 else [data]
            count = len(inputs)
            np.stack(inputs, out=batch[:count])
            work.function(batch[:count], results[:count])
            return results[:count] if work.max_batch_size > 1 else results[0]

        def serialize(self, data: Array) -> bytes:
            return data.tobytes()

    server = Server()
    server.append_worker(
        Batching,
        max_batch_size=work.max_batch_size,
        max_wait_time=work.wait_ns // 1_000_000,
        start_method="fork",
    )
    server.run()
