"""A producer that overwrites what it shares with the executor ends its own connection, and nobody
else notices: real processes, the client's own connection, and the memory that it has mapped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import processes
from tests.processes import Program, Served

# Calls and checks results until it is told to stop; then says how often.
BYSTANDER = """
import select, sys, shmbatch
double, triple = (shmbatch.connect(f"hostile.{f}") for f in ("double", "triple"))
turns = 0
while True:
    told = select.select([sys.stdin], [], [], 0)[0]
    xs = range(25 * turns, 25 * turns + 25)
    assert list(double.map(xs)) == [2 * x for x in xs]
    assert [triple.remote(x) for x in xs] == [3 * x for x in xs]
    turns += 1
    if turns == 1:
        print("connected", flush=True)
    if told:
        break
print(turns, flush=True)
"""

# Scribbles in the way that it is told until it is disconnected; then says what its next call
# raised, and what the one after that returned.
SCRIBBLER = """
import random, struct, sys, shmbatch
from shmbatch import errors
from shmbatch.contract.wire import segment_layout
from shmbatch.protocol import control, layout
from shmbatch.protocol._core import (
    ABANDONED, Bell, CANCELLED, DONE, FREE, PARKED, READY, TAKEN, WAITER
)

how = sys.argv[1]
chance = random.Random(how)
double = shmbatch.connect("hostile.double")
assert double.remote(1) == 2
connection = double.connect()
transport = connection.line.transport
memory, bell = transport.memory, Bell(transport.bell_memory)
where = segment_layout(connection.signature, connection.capacity)
mask = (1 << (where.capacity - 1).bit_length()) - 1

def read(offset):
    return struct.unpack_from("=I", memory, offset)[0]

def write(offset, word):
    struct.pack_into("=I", memory, offset, word)

def state(slot):
    return where.controls + layout.CONTROL_NBYTES * slot + layout.CONTROL_STATE

def publish(*slots, word=READY):
    tail = read(layout.TAIL)
    for at, slot in enumerate(slots):
        write(layout.INDICES + 4 * ((tail + at) & mask), slot)
        if slot < where.capacity:
            write(state(slot), 77 << 8 | word)
    write(layout.TAIL, (tail + len(slots)) & 0xFFFFFFFF)

def ring():
    if bell.ring() & PARKED:
        transport.wake_executor()

def hung_up(timeout=0.0):
    return control.is_gone(connection.line.sock, None, timeout)

print("connected", flush=True)
sys.stdin.readline()
if how == "tail too far":
    write(layout.TAIL, read(layout.TAIL) + where.capacity + 1)
elif how == "tail back":
    write(layout.TAIL, read(layout.TAIL) - 1)
elif how == "index twice":
    publish(3, 3)
elif how == "index too large":
    publish(where.capacity)
elif how == "huge index":
    publish(0xFFFFFFFF)
elif how == "full ring of one index":
    publish(*[0] * where.capacity)
elif how.startswith("published"):
    words = {"free": FREE, "taken": TAKEN, "done": DONE, "abandoned": ABANDONED, "six": 6}
    publish(2, word=words[how.split()[1]])
elif how.startswith("in flight"):
    held = shmbatch.connect("hostile.held")
    connection = held.connect()
    transport = connection.line.transport
    memory = transport.memory
    where = segment_layout(connection.signature, connection.capacity)
    call = held.spawn(5)
    print("called", flush=True)
    sys.stdin.readline()  # it is at the gate
    slot = call._ticket & 0x1FFFF
    word = read(state(slot))
    assert word & 7 == TAKEN
    write(state(slot), {
        "ready": word & ~7 | READY,
        "done": word & ~7 | DONE,
        "free": word & ~7 | FREE,
        "generation": word + (1 << 8),
        "noise": 0xFFFFFFFF,
    }[how.split()[2]])
    print("scribbled", flush=True)
    double = held
