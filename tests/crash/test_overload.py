"""A producer that floods, over real processes: the others' calls go in turn with its own."""

from __future__ import annotations

import pytest

from shmbatch import errors
from tests import processes
from tests.processes import Gate, Program

# Fills its slots, waits for more in vain, and goes on when it is told to.
FLOODER = """
import sys, shmbatch
held = shmbatch.connect("crash.held")
pending = [held.spawn(x) for x in range(int(sys.argv[1]))]
try:
    held.with_options(timeout=0).spawn(-1)
except shmbatch.errors.RingFull:
    print("full", flush=True)
assert [call.get() for call in pending] == [10 * x for x in range(len(pending))]
"""


def test_a_call_beside_a_flood_is_in_the_next_batch(gate: Gate, transport: str) -> None:
    with processes.served("crash.py", "crash") as executor:
        held = executor.connect("held")  # of up to four
        slots = executor.statistics("held")["slots"]
        with Program(FLOODER, slots) as flooder:
            first = gate.arrived()  # whatever of it there was by then
            assert flooder.line() == "full"
            mine = [held.spawn(1000 + x) for x in range(3)]
            waiting = slots - len(first) + len(mine)
            assert executor.statistics("held")["calls_waiting"] == waiting
            for expected in ([1000, 1001], [1002]):  # turns are taken call by call
                gate.open()
                inputs = gate.arrived()
                assert len(inputs) == 4
                assert [each for each in inputs if each >= 1000] == expected
            gate.open(slots)
            assert [call.get() for call in mine] == [10 * (1000 + x) for x in range(3)]
            assert flooder.wait() == 0
            gate.reset()


@pytest.mark.slow
def test_who_floods_is_told_and_leaves_no_more_waiting_than_slots(
    gate: Gate, transport: str
) -> None:
    with processes.served("crash.py", "crash") as executor:
        held = executor.connect("held").with_options(timeout=0)
        first = held.spawn(0)
        gate.arrived()
        slots = executor.statistics("held")["slots"]
        pending = [held.spawn(1) for _ in range(slots - 1)]
        for _ in range(1000):
            with pytest.raises(errors.RingFull, match=f"all {slots} slots"):
                held.remote(2)
        assert executor.statistics("held")["calls_waiting"] == slots - 1
        del pending
        gate.open()
        assert first.get() == 0
