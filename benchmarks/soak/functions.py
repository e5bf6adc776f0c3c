# ruff: noqa: F722 - jaxtyping's shapes are strings that are no Python expressions
"""The functions that the soak calls; each result carries the checksum of its input.

The executor imports this file by its path, as a module named `functions`: it imports nothing of
this package. How an input is laid out is in calls.py.
"""

import asyncio
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

import shmbatch

app = shmbatch.App("soak")

_HEAD = struct.Struct("<QIB")  # place in the file of executions, number, whether it is bad
_NOWHERE = 2**64 - 1
_executions = os.open(Path(os.environ["SOAK_FOLDER"], "executions"), os.O_RDWR)


def _note(place: int) -> None:
    """Count one execution of a call, so that a killed executor has counted it too."""
    if place == _NOWHERE:
        return
    count = os.pread(_executions, 1, place) or b"\0"
    os.pwrite(_executions, bytes([min(count[0] + 1, 255)]), place)


def _number(payload: bytes) -> int:
    return int(_HEAD.unpack_from(payload)[1])


def _is_bad(payload: bytes) -> bool:
    return bool(_HEAD.unpack_from(payload)[2])


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1)
def once(
    xs: UInt8[np.ndarray, "batch 256"],
) -> Int64[np.ndarray, "batch 2"]:
    """Note that each call was executed, which may be once; in columns of fixed width."""
    results = np.empty((len(xs), 2), np.int64)
    for at, x in enumerate(xs):
        payload = x.tobytes()
        _note(_HEAD.unpack_from(payload)[0])
        results[at] = zlib.crc32(payload), _number(payload)
    return results


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=2, max_bytes=8192)
async def awaited(payloads: list[bytes]) -> list[int]:
    """While it waits, other functions run."""
    await asyncio.sleep(0.001)
    return [zlib.crc32(payload) for payload in payloads]


@app.function()
@shmbatch.batched(max_batch_size=32, wait_ms=1, max_bytes=8192, idempotent=True)
def again(payloads: list[bytes]) -> list[int]:
    """May be executed anew, so that no death of an executor is seen."""
    return [zlib.crc32(payload) for payload in payloads]


@app.function()
@shmbatch.batched(max_batch_size=16, wait_ms=1, max_bytes=8192)
def frank(payloads: list[bytes]) -> list[dict[str, int]]:
    """Give a bad input an exception of its own."""
    return [
        ValueError(_number(each)) if _is_bad(each) else {"crc": zlib.crc32(each)}  # type: ignore[misc]
        for each in payloads
    ]


@app.function()
@shmbatch.batched(
    max_batch_size=16, wait_ms=1, max_bytes=8192, idempotent=True, on_error="isolate"
)
def strict(payloads: list[bytes]) -> list[int]:
    """Fail over a bad input, whoever else is in the batch."""
    for payload in payloads:
        if _is_bad(payload):
            raise ValueError(_number(payload))
    return [zlib.crc32(payload) for payload in payloads]


@app.function()
@shmbatch.batched(max_batch_size=8, wait_ms=5, slots=16, max_bytes=8192)
async def slow(payloads: list[bytes]) -> list[int]:
    """Take so long that slots run out and limits pass."""
    await asyncio.sleep(0.02)
    return [zlib.crc32(payload) for payload in payloads]
