"""What CUDA is given for many copies in one call; no CUDA here, so a library takes its place."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from shmbatch.executor.staging.batched import BatchedCopies, _Attributes

Pointers = ctypes.POINTER(ctypes.c_void_p)


class Library:
    """Copies at once what it is told to, as CUDA would in its time."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version = version
        self.status = status
        self.streams: list[int | None] = []

    def cudaRuntimeGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cudaMemcpyBatchAsync(
        self, to: Any, sources: Any, sizes: Any, count: Any, attributes: Any, *rest: Any
    ) -> int:
        index, number, *fail_index, stream = rest
        assert len(fail_index) == (1 if self.version < 13_000 else 0)
        assert (index._obj.value, number.value) == (0, 1)
        described = attributes._obj
        assert (described.source_order, described.flags) == (1, 0)
        self.streams.append(stream.value)
        if self.status == 0:
            for at in range(count.value):
                ctypes.memmove(to[at], sources[at], sizes[at])
        return self.status


@pytest.mark.parametrize("version", [12_080, 12_090, 13_000, 13_010])
def test_every_copy_has_its_addresses_and_its_size(version: int) -> None:
    library = Library(version)
    sources = [torch.full((rows, 3), rows, dtype=torch.float32) for rows in (1, 2, 0, 4)]
    stack = torch.zeros(9, 3)
    pairs, at = [], 1
    for source in sources:
        pairs.append((stack[at : at + len(source)], source))
        at += len(source)

    assert BatchedCopies(library).start(pairs, 4711) == 0

    assert stack[:, 0].tolist() == [0, 1, 2, 2, 4, 4, 4, 4, 0]
    assert library.streams == [4711]


def test_the_status_is_cudas() -> None:
    pairs = [(torch.zeros(1), torch.ones(1))]
    assert BatchedCopies(Library(13_000, status=1)).start(pairs, 1) == 1


def test_attributes_are_as_large_as_cuda_has_them() -> None:
    assert ctypes.sizeof(_Attributes) == 24


@pytest.mark.parametrize("library", [None, object(), Library(12_070)])
def test_a_library_without_the_call_is_an_attribute_error(library: Any) -> None:
    with pytest.raises(AttributeError):
        BatchedCopies(library)
