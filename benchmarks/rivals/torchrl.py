"""TorchRL's InferenceServer in a process of its own, over each of its process transports.

Follows "Inference Server" of its reference: ProcessInferenceServer with a policy factory, clients
that are made before the actors are spawned, ``max_batch_size`` of the work; `timeout` is the
work's wait where it has one, with `min_batch_size` the whole batch, as else it would not wait.

slots   ProcessSlotTransport: a slot in shared memory for each client, and one call in flight for
        each client, so that a producer has as many clients as calls in flight
shared  SharedMemoryTransport: slots in shared memory, their numbers in multiprocessing queues
queues  MPTransport: whole TensorDicts in multiprocessing queues
"""

from __future__ import annotations

import queue
from collections import deque
from functools import partial
from typing import Any

import numpy as np

from benchmarks._crew import CONTEXT, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

PRELOAD = ["tensordict", "torchrl.modules.inference_server"]
IDLE_S = 0.01  # the server's own default for how often it looks whether it is to end


def measure(
    work: Work, load: Load, warmup_s: float, measure_s: float, transport: str
) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    import torch
    from tensordict import TensorDict
    from torchrl.modules import inference_server

    request = TensorDict({"x": torch.from_numpy(np.zeros(work.shape, work.dtype))})
    response = TensorDict({"y": torch.from_numpy(np.zeros(work.result_shape, work.result_dtype))})
    slots = load.producers * load.in_flight
    if transport == "slots":
        way = inference_server.ProcessSlotTransport(
            request, response, num_slots=slots, ctx=CONTEXT
        )
    elif transport == "shared":
        way = inference_server.SharedMemoryTransport(
            request, response, num_slots=slots, ctx=CONTEXT
        )
    else:
        way = inference_server.MPTransport(CONTEXT)
    own = load.in_flight if transport == "slots" else 1  # clients of one producer
    clients = [[way.client() for _ in range(own)] for _ in range(load.producers)]
    server = inference_server.ProcessInferenceServer(
        policy_factory=partial(policy, work),
        transport=way,
        max_batch_size=work.max_batch_size,
        min_batch_size=work.max_batch_size if work.wait_ns else 1,
        timeout=work.wait_ns / 1e9 or IDLE_S,
        policy_version_key=None,
        mp_context=CONTEXT,
    )
    # Each import takes seconds of CPU time, and there may be 64 producers.
    with server, Crew(PRELOAD) as crew:
        for number in range(load.producers):
            crew.add(producer, work, load, number, clients[number])
        return crew.measure(warmup_s, measure_s)


def policy(work: Work) -> Any:
    """Make what the server executes; its second column is the result."""
    import torch
    from tensordict.nn import TensorDictModule

    torch.set_num_threads(1)
    work.stacks()

    class Function(torch.nn.Module):  # type: ignore[misc]
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            results = np.empty((len(batch), *work.result_shape), work.result_dtype)
            work.function(batch.numpy(), results)
            return torch.from_numpy(results)

    return TensorDictModule(Function(), in_keys=["x"], out_keys=["y"])


def producer(cue: Cue, work: Work, load: Load, number: int, clients: list[Any]) -> bytes:
    """Load the server; the clients take turns."""
    import torch
    from tensordict import TensorDict

    torch.set_num_threads(1)
    calls: deque[Any] = deque()
    made = 0

    def submit(x: Array) -> None:
        nonlocal made
        calls.append(clients[made % len(clients)].submit(TensorDict({"x": torch.from_numpy(x)})))
        made += 1

    def collect(timeout_s: float | None) -> tuple[Array, ...]:
        try:
            result = calls[0].result(timeout_s)
        except queue.Empty:
            return ()
        calls.popleft()
        return (result["y"].numpy(),)

    return drive(cue, work, load, number, submit, collect)
