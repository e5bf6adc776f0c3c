"""The functions that the GPU benchmarks serve, and one that looks into the executor for them.

The executor imports this file by its path, as a module named `functions`: it imports nothing of
this package. On the CPU everything works too, so that the benchmarks can be rehearsed there.

A function that is to take so long sleeps on the device (`torch.cuda._sleep`): that leaves its
memory to the copies, and is as long for whoever calls it. How many cycles a microsecond has, the
environment says (CYCLES), since the clock is the device's.
"""

import collections
import itertools
import json
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16, Float16, Float32, Float64
from torch import Tensor

import shmbatch

app = shmbatch.App("gpu")

CYCLES = "BENCH_GPU_CYCLES_PER_US"
SLEEPS_US = (100, 300, 1000, 3000, 10_000, 20_000)
RESULTS = 16  # numbers in a result
LAYERS = (784, 256, 256, 256, 256, 256, 10)

Rows = Float32[Tensor, "batch 1024"]  # 4 KiB
Images = Float32[Tensor, "batch 3 224 224"]  # 602 KB
Results = Float32[Tensor, "batch 16"]


# ---- what functions do ----

_marks: dict[str, collections.deque[tuple[Any, Any]]] = {}  # of those that are watched
_runs: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])  # batches, calls
_profiles: list[Any] = []


