"""BentoML: uvicorn and a dispatcher that batches, in one process; execution in a thread of it.

Follows "Adaptive batching" (``@bentoml.api(batchable=True)`` with a numpy array, and the work's
``max_batch_size``) and "Configurations" (no access log, no metrics). How long a batch waits for
company BentoML learns; the work's wait has no counterpart. `max_latency_ms` is beyond any load,
as calls that take longer are answered "503 Service Unavailable". uvloop and httptools are
installed, which uvicorn then takes.

json    A producer calls the service as clients from outside do, its array as lists in JSON
pickle  As one Service calls another of the same machine ("Run distributed Services"): over a UNIX
        socket, the array as pickle 5 with its bytes beside it; a producer stands where the other
        Service would
"""

from __future__ import annotations

import functools
import os
import pickle
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks._crew import Crew, Cue
from benchmarks._load import Load
from benchmarks._works import Array, Work
from benchmarks.rivals._http import Address, Connections, drive_http, free_port
from benchmarks.rivals._serving import START_S, serving

MAX_LATENCY_MS = 60_000
WORK = "RIVAL_WORK"  # the environment variable with the work, pickled
LENGTHS = re.compile(rb"\r\nbuffer-lengths: *([\d,]+)", re.IGNORECASE)


def measure(work: Work, load: Load, warmup_s: float, measure_s: float, media: str) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        service = "Front" if media == "pickle" else "Batching"
        with serving(__name__, work, port, service=service, folder=folder), Crew() as crew:
            address = inner_socket(folder) if media == "pickle" else port
            for number in range(load.producers):
                crew.add(producer, work, load, number, address, media)
            return crew.measure(warmup_s, measure_s)


def inner_socket(folder: str) -> str:
    """Return the path of the socket over which `Front` calls `Batching`, once that is there."""
    deadline = time.monotonic() + START_S
    while not (found := list(Path(folder).glob("bentoml-uds-*/*.sock"))):
        if time.monotonic() > deadline:
            raise TimeoutError("BentoML made no socket for the inner Service")
        time.sleep(0.05)
    return str(found[0])


def serve(work: Work, address: tuple[str, int], service: str, folder: str) -> None:
    """Serve until SIGTERM."""
    host, port = address
    environment = os.environ | {
        WORK: pickle.dumps(work).hex(),
        "BENTOML_HOME": folder,
        "BENTOML_DO_NOT_TRACK": "true",
        "TMPDIR": folder,
    }
    command = [sys.executable, "-m", "bentoml", "serve", f"{__name__}:{service}"]
    command += ["--host", host, "--port", str(port), "--quiet"]
    os.chdir(folder)
    os.execve(sys.executable, command, environment)


@functools.cache
def services() -> dict[str, Any]:
    """Make the Services, which need BentoML; it imports them from this module by their names."""
    import bentoml
    from bentoml.validators import DType

    work: Work = pickle.loads(bytes.fromhex(os.environ[WORK]))
    configured = bentoml.service(
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        traffic={"timeout": MAX_LATENCY_MS // 1000},
    )

    options: dict[str, Any] = {}
    if work.max_batch_size > 1:  # BentoML wants it so
        options = {"batchable": True, "max_batch_size": work.max_batch_size}
        options |= {"max_latency_ms": MAX_LATENCY_MS}

    class Batching:
        def __init__(self) -> None:
            work.stacks()

        def execute(self, x: Any) -> Any:
            results = np.empty((len(x), *work.result_shape), work.result_dtype)
            work.function(x, results)
            return results

        # BentoML looks at the annotations themselves, which are strings in this file.
        execute.__annotations__ |= {
            "x": Annotated[np.ndarray, DType(work.dtype)],
            "return": Annotated[np.ndarray, DType(work.result_dtype)],
        }
        execute = bentoml.api(**options)(execute)

    batching = configured(Batching)

    class Front:
        inner = bentoml.depends(batching)

        @bentoml.api  # type: ignore[untyped-decorator]
        def live(self) -> int:
            return 1

    return {"Batching": batching, "Front": configured(Front)}


def __getattr__(name: str) -> Any:
    if name in ("Batching", "Front"):
        return services()[name]
    raise AttributeError(name)


def producer(cue: Cue, work: Work, load: Load, number: int, address: Address, media: str) -> bytes:
    """Load the server over connections that stay open."""
    from pydantic_core import from_json, to_json  # with which its own client does so

    media_type = "application/json" if media == "json" else "application/vnd.bentoml+pickle"
    connections = Connections(address, "/execute", media_type)

    def submit_json(x: Array) -> None:
        connections.send((to_json({"x": [x.tolist()]}),))

    def decode_json(head: bytes, body: bytes) -> Array:
        return np.array(from_json(body)[0], work.result_dtype)

    def submit_pickle(x: Array) -> None:
        buffers: list[pickle.PickleBuffer] = []
        start = pickle.dumps({"x": x[None]}, 5, buffer_callback=buffers.append)
        pieces: list[bytes | memoryview] = [start, *(buffer.raw() for buffer in buffers)]
        lengths = ",".join(str(len(piece)) for piece in pieces)
        connections.send(pieces, f"Buffer-Lengths: {lengths}\r\n".encode())

    def decode_pickle(head: bytes, body: bytes) -> Array:
        lengths = LENGTHS.search(head)
        start, *rest = map(int, lengths[1].split(b",")) if lengths else [len(body)]
        whole = memoryview(body)
        buffers = []
        end = start
        for length in rest:
            buffers.append(whole[end : end + length])
            end += length
        answer: Array = pickle.loads(whole[:start], buffers=buffers)[0]
        return answer

    try:
        return drive_http(
            cue,
            work,
            load,
            number,
            connections,
            submit_json if media == "json" else submit_pickle,
            decode_json if media == "json" else decode_pickle,
        )
    finally:
        connections.close()
