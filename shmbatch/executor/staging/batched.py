"""Many copies in one call of CUDA, `cudaMemcpyBatchAsync`, which torch does not offer.

To start a copy through torch takes some microseconds, as long as PCIe takes for 100 KB. CUDA has
the call since 12.8, and since 13.0 with one argument less.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

_SINCE = 12_080
_WITHOUT_FAIL_INDEX = 13_000
_IN_STREAM_ORDER = 1  # cudaMemcpySrcAccessOrderStream: sources are read when their turn comes


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """cudaMemcpyAttributes."""

    _fields_ = (
        ("source_order", ctypes.c_int),
        ("source", _Location),
        ("target", _Location),
        ("flags", ctypes.c_uint),
    )


class BatchedCopies:
    """The call as a CUDA runtime library declares it.

    Args:
        library: libcudart, the one that torch uses.

    Raises:
        AttributeError: it does not have the call.
    """

    def __init__(self, library: Any) -> None:
        self._call = library.cudaMemcpyBatchAsync
        version = ctypes.c_int()
        library.cudaRuntimeGetVersion(ctypes.byref(version))
        if version.value < _SINCE:
            raise AttributeError(f"CUDA {version.value} has another cudaMemcpyBatchAsync")
        self._says_where = version.value < _WITHOUT_FAIL_INDEX

    def start(self, pairs: Sequence[tuple[Any, Any]], stream: int) -> int:
        """Start copying each second tensor of a pair into the first; return CUDA's status.

        All are contiguous, and both of a pair of one size.

        Args:
            stream: its handle; not that of the default stream.
        """
        count = len(pairs)
        pointers, sizes = ctypes.c_void_p * count, ctypes.c_size_t * count
        index = ctypes.c_size_t(0)
        attributes = _Attributes(source_order=_IN_STREAM_ORDER)
        arguments = [
            pointers(*(to.data_ptr() for to, _ in pairs)),
            pointers(*(source.data_ptr() for _, source in pairs)),
            sizes(*(to.numel() * to.element_size() for to, _ in pairs)),
            ctypes.c_size_t(count),
            ctypes.byref(attributes),
            ctypes.byref(index),  # the attributes are those of all copies from the first on
            ctypes.c_size_t(1),
        ]
        if self._says_where:
            arguments.append(ctypes.byref(ctypes.c_size_t(0)))
        return int(self._call(*arguments, ctypes.c_void_p(stream)))


def cudart() -> Any | None:
    """Return the CUDA runtime library that is loaded; None if there is none."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123 - as elsewhere
        library = re.search(r"\S*/libcudart\S*", maps.read())
    return None if library is None else ctypes.CDLL(library[0])
