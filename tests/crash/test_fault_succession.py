"""A supervised executor that dies at any of its points loses no call, and repeats none in vain.

As `test_fault_points`, with a supervisor: it, its executor, or a producer that is moving on to the
next executor is killed. The functions write down what they execute, and callers what they get.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import shmbatch
from shmbatch.protocol.transport import TRANSPORTS
from tests.crash import points, roles
from tests.crash.bystanders import Bystander, swept
from tests.crash.heirs import Heirs
from tests.crash.points import End, Victims
from tests.crash.reporting import Recorder, record

NAME = "succession"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    path.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMBATCH_TEST_LEDGER", str(path))
        yield path


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return points.build(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def supervisors(core: Path, ledger: Path, transport: str) -> Iterator[Victims]:
    with points.victims(core) as started:
        yield started


@pytest.fixture(scope="module")
def producers(core: Path, transport: str) -> Iterator[Victims]:
    with points.victims(core) as started:
        yield started


@pytest.fixture
def heirs(ledger: Path) -> Heirs:
    return Heirs(NAME, ledger)


def kill_supervised(
    supervisors: Victims, heirs: Heirs, transport: str, kind: str = "core", at: int = 0
) -> End:
    """Kill a supervised executor, or its supervisor, at one of their points."""
    supervisors.fork("executor", NAME, transport, "--restart", points=kind, at=at)
    said = supervisors.line()
    if "ready" in said:
        heirs.call()
        end = supervisors.end(supervised=True)
    else:
        end = supervisors.ended(said, supervised=True)
    heirs.are_served(supervised=end.status >= 0)
    return end


def kill_moving(supervisors: Victims, producers: Victims, transport: str, at: int = 0) -> End:
    """Kill a producer at one of the points that it passes once its executor is dead."""
    supervisors.fork("executor", NAME, transport, "--restart")
    assert "ready" in supervisors.line()
    bystander = Bystander(NAME)
    bystander.waits()
    producers.fork("moved", NAME, at=at)
    end = producers.end()
    bystander.goes_on()
    bystander.has_all_slots()
    roles.hang_up(NAME)
    shmbatch.stop(NAME)
    assert supervisors.end(supervised=True).status == 0
    swept(NAME)
    return end


# ---- here and there -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_call_is_lost_where_a_supervised_executor_is_killed(
    supervisors: Victims, heirs: Heirs, transport: str, record_property: Recorder
) -> None:
    visits = points.enumerate_points(
        "supervised executor",
        "core",
        lambda at: kill_supervised(supervisors, heirs, transport, at=at),
        step=5 if transport == TRANSPORTS[0] else 17,
    )
    record(record_property, visits)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nobody_is_harmed_by_a_producer_killed_while_it_moves_on(
    supervisors: Victims, producers: Victims, transport: str, record_property: Recorder
) -> None:
    visits = points.enumerate_points(
        "producer, moving",
        "core",
        lambda at: kill_moving(supervisors, producers, transport, at),
        step=5 if transport == TRANSPORTS[0] else 17,
    )
    record(record_property, visits)


# ---- for a long time ----------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["core", "lines"])
def test_no_call_is_lost_at_whatever_point_a_supervisor_or_its_executor_is_killed(
    supervisors: Victims, heirs: Heirs, transport: str, kind: str, record_property: Recorder
) -> None:
    visits = points.enumerate_points(
        "supervised executor",
        kind,
        lambda at: kill_supervised(supervisors, heirs, transport, kind, at),
        step=1,
    )
    record(record_property, visits)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nobody_is_harmed_by_a_producer_killed_at_any_point_while_it_moves_on(
    supervisors: Victims, producers: Victims, transport: str, record_property: Recorder
) -> None:
    visits = points.enumerate_points(
        "producer, moving",
        "core",
        lambda at: kill_moving(supervisors, producers, transport, at),
        step=1,
    )
    record(record_property, visits)
