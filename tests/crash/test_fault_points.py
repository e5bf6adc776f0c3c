"""A process that dies at any of its fault points, one after the other, harms nobody else.

Points are in the core (`faults.h` makes one of each store, read-modify-write, copy and futex
call), or lines of our Python. For every n a process is killed at its n-th point, until it passes
without being killed: a producer beside another one that goes on, an executor under producers that
wait in every way. Every day some of the points, the slow suite all of the core over the first
transport, a soak all of them and thousands of other moments.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbatch.protocol.transport import TRANSPORTS
from tests import processes
from tests.crash import points, roles
from tests.crash.bystanders import Orphans, Watched
from tests.crash.points import End, Victims, Visits
from tests.crash.reporting import Recorder, record
from tests.crash.test_fault_succession import kill_moving
from tests.processes import Served

NAME = "faults"
KILLS = 1500  # at random moments, of each role over each transport

WAYS = pytest.mark.parametrize("way", roles.WAYS)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return points.build(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def victims(core: Path, transport: str) -> Iterator[Victims]:
    with points.victims(core) as started:
        yield started


@pytest.fixture(scope="module")
def executor(transport: str) -> Iterator[Served]:
    with processes.served("faults.py", NAME, "--wait", "park") as executor:
        yield executor
        processes.hang_up()


@pytest.fixture
def bystander(executor: Served) -> Iterator[Watched]:
    bystander = Watched(executor)
    yield bystander
    bystander.has_all_slots()


def kill_producers(
    victims: Victims, bystander: Watched, way: str, kind: str = "core", step: int = 1
) -> Visits:
    """Kill a producer at its points, another one looking on."""

    def run(at: int) -> End:
        bystander.waits()
        victims.fork("producer", NAME, way, points=kind, at=at)
        end = victims.end()
        bystander.goes_on()
        return end

    return points.enumerate_points(f"producer, {way}", kind, run, step)


def kill_executor(
    victims: Victims, orphans: Orphans, transport: str, kind: str = "core", at: int = 0
) -> End:
    """Kill an executor at one of its points, under producers that wait in every way."""
    victims.fork("executor", orphans.name, transport, points=kind, at=at)
    said = victims.line()
    if "ready" in said:
        orphans.call()
        end = victims.end()
    else:
        end = victims.ended(said)
    orphans.are_told()
    return end


def kill_executors(victims: Victims, transport: str, kind: str = "core", step: int = 1) -> Visits:
    """Kill an executor at its points."""
    with Orphans("orphans") as orphans:
        return points.enumerate_points(
            "executor",
            kind,
            lambda at: kill_executor(victims, orphans, transport, kind, at),
            step,
        )


# ---- every day ----------------------------------------------------------------------------------


def test_every_point_of_the_core_is_passed_by_what_is_killed(
    victims: Victims, core: Path, transport: str
) -> None:
    seen: set[str] = set()
    with points.victims(core) as executors, Orphans("orphans") as orphans:
        executors.fork("executor", orphans.name, transport)
        assert "ready" in executors.line()
        for way in roles.WAYS:
            victims.fork("producer", orphans.name, way)
            seen.update(victims.end().seen)
        orphans.call()
        seen.update(executors.end().seen)
        orphans.are_told()
        seen.update(kill_moving(executors, victims, transport).seen)
    never = {site for site in victims.sites if transport == "posix" and "futex_wait" in site}
    assert set(victims.sites) - seen == never


def test_nobody_is_harmed_by_a_producer_killed_here_and_there(
    victims: Victims, bystander: Watched, record_property: Recorder
) -> None:
    for way in roles.WAYS:
        record(record_property, kill_producers(victims, bystander, way, step=31))


def test_every_waiter_is_told_of_an_executor_killed_here_and_there(
    victims: Victims, transport: str, record_property: Recorder
) -> None:
    record(record_property, kill_executors(victims, transport, step=79))


# ---- everywhere ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@WAYS
def test_nobody_is_harmed_by_a_producer_killed_at_any_point(
    victims: Victims, bystander: Watched, transport: str, way: str, record_property: Recorder
) -> None:
    step = 1 if transport == TRANSPORTS[0] else 3
    record(record_property, kill_producers(victims, bystander, way, step=step))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_waiter_is_told_of_an_executor_killed_at_any_point(
    victims: Victims, transport: str, record_property: Recorder
) -> None:
    step = 1 if transport == TRANSPORTS[0] else 3
    record(record_property, kill_executors(victims, transport, step=step))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nobody_is_harmed_by_a_producer_killed_at_some_lines(
    victims: Victims, bystander: Watched, record_property: Recorder
) -> None:
    for way in roles.WAYS:
        visits = kill_producers(victims, bystander, way, "lines", step=59)
        record(record_property, visits)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_waiter_is_told_of_an_executor_killed_at_some_lines(
    victims: Victims, transport: str, record_property: Recorder
) -> None:
    visits = kill_executors(victims, transport, "lines", step=59)
    record(record_property, visits)


# ---- for a long time ----------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["core", "lines"])
@WAYS
def test_nobody_is_harmed_by_a_producer_killed_at_all_of_its_points(
    victims: Victims, bystander: Watched, way: str, kind: str, record_property: Recorder
) -> None:
    record(record_property, kill_producers(victims, bystander, way, kind))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["core", "lines"])
def test_every_waiter_is_told_of_an_executor_killed_at_all_of_its_points(
    victims: Victims, transport: str, kind: str, record_property: Recorder
) -> None:
    record(record_property, kill_executors(victims, transport, kind))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nobody_is_harmed_by_producers_killed_at_random(
    victims: Victims, bystander: Watched, record_property: Recorder
) -> None:
    chance = random.Random(1)
    kills = 0
    while kills < KILLS:
        bystander.waits()
        victims.fork("producer", NAME, chance.choice(list(roles.WAYS)))
        with victims.killing(chance):
            kills += victims.end().status != 0
        bystander.goes_on()
    record(record_property, Visits("producer", "random", kills=kills))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_waiter_is_told_of_executors_killed_at_random(
    victims: Victims, transport: str, record_property: Recorder
) -> None:
    chance = random.Random(2)
    kills = 0
    with Orphans("orphans") as orphans:
        while kills < KILLS:
            victims.fork("executor", orphans.name, transport)
            with victims.killing(chance):
                said = victims.line()
                if "ready" in said:
                    orphans.call()
                    end = victims.end()
                else:
                    end = victims.ended(said)
            kills += end.status != 0
            orphans.are_told()
    record(record_property, Visits("executor", "random", kills=kills))
