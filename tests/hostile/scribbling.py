"""What a producer writes over its own segment, one way after another: see `assaults`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import shmbatch
from shmbatch import errors
from shmbatch.client.connection import Connection
from shmbatch.contract.wire import segment_layout
from shmbatch.protocol import control, layout
from shmbatch.protocol._core import ABANDONED, DONE, FREE, READY, TAKEN
from tests.hostile.raw import Segment
from tests.processes import PATIENCE_S

RINGS: dict[str, Callable[[Segment], None]] = {
    "tail too far": lambda it: it.write(layout.TAIL, it.read(layout.TAIL) + it.where.capacity + 1),
    "tail back": lambda it: it.write(layout.TAIL, it.read(layout.TAIL) - 1),
    "index twice": lambda it: it.publish(3, 3),
    "index too large": lambda it: it.publish(it.where.capacity),
    "huge index": lambda it: it.publish(0xFFFFFFFF),
    "full ring of one index": lambda it: it.publish(*[0] * it.where.capacity),
    "published free": lambda it: it.publish(2, state=FREE),
    "published taken": lambda it: it.publish(2, state=TAKEN),
    "published done": lambda it: it.publish(2, state=DONE),
    "published abandoned": lambda it: it.publish(2, state=ABANDONED),
    "published six": lambda it: it.publish(2, state=6),
}
# The word of a call that runs, and what is written over it.
IN_FLIGHT: dict[str, Callable[[int], int]] = {
    "in flight ready": lambda word: word & ~7 | READY,
    "in flight done": lambda word: word & ~7 | DONE,
    "in flight free": lambda word: word & ~7 | FREE,
    "in flight generation": lambda word: word + (1 << 8),
    "in flight noise": lambda word: 0xFFFFFFFF,
}


def segment_of(function: shmbatch.Function) -> tuple[Connection, Segment]:
    """What the client's own connection has mapped, and goes on to use."""
    connection = function.connect()
    where = segment_layout(connection.signature, connection.capacity)
    return connection, Segment(connection.line.transport, where)


def is_expelled(name: str, function: shmbatch.Function, connection: Connection) -> str:
    """Return what the next call raises; then come again."""
    assert control.is_gone(connection.line.sock, None, PATIENCE_S), "it is not disconnected"
    try:
        function.remote(1)
    except (errors.ExecutorGone, errors.ExecutorClosed, errors.ProtocolError) as error:
        raised = type(error).__name__
    assert shmbatch.connect(f"{name}.double").remote(4) == 8
    return raised


def scribbles(how: str, name: str) -> str:
    double = shmbatch.connect(f"{name}.double")
    assert double.remote(1) == 2
    connection, segment = segment_of(double)
    RINGS[how](segment)
    segment.ring()
    return is_expelled(name, double, connection)


def scribbles_while_it_runs(how: str, name: str) -> str:
    held = shmbatch.connect(f"{name}.held")
    connection, segment = segment_of(held)
    call = held.spawn(5)
    print("called", flush=True)
    os.read(0, 1)  # it is at the gate
    at = segment.state_at(call._ticket & 0x1FFFF)
    word = segment.read(at)
    assert word & 7 == TAKEN
    segment.write(at, IN_FLIGHT[how](word))
    print("scribbled", flush=True)
    return is_expelled(name, held, connection)


def scribbles_pages(name: str) -> str:
    """Over the whole segment, until it is hung up on; what it is told then may be noise."""
    chance = random.Random(7)
    connection, segment = segment_of(shmbatch.connect(f"{name}.double"))
    while not control.is_gone(connection.line.sock, None):
        start = chance.randrange(len(segment.memory) - 500)
        segment.memory[start : start + 500] = chance.randbytes(500)
        segment.ring()
    return "hung up"


WAYS: dict[str, Callable[[str], str]] = {
    **{how: partial(scribbles, how) for how in RINGS},
    **{how: partial(scribbles_while_it_runs, how) for how in IN_FLIGHT},
    "pages": scribbles_pages,
}
