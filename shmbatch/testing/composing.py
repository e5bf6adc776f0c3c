"""How chosen calls are made to run as exactly one batch, in chosen rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from .producer import Call
from .records import BatchRecord
from .simulation import Simulation
from .targets import Meant, Target, sole_meant


@dataclass(frozen=True)
class Composed:
    """What became of a batch that was put together by hand."""

    batch: BatchRecord
    calls: tuple[Call, ...]  # those that were given, in their order

    @property
    def results(self) -> list[Any]:
        """The result of each call that was given; raises the first error there is."""
        return [call.get() for call in self.calls]

    @property
    def errors(self) -> list[Exception | None]:
        """The error of each call that was given; None where it has a result."""
        return [call.error() for call in self.calls]


def run_batch(
    target: Target,
    calls: Sequence[tuple[Any, ...]],
    *,
    at: Sequence[int] | None = None,
    fill: tuple[Any, ...] | None = None,
    size: int | None = None,
    device: str = "cpu",
) -> Composed:
    """Run calls as exactly one batch, through the real gathering, padding and delivery.

    Args:
        target: one batched function.
        calls: the arguments of each call, as tuples, in the order of their rows.
        at: the row of each call; by default they stand one behind the other.
        fill: the arguments of the calls in all rows below the last that *at* leaves out.
        size: rows that the function sees, padded as for ``batch_sizes``; by default what those
            say, or as many as there are calls.
        device: as of `Simulation`.

    Raises:
        ConfigError: they make no batch: too many, none, a row that is taken twice or left empty.
        InputError: a value does not fit its parameter.
    """
    with sole_meant(target) as meant:
        return composed(meant, calls, at=at, fill=fill, size=size, device=device)


def composed(
    meant: Meant,
    calls: Sequence[tuple[Any, ...]],
    *,
    at: Sequence[int] | None = None,
    fill: tuple[Any, ...] | None = None,
    size: int | None = None,
    device: str = "cpu",
) -> Composed:
    """Do as `run_batch`."""
    most = meant.definition.parameters.max_batch_size
    at = range(len(calls)) if at is None else at
    rows = _rows(calls, at, fill, meant.address, most)
    sizes = meant.definition.batch_sizes
    if size is not None:
        if not len(rows) <= size <= most:
            raise ConfigError(
                f"size is {size} for {len(rows)} calls of '{meant.address}', whose max_batch_size "
                f"is {most}; use a size from {len(rows)} to {most}"
            )
        sizes = (size,) if size == most else (size, most)
    definition = replace(meant.definition, batch_sizes=sizes, slots=len(rows))
    with Simulation.of(replace(meant, definition=definition), device=device) as simulation:
        producer = simulation.producer()
        made = [producer.call(*values) for values in rows]
        simulation.drain()
        for call in made:
            call.done()
        batch = simulation.batches[0] if simulation.batches else None
        assert batch is not None, "none of the calls could be read back"
        assert len(simulation.batches) == 1, "calls made at once run together"
        return Composed(batch, tuple(made[row] for row in at))


def _rows(
    calls: Sequence[tuple[Any, ...]],
    at: Sequence[int],
    fill: tuple[Any, ...] | None,
    address: str,
    most: int,
) -> list[tuple[Any, ...]]:
    """Return the arguments of every row."""
    for values in [*calls, () if fill is None else fill]:
        if not isinstance(values, tuple):
            raise ConfigError(
                f"a call of '{address}' is {values!r:.100}; give its arguments as a tuple"
            )
    if len(at) != len(calls) or len(set(at)) != len(at) or min(at, default=0) < 0:
        raise ConfigError(
            f"at is {list(at)} for {len(calls)} calls of '{address}'; give each a row of its own"
        )
    placed = dict(zip(at, calls, strict=True))
    count = max(placed, default=-1) + 1
    if not 1 <= count <= most:
        raise ConfigError(
            f"a batch of {count} calls was asked of '{address}', whose max_batch_size is {most}; "
            f"give 1 to {most}"
        )
    if fill is None and len(placed) < count:
        empty = next(row for row in range(count) if row not in placed)
        raise ConfigError(f"row {empty} of the batch of '{address}' is empty; give fill=")
    return [placed.get(row, fill or ()) for row in range(count)]
