"""How large a batch may grow, how long it may wait, and how many slots that takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .checking import check_count, shown

MAX_BATCH_SIZE = 65_536
MAX_WAIT_MS = 600_000  # ten minutes
MAX_SLOTS = 2 * MAX_BATCH_SIZE
MIN_DEFAULT_SLOTS = 64  # enough that small batches leave room for calls in flight


@dataclass(frozen=True)
class BatchParameters:
    """When a batch is due: at *max_batch_size* calls, or *wait_ns* after the oldest of them."""

    max_batch_size: int
    wait_ns: int


@dataclass(frozen=True)
class OtherBatching:
    """What a handle has chosen instead of what a function is decorated with; None: the same."""

    max_batch_size: int | None = None
    wait_ns: int | None = None

    def instead_of(self, decorated: BatchParameters, function: str) -> BatchParameters:
        """Return the parameters of the queue that is meant.

        Args:
            function: its address, for the message.

        Raises:
            ConfigError: *max_batch_size* is above the decorated one.
        """
        size, wait_ns = self.max_batch_size, self.wait_ns
        if size is not None and size > decorated.max_batch_size:
            raise ConfigError(
                f"with_batching(max_batch_size={size}) of '{function}', which is decorated with "
                f"max_batch_size={decorated.max_batch_size}; use at most that"
            )
        return BatchParameters(
            decorated.max_batch_size if size is None else size,
            decorated.wait_ns if wait_ns is None else wait_ns,
        )


def other_batching(max_batch_size: int | None, wait_ms: float | None) -> OtherBatching:
    """Check what a person wrote, as `batch_parameters` does; None stays None."""
    checked = batch_parameters(
        1 if max_batch_size is None else max_batch_size, 0 if wait_ms is None else wait_ms
    )
    return OtherBatching(
        None if max_batch_size is None else checked.max_batch_size,
        None if wait_ms is None else checked.wait_ns,
    )


def batch_parameters(max_batch_size: int, wait_ms: float) -> BatchParameters:
    """Check what a person wrote; fractions of a millisecond are kept to the nanosecond.

    Raises:
        ConfigError: a value has the wrong type or is out of bounds.
    """
    check_count("max_batch_size", max_batch_size, MAX_BATCH_SIZE)
    # A NaN fails both comparisons; an int is compared, and converted, exactly.
    if (
        not isinstance(wait_ms, int | float)
        or isinstance(wait_ms, bool)
        or not 0 <= wait_ms <= MAX_WAIT_MS
    ):
        raise ConfigError(
            f"wait_ms is {shown(wait_ms)}; use a number of milliseconds from 0 to {MAX_WAIT_MS}"
        )
    return BatchParameters(max_batch_size, round(wait_ms * 1_000_000))


def slot_capacity(
    max_batch_size: int, slots: int | None, slot_nbytes: int, limit_nbytes: int
) -> int:
    """Return how many slots one producer gets for one function.

    By default twice *max_batch_size* and at least 64, lowered until they take at most
    *limit_nbytes*, yet never below one; where that is below *max_batch_size* a single producer
    cannot fill a batch, and the caller should warn. An explicit *slots* is not lowered.

    Raises:
        ConfigError: *slots* has the wrong type or is out of bounds.
    """
    if slots is not None:
        check_count("slots", slots, MAX_SLOTS)
        return slots
    capacity = max(MIN_DEFAULT_SLOTS, 2 * max_batch_size)
    if slot_nbytes:
        capacity = min(capacity, limit_nbytes // slot_nbytes)
    return max(capacity, 1)
