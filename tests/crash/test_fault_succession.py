"""A supervised executor that dies at any of its points loses no call, and repeats none in vain.

As `test_fault_points`, with a supervisor: it, its executor, or a producer that is moving on to the
next executor is killed. The functions write down what they execute, and callers what they get.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import points
from tests.crash.heirs import NAME, Heirs, kill_moving
from tests.crash.points import SLOW, SOAK, End, Recorder, Victims

SOME = (5, 17)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("core", SOME, id="core here and there", marks=SLOW),
        pytest.param("core", (1, 1), id="core everywhere", marks=SOAK),
        pytest.param("lines", (1, 1), id="lines everywhere", marks=SOAK),
    ],
)
def test_no_call_is_lost_at_whatever_point_a_supervisor_or_its_executor_is_killed(
    supervisors: Victims,
    ledger: Path,
    transport: str,
    kind: str,
    steps: tuple[int, int],
    record_property: Recorder,
) -> None:
    heirs = Heirs(NAME, ledger)

    def run(at: int) -> End:
        supervisors.fork("executor", NAME, transport, "--restart", points=kind, at=at)
        said = supervisors.line()
        if "ready" in said:
            heirs.call()
            end = supervisors.end(supervised=True)
        else:
            end = supervisors.ended(said, supervised=True)
        heirs.are_served(supervised=end.status >= 0)
        return end

    points.enumerate_points(run, steps[transport != "linux"], record_property)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(SOME, id="here and there", marks=SLOW),
        pytest.param((1, 1), id="everywhere", marks=SOAK),
    ],
)
def test_nobody_is_harmed_by_a_producer_killed_at_any_point_while_it_moves_on(
    supervisors: Victims,
    victims: Victims,
    transport: str,
    steps: tuple[int, int],
    record_property: Recorder,
) -> None:
    points.enumerate_points(
        lambda at: kill_moving(supervisors, victims, transport, at),
        steps[transport != "linux"],
        record_property,
    )