elif how == "random words":
    while not hung_up():
        write(4 * chance.randrange(len(memory) // 4), chance.getrandbits(32))
        write(4 * chance.randrange(where.columns[0] // 4), chance.getrandbits(32))
        ring()
elif how == "random pages":
    while not hung_up():
        start = chance.randrange(len(memory) - 500)
        memory[start:start + 500] = chance.randbytes(500)
        ring()
ring()
assert hung_up(20), "it is not disconnected"
print("hung up", flush=True)
try:
    print(double.remote(1), flush=True)
except (errors.ExecutorGone, errors.ExecutorClosed, errors.ProtocolError) as error:
    print(type(error).__name__, flush=True)
double = shmbatch.connect("hostile.double")  # anew
print(double.remote(4), flush=True)
sys.stdin.read()
"""

# Overwrites the doorbell, which all producers share, until it is told to stop.
BELL_RINGER = """
import os, random, select, shmbatch
double = shmbatch.connect("hostile.double")
memory = double.connect().line.transport.bell_memory
chance = random.Random(1)
print("connected", flush=True)
os.read(0, 1)  # no more: the next line may have come too
while not select.select([0], [], [], 0)[0]:
    memory[0:4] = chance.choice([bytes(4), b"\\xff" * 4, chance.randbytes(4)])
    memory[64:68] = chance.choice([bytes(4), b"\\xff" * 4, chance.randbytes(4)])
assert double.remote(4) == 8
print("tired", flush=True)
"""

WAYS = (
    "tail too far",
    "tail back",
    "index twice",
    "index too large",
    "huge index",
    "full ring of one index",
    "published free",
    "published taken",
    "published done",
    "published abandoned",
    "published six",
    "random words",
    "random pages",
)
IN_FLIGHT = ("ready", "done", "free", "generation", "noise")
ENDS = {"ExecutorGone", "ExecutorClosed", "ProtocolError"}


@pytest.fixture(scope="module")
def executor(transport: str, module_gate: processes.Gate) -> Iterator[Served]:
    with processes.served("crash.py", "hostile") as executor:
        yield executor


@pytest.fixture(scope="module")
def bystander(executor: Served) -> Iterator[Program]:
    """Calls all the time, while one scribbler after another comes and goes."""
    with Program(BYSTANDER) as program:
        assert program.line() == "connected"
        yield program
        program.tell()
        assert int(program.line()) > 0  # every result was right
        assert program.wait() == 0


def violations(executor: Served) -> int:
    return executor.logged.count("broke the protocol")


def is_as_before(executor: Served, descriptors: int) -> None:
    processes.wait_until(
        lambda: len(processes.descriptors(executor.pid)) <= descriptors, "descriptors are closed"
    )
    processes.wait_until(lambda: executor.statistics("double")["producers"] == 1, "it is detached")
    assert executor.process.poll() is None


@pytest.mark.parametrize("how", WAYS)
def test_a_scribbler_is_disconnected_and_nobody_else_notices(
    executor: Served, bystander: Program, how: str
) -> None:
    descriptors = len(processes.descriptors(executor.pid))
    before = violations(executor)
    with Program(SCRIBBLER, how) as scribbler:
        assert scribbler.line() == "connected"
        scribbler.tell()
        assert scribbler.line() == "hung up"
        # Noise may be in the word that says so, too.
        assert scribbler.line() in (ENDS if how.startswith("random") else {"ProtocolError"})
        assert int(scribbler.line()) == 8  # it may come again
        assert violations(executor) == before + 1
    assert bystander.process.poll() is None
    is_as_before(executor, descriptors)


@pytest.mark.parametrize("how", IN_FLIGHT)
def test_a_scribbler_whose_call_is_under_way_is_disconnected(
    executor: Served, bystander: Program, module_gate: processes.Gate, how: str
) -> None:
    """And a call of somebody else in the same batch has its result."""
    descriptors = len(processes.descriptors(executor.pid))
    before = violations(executor)
    held = executor.connect("held")
    with Program(SCRIBBLER, f"in flight {how}") as scribbler:
        assert scribbler.line() == "connected"
        first = held.spawn(1)
        assert module_gate.arrived() == [1]
        mate = held.spawn(2)
        scribbler.tell()
        assert scribbler.line() == "called"
        module_gate.open()
        assert first.get() == 10
        assert sorted(module_gate.arrived()) == [2, 5]
        scribbler.tell()
        assert scribbler.line() == "scribbled"
        module_gate.open()
        assert mate.get() == 20
        assert scribbler.line() == "hung up"
        assert scribbler.line() == "ProtocolError"
        assert int(scribbler.line()) == 8
        assert violations(executor) == before + 1
    assert bystander.process.poll() is None
    del first, mate
    processes.hang_up()
    is_as_before(executor, descriptors)


def test_who_scribbles_over_the_bell_delays_others_at_most(
    executor: Served, bystander: Program
) -> None:
    descriptors = len(processes.descriptors(executor.pid))
    double = executor.connect("double")
    with Program(BELL_RINGER) as ringer:
        assert ringer.line() == "connected"
        ringer.tell()
        for turn in range(3):
            xs = range(100 * turn, 100 * turn + 20)
            assert list(double.map(xs)) == [2 * x for x in xs]
        ringer.tell()
        assert ringer.line() == "tired"
        assert ringer.wait() == 0
    assert double.remote(3) == 6
    processes.hang_up()
    is_as_before(executor, descriptors)
