"""Values that the core stores as pieces: bytes one after the other, or a shape and its bytes."""

from __future__ import annotations

from typing import Any

ALIGNMENT = 16  # each piece begins at a multiple of it, as the core lays them out


class Pieces(tuple[Any, ...]):
    """What the core copies for a packed value, or for an array whose shape goes along.

    A type of its own, so that no tuple of a caller's is ever taken for one.
    """

    __slots__ = ()


def align(nbytes: int) -> int:
    """Round up to where the next piece begins."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
