"""A search for a message that breaks its reader, guided by which lines of it have run.

A message is what MessagePack has: maps, lists, text, bytes, numbers, None. It is changed at some
place, and kept to be changed again if it has led somewhere new: from a line to a line of the
package that no other has taken.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

_LEAVES = (
    *(None, True, False, 0, 1, -1, 2, 63, 64, 65, 1 << 31, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(0.5, float("nan"), float("inf"), "", "x", "result", "\0", "\N{GRINNING FACE}", "x" * 3000),
    *(b"", b"\xff", [], {}, [[]], {"": {}}, [None] * 70, {"kind": "attach"}),
)
_KEPT_MAX = 2000

Arc = tuple[CodeType, int, int]


def search(
    target: Callable[[Any], object], seeds: list[Any], *, runs: int, seed: int, watched: str
) -> int:
    """Give *target* so many messages; return how many arcs of the files *watched* were taken.

    What *target* raises is raised, with the message as a note.

    Args:
        seeds: messages that make sense, to begin with.
        watched: how the path of each file begins whose lines count.
    """
    chance = random.Random(seed)
    kept, arcs = list(seeds), set[Arc]()
    for number in range(runs):
        message = copy.deepcopy(kept[number] if number < len(seeds) else chance.choice(kept))
        for _ in range(chance.randint(1, 3) if number >= len(seeds) else 0):
            message = _changed(message, kept, chance)
        found = set[Arc]()
        try:
            _traced(target, message, found, watched)
        except BaseException as error:
            error.add_note(f"message {number}: {message!r}"[:4000])
            raise
        if not found <= arcs and len(kept) < _KEPT_MAX:
            kept.append(message)
        arcs |= found
    return len(arcs)


def _traced(target: Callable[[Any], object], message: Any, found: set[Arc], watched: str) -> None:
    before: dict[FrameType, int] = {}

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            found.add((frame.f_code, before.get(frame, 0), frame.f_lineno))
            before[frame] = frame.f_lineno
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(watched) else None

    others = sys.gettrace()
    sys.settrace(call)
    try:
        target(message)
    finally:
        sys.settrace(others)


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container inside of *message* with one of its keys."""
    if isinstance(message, dict | list):
        for key in list(message) if isinstance(message, dict) else range(len(message)):
            yield message, key
            yield from _places(message[key])


def _changed(message: Any, kept: list[Any], chance: random.Random) -> Any:
    """Return *message*, changed at one place."""
    places = list(_places(message))
    if not places or chance.random() < 0.02:
        return copy.deepcopy(chance.choice(_LEAVES))
    inside, key = chance.choice(places)
    how = chance.randrange(6)
    if how == 0:
        del inside[key]
    elif how == 1:
        inside[key] = copy.deepcopy(chance.choice(_LEAVES))
    elif how == 2:  # what stands elsewhere, in this message or in another
        other = list(_places(chance.choice(kept)))
        if other:
            there, its = chance.choice(other)
            inside[key] = copy.deepcopy(there[its])
    elif how == 3 and isinstance(inside, list):
        inside.insert(key, copy.deepcopy(inside[key]))
    elif how == 4 and isinstance(inside, dict):
        inside[chance.choice(("", "x", "kind", "parameters", 5))] = inside[key]
    elif isinstance(inside[key], int):
        inside[key] = inside[key] + chance.choice((-1, 1, 1 << 40))
    elif isinstance(inside[key], str):
        at = chance.randint(0, len(inside[key]))
        inside[key] = inside[key][:at] + chance.choice(("", "x", "0", "[", ".", " ")) * 2
    else:
        inside[key] = [inside[key]]
    return message
