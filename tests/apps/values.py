"""Functions that give back what they were given, one for each kind of value."""

# ruff: noqa: F722, F821, UP037 - jaxtyping reads these strings
# mypy: ignore-errors

from __future__ import annotations

import datetime
import decimal
import functools
import uuid
from pathlib import Path

import numpy as np
import shapes
from jaxtyping import BFloat16, Float8e4m3fn, Float32, Float64, Int16, Int64
from torch import Tensor

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def ints(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def floats(xs: list[float]) -> list[float]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def bools(xs: list[bool]) -> list[bool]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def arrays(xs: Float32[np.ndarray, "batch 2 3"]) -> Float32[np.ndarray, "batch 2 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def tensors(xs: Float64[Tensor, "batch 2 3"]) -> Float64[Tensor, "batch 2 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def halves(xs: BFloat16[Tensor, "batch 4"]) -> BFloat16[Tensor, "batch 4"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def empties(xs: Float32[np.ndarray, "batch 0 3"]) -> Float32[np.ndarray, "batch 0 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def points(xs: Int64[np.ndarray, "batch"], ys: list[int]) -> Int64[np.ndarray, "batch"]:
    return xs + np.array(ys)


# ---- functions that leave their inputs as they are --------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, read_only=True)
def reads(xs: Float32[np.ndarray, "batch 2 3"]) -> Float32[np.ndarray, "batch 2 3"]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, read_only=True)
def reads_tensors(xs: BFloat16[Tensor, "batch 4"]) -> BFloat16[Tensor, "batch 4"]:
    return xs


KEPT = []


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, read_only=True)
def keeps(xs: Float32[np.ndarray, "batch 1000"], ys: Float32[Tensor, "batch 1000"]) -> list[str]:
    """Keep the inputs; say in which mapping they stand."""
    KEPT.append((xs, ys))
    return [_mapping(xs.ctypes.data) + " " + _mapping(ys.data_ptr())] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def lets_go(xs: list[int]) -> list[list[float]]:
    """Give back what the kept inputs add up to now, and keep them no more."""
    sums = [float(sum(each.sum() for each in column)) for column in zip(*KEPT, strict=True)]
    KEPT.clear()
    return [sums for _ in xs]


def _mapping(address: int) -> str:
    """Say whether the mapping at an address is shared with other processes."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, flags, *_ = line.split()
        first, last = (int(end, 16) for end in where.split("-"))
        if first <= address < last:
            return "shared" if flags.endswith("s") else "private"
    return "none"


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, read_only=True)
def writes(xs: Float32[np.ndarray, "batch 3"]) -> Float32[np.ndarray, "batch 3"]:
    xs[:] = 0
    return xs


# ---- values without one size ------------------------------------------------------------------


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, max_bytes=1000)
def texts(xs: list[str]) -> list[str]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, max_bytes=1000)
def blobs(xs: list[bytes]) -> list[bytes]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, max_bytes=10_000)
def any_arrays(xs: list[np.ndarray]) -> list[np.ndarray]:
    return xs


def _lists_of(name: str, annotation: object, **options: object) -> None:
    """Serve a function of that name which gives back a list of what *annotation* says."""

    def same(xs):
        return xs

    same.__name__ = same.__qualname__ = name
    if annotation is not None:
        same.__annotations__ = {"xs": annotation, "return": annotation}
    batched = shmbatch.batched(max_batch_size=4, wait_ms=0, **options)(same)
    globals()[name] = app.function()(batched)


ragged = functools.partial(_lists_of, max_lengths={"seq": 5, "wide": 4})
_lists_of("rows", Float32[np.ndarray, "batch seq 2"], max_lengths={"seq": 5})
_lists_of("rows_padded", Float32[np.ndarray, "batch seq 2"], max_lengths={"seq": 5}, ragged="pad")
ragged("grids", Int16[np.ndarray, "batch seq 3 wide"])
ragged("grids_padded", Int16[np.ndarray, "batch seq 3 wide"], ragged="pad")
ragged("tensor_rows", Float64[Tensor, "batch seq wide"])
ragged("tensor_rows_padded", Float64[Tensor, "batch seq wide"], ragged="pad")
_lists_of("brains", BFloat16[Tensor, "batch seq 3"], max_lengths={"seq": 5})
_lists_of("brains_padded", BFloat16[Tensor, "batch seq 3"], max_lengths={"seq": 5}, ragged="pad")
_lists_of("eighths", Float8e4m3fn[Tensor, "batch seq"], max_lengths={"seq": 5})
_lists_of("squares", Float32[np.ndarray, "batch n n"], max_lengths={"n": 4})
_lists_of("nothings", Float32[np.ndarray, "batch seq 0"], max_lengths={"seq": 5})

_lists_of("bare", list)
_lists_of("unannotated", None)
_lists_of("items", list[shapes.Item])
_lists_of("orders", list[shapes.Order])
_lists_of("named_points", list[shapes.Point])
_lists_of("options", list[shapes.Options])
_lists_of("colours", list[shapes.Colour])
_lists_of("levels", list[shapes.Level])
_lists_of("drawings", list[shapes.Circle | shapes.Square | None])
_lists_of("boxes", list[shapes.Box[list[int]]])
_lists_of("smalls", list[shapes.Small])
_lists_of("modes", list[shapes.Mode])
_lists_of("moments", list[datetime.datetime | None])
_lists_of("days", list[datetime.date])
_lists_of("spans", list[datetime.timedelta])
_lists_of("decimals", list[decimal.Decimal])
_lists_of("keys", list[uuid.UUID])
_lists_of("tables", list[dict[str, list[tuple[int, str]]]])
_lists_of("sets", list[set[int]])
_lists_of("numbers", list[int | float | None])
_lists_of("pickles", list[object], codec="pickle")
_lists_of("pickled_arrays", Float32[np.ndarray, "batch 3"], codec="pickle", max_bytes=100_000)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0, max_lengths={"seq": 5}, ragged="pad")
def lengths(
    xs: Float32[np.ndarray, "batch seq 2"], ys: Int64[Tensor, "batch seq"]
) -> list[list[int]]:
    rows, counts = xs
    ids, id_counts = ys
    assert rows.shape[1] == ids.shape[1] == max(counts)
    assert all((rows[i, n:] == 0).all() for i, n in enumerate(counts))
    return [[int(a), int(b), *ids.shape] for a, b in zip(counts, id_counts, strict=True)]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=1000)
def pairs(xs: list[shapes.Item], ys: list[int]) -> list[int]:
    return [len(xs)] * len(ys)


_NAMES = [f"x{number}" for number in range(64)]
exec(
    compile(
        f"def many({', '.join(f'{name}: list[int]' for name in _NAMES)}) -> list[list[int]]:\n"
        f"    return [list(call) for call in zip({', '.join(_NAMES)})]",
        __file__,
        "exec",
    )
)
many = app.function()(shmbatch.batched(max_batch_size=4, wait_ms=0)(globals()["many"]))


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def answers(xs: list[int]) -> list[shapes.Item]:
    """Give back items that are none, but for the input 0."""
    bad = [shapes.Item("good", 1.0), {"name": 3, "price": 1.0}, np.zeros(2), 1 << 70, "\ud800"]
    return [bad[x] for x in xs]
