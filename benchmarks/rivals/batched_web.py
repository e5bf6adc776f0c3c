"""mixedbread's `batched` behind FastAPI and uvicorn: one process, one event loop.

Follows the README's "Asyncio Implementation" and the notebook examples/fastapi.ipynb:
``batched.aio.dynamically`` around the function, awaited by an endpoint; ``batch_size`` and
``timeout_ms`` of the work. uvicorn runs as its page "Deployment" has it on one machine, on a UNIX
socket, and with uvloop and httptools, which it takes when they are there. The notebook's endpoint
takes JSON; here it takes and gives the bytes of an array, as Starlette's Request and Response do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._crew import Crew
from benchmarks._load import Load
from benchmarks._works import Array, Work
from benchmarks.rivals._http import raw_producer
from benchmarks.rivals._serving import serving


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder, "socket"))
        with serving(__name__, work, address), Crew() as crew:
            for number in range(load.producers):
                crew.add(raw_producer, work, load, number, address, "/")
            return crew.measure(warmup_s, measure_s)


def serve(work: Work, address: str) -> None:
    """Serve until SIGTERM."""
    import batched
    import uvicorn
    from fastapi import FastAPI, Request, Response

    batch, results = work.stacks()
    app = FastAPI()

    async def execute(inputs: list[Array]) -> list[Array]:
        count = len(inputs)
        np.stack(inputs, out=batch[:count])
        work.function(batch[:count], results[:count])
        return list(results[:count].copy())

    call = batched.aio.dynamically(
        execute, batch_size=work.max_batch_size, timeout_ms=work.wait_ns / 1e6
    )

    async def endpoint(request: Any) -> Any:
        body = await request.body()
        result = await call(np.frombuffer(body, work.dtype).reshape(work.shape))
        return Response(result.tobytes(), media_type="application/octet-stream")

    # FastAPI looks at the annotation itself, which is a string in this file.
    endpoint.__annotations__ |= {"request": Request, "return": Response}
    app.post("/")(endpoint)
    uvicorn.run(app, uds=address, log_level="warning", access_log=False)
