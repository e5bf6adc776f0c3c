"""Ray Serve: a replica with ``@serve.batch``, called through a deployment's handle.

Follows "Dynamic Request Batching" of its documentation, and its pages on high throughput, which
set RAY_SERVE_THROUGHPUT_OPTIMIZED: calls then travel over gRPC and not through Ray's tasks. A
producer is a Ray driver of its own that is connected to the local cluster; it calls as the page
has it, ``await handle.remote(x)``, as many at a time as may be in flight. The deployment's limit
on requests (`max_ongoing_requests`, 5 by default) is beyond any load.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._crew import Crew, Cue
from benchmarks._load import Load, drive_async
from benchmarks._works import Array, Work
from benchmarks.rivals._serving import START_S

APP = "work"


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray leaves one in the home directory
        }
        import ray
        from ray import serve

        context = ray.init(
            include_dashboard=False,
            num_cpus=1,  # for the replica; for each Ray starts a worker in advance
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            batching = deployment(work, load)
            serve.run(batching.bind(work), name=APP, route_prefix=None)
            with Crew() as crew:
                address = context.address_info["address"]
                connected = [Path(folder, f"connected-{i}") for i in range(load.producers)]
                for number in range(load.producers):
                    crew.add(producer, work, load, number, address, connected[number])
                # Each driver takes seconds of CPU time: many, longer than a Crew has patience.
                deadline = time.monotonic() + START_S
                while not all(map(Path.exists, connected)) and time.monotonic() < deadline:
                    time.sleep(0.1)
                return crew.measure(warmup_s, measure_s)
        finally:
            ray.shutdown()


def deployment(work: Work, load: Load) -> Any:
    """Make the deployment, which needs Ray."""
    from ray import serve

    class Batching:
        def __init__(self, work: Work) -> None:
            self.work = work
            work.stacks()

        @serve.batch(  # type: ignore[untyped-decorator]
            max_batch_size=work.max_batch_size, batch_wait_timeout_s=work.wait_ns / 1e9
        )
        async def __call__(self, xs: list[Array]) -> list[Array]:
            results = np.empty((len(xs), *self.work.result_shape), self.work.result_dtype)
            self.work.function(np.stack(xs), results)
            return list(results)

    most = load.producers * load.in_flight
    return serve.deployment(
        max_ongoing_requests=max(100, 2 * most), ray_actor_options={"num_cpus": 1}
    )(Batching)


def producer(
    cue: Cue, work: Work, load: Load, number: int, address: str, connected: Path
) -> bytes:
    """Load the deployment from a driver of its own."""
    import ray
    from ray import serve

    ray.init(address, log_to_driver=False, logging_level="error")
    try:
        handle = serve.get_app_handle(APP)

        async def call(x: Array) -> Array:
            result: Array = await handle.remote(x)
            return result

        async def load_it() -> bytes:
            await call(work.inputs(number)[0])
            connected.touch()
            return await drive_async(cue, work, load, number, call)

        return asyncio.run(load_it())
    finally:
        ray.shutdown()