class _Clock:
    """A CUDA event's stand-in on the CPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "_Clock") -> float:
        return 1e3 * (other.at - self.at)


def _event(on: Tensor) -> Any:
    return torch.cuda.Event(enable_timing=True) if on.is_cuda else _Clock()


@cache
def _cycles_per_us() -> float:
    return float(os.environ[CYCLES])


def _sleep(microseconds: int, on: Tensor) -> None:
    if on.is_cuda:
        torch.cuda._sleep(int(microseconds * _cycles_per_us()))
    else:
        time.sleep(microseconds / 1e6)


@cache
def _square(device: torch.device) -> Tensor:
    size = 4096 if device.type == "cuda" else 64
    return torch.randn(size, size, device=device).to(torch.bfloat16)


def _multiply(microseconds: int, on: Tensor) -> None:
    """Multiply matrices for about so long; a product takes some 190 us on an H100."""
    square = _square(on.device)
    for _ in range(max(1, round(microseconds / 190))):
        torch.mm(square, square)


def _answers(xs: Tensor) -> Tensor:
    """Return what every function here but the networks gives back; exact in float32."""
    return xs.reshape(len(xs), -1)[:, :RESULTS] * 2 + 1


def _working(name: str, xs: Tensor, work: Callable[[int, Tensor], None], us: int) -> Tensor:
    marks = _marks.get(name)
    if marks is None:
        work(us, xs)
        return _answers(xs)
    begin, end = _event(xs), _event(xs)
    begin.record()
    work(us, xs)
    results = _answers(xs)
    end.record()
    marks.append((begin, end))
    return results


def _serve(
    name: str, rows: Any, function: Callable[..., Any], results: Any, **options: Any
) -> None:
    """Serve a function under a name of its own."""

    def served(xs):  # type: ignore[no-untyped-def] # annotated below
        return function(xs)

    served.__name__ = served.__qualname__ = name
    served.__annotations__ = {"xs": rows, "return": results}
    globals()[name] = app.function()(shmbatch.batched(**options)(served))


for _us in SLEEPS_US:
    _serve(
        f"sleep_{_us}",
        Rows,
        lambda xs, us=_us: _working(f"sleep_{us}", xs, _sleep, us),
        Results,
        max_batch_size=32,
        wait_ms=5,
    )
_serve(
    "multiply_1000",
    Rows,
    lambda xs: _working("multiply_1000", xs, _multiply, 1000),
    Results,
    max_batch_size=32,
    wait_ms=5,
)
_serve(
    "image_1000",
    Images,
    lambda xs: _working("image_1000", xs, _sleep, 1000),
    Results,
    max_batch_size=16,
    wait_ms=5,
)
for _name, _direct in (("image_gathered", False), ("image_direct", True)):
    _serve(_name, Images, _answers, Results, max_batch_size=16, wait_ms=0, direct_dma=_direct)
_serve("lone", Rows, _answers, Results, max_batch_size=1, wait_ms=0)


def _counted(name: str, xs: Tensor) -> Tensor:
    run = _runs[name]
    run[0] += 1
    run[1] += len(xs)
    return xs


for _size in (1, 32):
    _serve(
        f"same_{_size}",
        Results,
        lambda xs, name=f"same_{_size}": _counted(name, xs),
        Results,
        max_batch_size=_size,
        wait_ms=5,
    )


# ---- networks ----


@cache
def weights(dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """Return the matrices of the network, the same everywhere, rounded to *dtype*."""
    random = torch.Generator().manual_seed(20)
    return [
        (torch.randn(a, b, generator=random, dtype=torch.float64) * (2 / a) ** 0.5)
        .to(dtype)
        .to(device)
        for a, b in itertools.pairwise(LAYERS)
    ]


def network(xs: Tensor, layers: list[Tensor]) -> Tensor:
    """A small MLP: six products, with a ReLU behind each but the last."""
    *inner, last = layers
    with torch.inference_mode():
        for layer in inner:
            xs = torch.relu(xs @ layer)
        return xs @ last


def _network(xs: Tensor) -> Tensor:
    return network(xs, weights(xs.dtype, xs.device))


DTYPES = {"float64": Float64, "float32": Float32, "float16": Float16, "bfloat16": BFloat16}
for _name, _annotation in DTYPES.items():
    _serve(
        f"network_{_name}",
        _annotation[Tensor, "batch 784"],
        _network,
        _annotation[Tensor, "batch 10"],
        max_batch_size=32,
        wait_ms=1,
    )
for _name, _graphs in (("eager", False), ("graphs", True)):
    _serve(
        _name,
        Float32[Tensor, "batch 784"],
        _network,
        Float32[Tensor, "batch 10"],
        max_batch_size=32,
        wait_ms=0,
        batch_sizes=(1, 8, 32),
        cuda_graphs=_graphs,
    )


# ---- what the benchmarks ask the executor ----


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0, max_bytes=1 << 20, slots=2)
def ask(questions: list[str]) -> list[str]:
    """Answer one question, between batches, in JSON.

    ``cpu``             CPU time of this process, and batches and calls of the `same_...`
    ``watch NAME``      from now on note when batches of a function begin and end on the device
    ``watched NAME``    stop that; durations of the batches and of the gaps between, milliseconds
    ``profile``         begin a profile
    ``profiled PATH``   end it, and write it there for Chrome's trace viewer
    """
    verb, _, rest = questions[0].partition(" ")
    return [json.dumps(_ANSWERS[verb](rest))]


def _cpu(rest: str) -> Any:
    return {"cpu_ns": time.process_time_ns(), "runs": _runs}


def _watch(name: str) -> None:
    _marks[name] = collections.deque()


def _watched(name: str) -> Any:
    marks = list(_marks.pop(name))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return {
        "busy_ms": [begin.elapsed_time(end) for begin, end in marks],
        "idle_ms": [a[1].elapsed_time(b[0]) for a, b in itertools.pairwise(marks)],
    }


def _profile(rest: str) -> None:
    kinds = torch.profiler.ProfilerActivity
    kind = kinds.CUDA if torch.cuda.is_initialized() else kinds.CPU
    _profiles.append(torch.profiler.profile(activities=[kind]))
    _profiles[-1].start()


def _profiled(path: str) -> None:
    profile = _profiles.pop()
    profile.stop()
    profile.export_chrome_trace(path)


_ANSWERS: dict[str, Callable[[str], Any]] = {
    "cpu": _cpu,
    "watch": _watch,
    "watched": _watched,
    "profile": _profile,
    "profiled": _profiled,
}
