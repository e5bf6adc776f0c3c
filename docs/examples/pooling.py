"""Averages the word vectors of sentences of any length.

Its function is property-tested in docs/tutorial-testing.md.
"""

# ruff: noqa: F722 - jaxtyping reads these strings

import numpy as np
from jaxtyping import Float32

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=2, max_lengths={"words": 16}, ragged="pad")
def pool(sentences: Float32[np.ndarray, "batch words 3"]) -> Float32[np.ndarray, "batch 3"]:
    rows, lengths = sentences
    return rows.sum(axis=1) / lengths[:, None].astype(np.float32)
