"""NVIDIA's Triton Inference Server with PyTriton: C++ that batches, and Python that executes.

Follows PyTriton's "Quick Start", "Binding Model to Triton" (``@batch``, DynamicBatcher with the
work's wait as ``max_queue_delay_microseconds``) and "Triton clients", which sends whoever wants
more control to tritonclient: its gRPC client with one stream per producer, as its example
simple_grpc_sequence_stream_infer_client.py has it.

`shared`: inputs and results are in shared memory that the producer has registered with the
server, as in its example simple_grpc_shm_client.py and "Shared-Memory Extension" of Triton's
protocol; else they travel in the messages.
"""

from __future__ import annotations

import os
import signal
import sysconfig
import tempfile
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from benchmarks._crew import Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work
from benchmarks.rivals._http import free_port
from benchmarks.rivals._serving import serving

MODEL = "work"


def measure(
    work: Work, load: Load, warmup_s: float, measure_s: float, shared: bool
) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    address, http = free_port(), free_port()

    def ready() -> bool:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        try:
            with InferenceServerClient(url_of(address)) as client:
                return bool(client.is_server_ready() and client.is_model_ready(MODEL))
        except InferenceServerException:
            return False

    with serving(__name__, work, address, signal.SIGINT, ready, http=http), Crew() as crew:
        for number in range(load.producers):
            crew.add(producer, work, load, number, address, shared)
        return crew.measure(warmup_s, measure_s)


def serve(work: Work, address: tuple[str, int], http: tuple[str, int]) -> None:
    """Serve until SIGINT."""
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

    # "Setting Up LD_LIBRARY_PATH": Triton's stub is to load this Python's library and no other.
    paths = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    work.stacks()

    @batch  # type: ignore[untyped-decorator]
    def execute(x: Array) -> list[Array]:
        results = np.empty((len(x), *work.result_shape), work.result_dtype)
        work.function(x, results)
        return [results]

    config = TritonConfig(
        grpc_address=address[0],
        grpc_port=address[1],
        http_address=http[0],
        http_port=http[1],
        allow_metrics=False,
    )
    # Producers may register shared memory without a token.
    security = TritonSecurityConfig(restricted_endpoints=[])
    folder = Path(tempfile.mkdtemp(), "workspace")  # for what else would be in the home directory
    with Triton(config=config, security_config=security, workspace=folder) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=execute,
            inputs=[Tensor(name="x", dtype=np.dtype(work.dtype).type, shape=work.shape)],
            outputs=[
                Tensor(name="y", dtype=np.dtype(work.result_dtype).type, shape=work.result_shape)
            ],
            config=ModelConfig(
                max_batch_size=work.max_batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=work.wait_ns // 1000),
            ),
        )
        triton.serve()


def producer(
    cue: Cue,
    work: Work,
    load: Load,
    number: int,
    address: tuple[str, int],
    shared: bool,
) -> bytes:
    """Load the server through one stream."""
    from tritonclient.grpc import InferenceServerClient

    with ExitStack() as opened:
        client = opened.enter_context(InferenceServerClient(url_of(address)))
        make: Any = SharedPlaces if shared else Messages
        places: Messages | SharedPlaces = opened.enter_context(
            make(client, work, load.in_flight, number)
        )
        answered: SimpleQueue[Any] = SimpleQueue()
        opened.callback(client.stop_stream)
        client.start_stream(lambda result, error: answered.put((result, error)))
        arrived: dict[int, Any] = {}
        calls: deque[int] = deque()
        made = 0

        def submit(x: Array) -> None:
            nonlocal made
            place = made % load.in_flight
            made += 1
            calls.append(place)
            inputs, outputs = places.put(place, x)
            client.async_stream_infer(MODEL, inputs, outputs=outputs, request_id=str(place))

        def collect(timeout_s: float | None) -> tuple[Array, ...]:
            while calls[0] not in arrived:
                try:
                    result, error = answered.get(timeout=timeout_s)
                except Empty:
                    return ()
                if error is not None:
                    raise error
                arrived[int(result.get_response().id)] = result
            place = calls.popleft()
            return (places.get(place, arrived.pop(place)),)

        submit(work.inputs(number)[0])
        collect(None)
        return drive(cue, work, load, number, submit, collect)


def url_of(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


class Messages:
    """Inputs and results travel in the messages."""

    def __init__(self, client: Any, work: Work, in_flight: int, number: int) -> None:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import np_to_triton_dtype

        kind = np_to_triton_dtype(np.dtype(work.dtype))
        self._inputs = [InferInput("x", [1, *work.shape], kind) for _ in range(in_flight)]
        self._outputs = [InferRequestedOutput("y")]

    def __enter__(self) -> Messages:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, place: int, x: Array) -> tuple[list[Any], list[Any]]:
        self._inputs[place].set_data_from_numpy(x[None])
        return [self._inputs[place]], self._outputs

    def get(self, place: int, result: Any) -> Array:
        answer: Array = result.as_numpy("y")[0]
        return answer


class SharedPlaces:
    """Inputs and results are in two regions, with a row for each call in flight."""

    def __init__(self, client: Any, work: Work, in_flight: int, number: int) -> None:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import np_to_triton_dtype, shared_memory

        self._opened = ExitStack()
        kind = np_to_triton_dtype(np.dtype(work.dtype))
        regions = []
        # Whoever asked for the measurement removes names that begin so.
        folder = Path(tempfile.gettempdir()).name
        names = [f"{folder}-{os.getpid()}-{number}-{column}" for column in "xy"]
        for name, nbytes in zip(names, (work.row_nbytes, work.result_nbytes), strict=True):
            region = shared_memory.create_shared_memory_region(name, name, nbytes * in_flight)
            self._opened.callback(shared_memory.destroy_shared_memory_region, region)
            # Not unregistered: right after a result the server may still refuse, and it ends.
            client.register_system_shared_memory(name, name, nbytes * in_flight)
            regions.append(region)
        self._calls = []
        for place in range(in_flight):
            given = InferInput("x", [1, *work.shape], kind)
            given.set_shared_memory(names[0], work.row_nbytes, place * work.row_nbytes)
            wanted = InferRequestedOutput("y")
            wanted.set_shared_memory(names[1], work.result_nbytes, place * work.result_nbytes)
            self._calls.append(([given], [wanted]))
        view = shared_memory.get_contents_as_numpy
        self._x = view(regions[0], np.dtype(work.dtype), (in_flight, *work.shape))
        self._y = view(regions[1], np.dtype(work.result_dtype), (in_flight, *work.result_shape))

    def __enter__(self) -> SharedPlaces:
        return self

    def __exit__(self, *_: object) -> None:
        del self._x, self._y
        self._opened.close()

    def put(self, place: int, x: Array) -> tuple[list[Any], list[Any]]:
        self._x[place] = x
        return self._calls[place]

    def get(self, place: int, result: Any) -> Array:
        answer: Array = self._y[place]
        return answer
