"""Which sizes of batches a function allows, where it does not take them as they come."""

from __future__ import annotations

from bisect import bisect_left

from ..errors import ConfigError
from .batching import MAX_BATCH_SIZE
from .checking import check_count, shown


def allowed_sizes(batch_sizes: object, max_batch_size: int) -> tuple[int, ...] | None:
    """Check what a person wrote as ``batch_sizes``; None, for any size, stays None.

    Raises:
        ConfigError: it is no tuple or list of increasing ints that ends with *max_batch_size*.
    """
    if batch_sizes is None:
        return None
    if not isinstance(batch_sizes, tuple | list):
        raise ConfigError(
            f"batch_sizes is {shown(batch_sizes)}; "
            f"use a tuple of ints that ends with max_batch_size, as in {_example(max_batch_size)}"
        )
    if not batch_sizes:
        raise ConfigError(
            f"batch_sizes is empty; end it with max_batch_size, as in {_example(max_batch_size)}, "
            "or drop it to allow all sizes"
        )
    previous = 0
    for at, size in enumerate(batch_sizes):
        check_count(f"batch_sizes[{at}]", size, MAX_BATCH_SIZE)
        if size <= previous:
            raise ConfigError(
                f"batch_sizes[{at}] is {size}, after {previous}; "
                "write each size once, the smallest first"
            )
        previous = size
    if previous != max_batch_size:
        raise ConfigError(
            f"batch_sizes ends with {previous}, but max_batch_size is {max_batch_size}; "
            "make them the same, for a full batch is to have an allowed size"
        )
    return tuple(batch_sizes)


def padded_size(sizes: tuple[int, ...], count: int) -> int:
    """Return the smallest allowed size of at least *count*, which is at most the largest."""
    return sizes[bisect_left(sizes, count)]


def _example(max_batch_size: int) -> str:
    return repr((1, max_batch_size) if max_batch_size > 1 else (1,))
