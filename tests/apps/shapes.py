"""Types of values; in a module of their own, so that a producer can have them without an app."""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict):
    depth: int
    note: NotRequired[str]


@dataclass
class Item:
    name: str
    price: float
    tags: list[str] = field(default_factory=list)
    parent: Item | None = None


class Order(msgspec.Struct):
    number: int
    items: list[Item]
    colour: Colour
    at: datetime.datetime
    day: datetime.date
    options: Options
    point: Point
    raw: bytes
    table: dict[int, tuple[int, str]]
    level: Level | None = None
    price: decimal.Decimal = decimal.Decimal(0)
    key: uuid.UUID | None = None


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Box(msgspec.Struct, Generic[T]):
    content: T


Small = Annotated[int, msgspec.Meta(ge=0, lt=100)]
Mode = Literal["fast", "slow", 3, None]


class Plain:
    """Known to pickle alone."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]


class Bomb:
    """Can be pickled and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ("boom",)


def _explode(reason: str) -> None:
    raise RuntimeError(reason)


class OnlyElsewhere:
    """Can be unpickled in every process but one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return _unless_in, (self.pid,)


def _unless_in(pid: int) -> OnlyElsewhere:
    if os.getpid() == pid:
        raise RuntimeError("not in this process")
    return OnlyElsewhere(pid)
