# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""Several processes have handwritten digits classified by one model, image by image.

    shmbatch run docs/examples/digits.py

The executor trains a small neural network on scikit-learn's 1,797 scanned digits when it is first
called. Producer processes then send it held-out images, one at a time, each waiting for its
answer. Done twice: in batches, and with batches of one. Needs torch, jaxtyping and scikit-learn.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

import shmbatch

PRODUCERS = 4
ROUNDS = 20  # how often a producer sends each of its images
ACCURACY = 0.95
TOLERANCE = 1e-4  # largest difference of a logit, which are of the size of 10
SEED = 20

torch.set_num_threads(1)  # the processes share the CPUs; a thread each is plenty
app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=PRODUCERS, wait_ms=1)
def classify(images: Float32[Tensor, "batch 64"]) -> Float32[Tensor, "batch 10"]:
    return logits(images)


@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def classify_alone(images: Float32[Tensor, "batch 64"]) -> Float32[Tensor, "batch 10"]:
    return logits(images)


def logits(images: Tensor) -> Tensor:
    """Apply the model; the first call in a process trains it."""
    network = model()
    with torch.inference_mode():
        return network(images)


@functools.cache
def model() -> nn.Module:
    """Train the model, the same one in every process: the seed is fixed."""
    train, _ = digits()
    inputs, targets = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = nn.Sequential(
            nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )
        optimizer = torch.optim.Adam(network.parameters())
        for _ in range(10):
            for rows in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    return network.eval()


class Digits(NamedTuple):
    images: NDArray[np.float32]  # 64 pixels each, 0 to 1
    labels: NDArray[np.int64]


@functools.cache
def digits() -> tuple[Digits, Digits]:
    """Return those to train on and those held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(SEED).permutation(len(images))
    train, held_out = order[:-360], order[-360:]
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


# ---- the measurement -----------------------------------------------------------------------


def produce(images: NDArray[np.float32], parent: Connection) -> None:
    """Be a producer: classify *images* one at a time, first batched, then alone."""
    answers = np.empty((ROUNDS, len(images), 10), np.float32)
    seconds = np.empty((ROUNDS, len(images)))
    for function in (classify, classify_alone):
        function.remote(images[0])  # connects, so that this is not measured
        parent.send("ready")
        parent.recv()
        began = time.monotonic()  # the same clock in all processes
        for turn in range(ROUNDS):
            for i, image in enumerate(images):
                before = time.perf_counter()
                answers[turn, i] = function.remote(image)
                seconds[turn, i] = time.perf_counter() - before
        parent.send((answers, seconds, began, time.monotonic()))


@contextmanager
def producers(shares: list[NDArray[np.float32]]) -> Iterator[list[Connection]]:
    """Start a producer for each share of the images; yield the parent's ends of their pipes."""
    spawn = multiprocessing.get_context("spawn")  # a child that has nothing but what it imports
    ours, processes = [], []
    for share in shares:
        here, there = spawn.Pipe()
        process = spawn.Process(target=produce, args=(share, there), daemon=True)
        process.start()
        there.close()  # so that a dead producer is an EOFError here
        ours.append(here)
        processes.append(process)
    yield ours
    for process in processes:
        process.join()


@dataclass(frozen=True)
class Measured:
    """What all producers together saw of one function."""

    accuracy: float  # of the worst round
    difference: float  # largest one from the reference, of any logit
    calls_per_s: float
    p50_us: float
    p99_us: float
    batch_sizes: dict[int, int]


def measure(name: str, pipes: list[Connection], reference: NDArray[np.float32]) -> Measured:
    """Let the producers classify the held-out images, and gather what they report."""
    for pipe in pipes:
        pipe.recv()  # ready
    before = batch_sizes(name)
    for pipe in pipes:
        pipe.send("go")
    reports = [pipe.recv() for pipe in pipes]
    sizes = {size: n - before.get(size, 0) for size, n in batch_sizes(name).items()}

    labels = digits()[1].labels
    answers = np.empty((ROUNDS, len(labels), 10), np.float32)
    for first, (part, *_) in enumerate(reports):
        answers[:, first::PRODUCERS] = part
    _, seconds, began, ended = zip(*reports, strict=True)
    p50, p99 = np.percentile(np.concatenate(seconds, axis=None) * 1e6, [50, 99])
    return Measured(
        accuracy=float((answers.argmax(-1) == labels).mean(axis=1).min()),
        difference=float(np.abs(answers - reference).max()),
        calls_per_s=ROUNDS * len(labels) / (max(ended) - min(began)),
        p50_us=float(p50),
        p99_us=float(p99),
        batch_sizes={size: n for size, n in sizes.items() if n},
    )


def batch_sizes(name: str) -> dict[int, int]:
    """Ask the executor how many batches of each size it has run."""
    counted = shmbatch.statistics(app.name)["functions"][name]["batch_sizes"]
    return {int(size): n for size, n in counted.items()}


def report(batched: Measured, alone: Measured) -> None:
    """Print both side by side."""
    print(f"{'max_batch_size':<28}{PRODUCERS:>12}{1:>12}")
    for label, text in (
        ("accuracy", "{0.accuracy:.4f}"),
        ("difference from unbatched", "{0.difference:.1e}"),
        ("calls per second", "{0.calls_per_s:,.0f}"),
        ("latency p50, us", "{0.p50_us:,.0f}"),
        ("latency p99, us", "{0.p99_us:,.0f}"),
    ):
        print(f"{label:<28}{text.format(batched):>12}{text.format(alone):>12}")
    for size in sorted(batched.batch_sizes | alone.batch_sizes):
        columns = [each.batch_sizes.get(size, 0) for each in (batched, alone)]
        print(f"{f'batches of {size}':<28}{columns[0]:>12,}{columns[1]:>12,}")


@app.local_entrypoint()
def main() -> None:
    images = digits()[1].images
    warmup = classify.spawn(images[0])  # the executor trains its model, and meanwhile ...
    one_by_one = [logits(torch.from_numpy(image[None])) for image in images]  # ... so do we
    reference = torch.cat(one_by_one).numpy()
    warmup.get()

    with producers([images[first::PRODUCERS] for first in range(PRODUCERS)]) as pipes:
        batched = measure("classify", pipes, reference)
        alone = measure("classify_alone", pipes, reference)
    print(f"{PRODUCERS} producers, {ROUNDS * len(images)} calls with one held-out image each\n")
    report(batched, alone)

    accuracy = min(batched.accuracy, alone.accuracy)
    difference = max(batched.difference, alone.difference)
    print(f"\naccuracy {accuracy:.4f}, must be over {ACCURACY}")
    print(f"results within {difference:.1e} of the unbatched model's, must be {TOLERANCE:.0e}")
    if not (accuracy > ACCURACY and difference <= TOLERANCE):
        sys.exit("error: a check failed")
