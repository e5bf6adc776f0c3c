"""A function of every kind of value: each checks what it gets, and returns it."""

# ruff: noqa: F722 - jaxtyping reads these strings

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from shmbatch.contract.options import ValueOptions, value_options
from shmbatch.contract.signature import Signature, signature_of

MAX_BYTES = 40


@dataclass
class Order:
    item: str
    count: int


def ints(xs: list[int]) -> list[int]:
    assert all(type(x) is int for x in xs)
    return xs


def floats(xs: list[float]) -> list[float]:
    assert all(type(x) is float for x in xs)
    return xs


def bools(xs: list[bool]) -> list[bool]:
    assert all(type(x) is bool for x in xs)
    return xs


def texts(xs: list[str]) -> list[str]:
    assert all(type(x) is str and len(x) <= MAX_BYTES for x in xs)
    return xs


def blobs(xs: list[bytes]) -> list[bytes]:
    assert all(type(x) is bytes and len(x) <= MAX_BYTES for x in xs)
    return xs


def fixed(xs: Float32[np.ndarray, "batch 2 3"]) -> Float32[np.ndarray, "batch 2 3"]:
    assert xs.shape[1:] == (2, 3)
    return xs


def ragged(xs: Float32[np.ndarray, "batch seq 2"]) -> Float32[np.ndarray, "batch seq 2"]:
    assert all(x.shape[0] <= 5 and x.shape[1:] == (2,) for x in xs)
    return xs


def padded(xs: Float32[np.ndarray, "batch seq 2"]) -> Float32[np.ndarray, "batch seq 2"]:
    rows, lengths = xs
    assert rows.shape[1] <= 5
    assert lengths.min() >= 0
    assert lengths.max() <= rows.shape[1]
    return rows, lengths


def orders(xs: list[Order]) -> list[Order]:
    assert all(type(x) is Order and type(x.count) is int for x in xs)
    return xs


def anything(xs: list[np.ndarray]) -> list[np.ndarray]:
    assert all(isinstance(x, np.ndarray) and x.nbytes <= MAX_BYTES for x in xs)
    return xs


SEQ = value_options(max_lengths={"seq": 5})
KINDS: dict[str, tuple[Callable[..., Any], ValueOptions, Any]] = {
    "int": (ints, value_options(), 5),
    "float": (floats, value_options(), 0.5),
    "bool": (bools, value_options(), True),
    "str": (texts, value_options(MAX_BYTES), "grün"),
    "bytes": (blobs, value_options(MAX_BYTES), b"\0blob"),
    "array": (fixed, value_options(), np.arange(6, dtype=np.float32).reshape(2, 3)),
    "ragged": (ragged, SEQ, np.ones((3, 2), np.float32)),
    "padded": (
        padded,
        value_options(max_lengths={"seq": 5}, ragged="pad"),
        np.ones((3, 2), np.float32),
    ),
    "msgpack": (orders, value_options(MAX_BYTES), Order("tea", 3)),
    "ndarray": (anything, value_options(MAX_BYTES), np.arange(4)),
}


@cache
def signature(kind: str) -> Signature:
    function, options, _ = KINDS[kind]
    return signature_of(function, f"hostile.{kind}", options)
