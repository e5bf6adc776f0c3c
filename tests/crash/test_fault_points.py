"""A process that dies at any of its fault points, one after the other, harms nobody else.

Points are in the core (`faults.h` makes one of each store, read-modify-write, copy and system
call), or lines of our Python. For every n a process is killed at its n-th point, until it passes
without being killed: a producer beside another one that goes on, an executor under producers that
wait in every way. Every day some of the points, the slow suite all of the core over the first
transport, a soak all of them.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import processes
from tests.crash import points, roles
from tests.crash.bystanders import Attentive, Orphans
from tests.crash.heirs import kill_moving
from tests.crash.points import SLOW, SOAK, End, Recorder, Victims
from tests.native.compiling import compile_c
from tests.processes import Served

NAME = "faults"


@pytest.fixture(scope="module")
def executor(transport: str) -> Iterator[Served]:
    with processes.served("faults.py", NAME, "--wait", "park") as executor:
        yield executor
        processes.hang_up()


@pytest.fixture
def bystander(executor: Served) -> Iterator[Attentive]:
    bystander = Attentive(executor)
    yield bystander
    bystander.has_all_slots()


def test_every_point_of_the_core_is_passed_by_what_is_killed(
    victims: Victims, supervisors: Victims, transport: str
) -> None:
    seen: set[str] = set()
    with Orphans("orphans") as orphans:
        supervisors.fork("executor", orphans.name, transport)
        assert "ready" in supervisors.line()
        ways = [*roles.WAYS]
        for way in ways:
            victims.fork("producer", orphans.name, way)
            seen.update(victims.end().seen)
            # On a busy machine no thread may have come too late for a slot.
            if way == "full" and len(ways) < 20 and not any("producer_notify" in s for s in seen):
                ways.append(way)
        orphans.call()
        seen.update(supervisors.end().seen)
        orphans.are_told()
        seen.update(kill_moving(supervisors, victims, transport).seen)
    # Nobody is sent a descriptor that has to be closed; over posix nobody waits on a futex.
    unreached = ("close_it", "futex_wait") if transport == "posix" else ("close_it",)
    never = {site for site in victims.sites if any(each in site for each in unreached)}
    assert set(victims.sites) - seen == never


@pytest.mark.no_transport
def test_control_an_atomic_word_is_written_at_a_point_or_it_does_not_compile(
    tmp_path: Path,
) -> None:
    include = f"-I{sysconfig.get_path('include')}"
    flags = ("-fsyntax-only", "-include", str(points.HERE / "faults.h"), include)
    source = tmp_path / "writes.c"
    for written, refused in (
        ("atomic_store_explicit(&header->tail, 1, memory_order_relaxed)", False),
        ("header->tail = 1", True),
        ("header->tail++", True),
        ("atomic_store(&header->tail, 1)", True),
    ):
        text = f"void writes(ring_header *header) {{ {written}; }}"
        source.write_text(f'#include "ring.h"\n{text}\n')
        assert bool(compile_c(source, tmp_path / "none", flags)) == refused, written


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("core", (31, 31), id="core here and there"),
        pytest.param("core", (1, 3), id="core", marks=SLOW),
        pytest.param("lines", (59, 59), id="lines here and there", marks=SLOW),
        pytest.param("core", (1, 1), id="core everywhere", marks=SOAK),
        pytest.param("lines", (1, 1), id="lines everywhere", marks=SOAK),
    ],
)
@pytest.mark.parametrize("way", roles.WAYS)
def test_nobody_is_harmed_by_a_producer_killed_at_any_point(
    victims: Victims,
    bystander: Attentive,
    transport: str,
    way: str,
    kind: str,
    steps: tuple[int, int],
    record_property: Recorder,
) -> None:
    def run(at: int) -> End:
        bystander.waits()
        victims.fork("producer", NAME, way, points=kind, at=at)
        end = victims.end()
        bystander.goes_on()
        return end

    points.enumerate_points(run, steps[transport != "linux"], record_property)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("core", (79, 79), id="core here and there"),
        pytest.param("core", (1, 3), id="core", marks=SLOW),
        pytest.param("lines", (59, 59), id="lines here and there", marks=SLOW),
        pytest.param("core", (1, 1), id="core everywhere", marks=SOAK),
        pytest.param("lines", (1, 1), id="lines everywhere", marks=SOAK),
    ],
)
def test_every_waiter_is_told_of_an_executor_killed_at_any_point(
    victims: Victims,
    transport: str,
    kind: str,
    steps: tuple[int, int],
    record_property: Recorder,
) -> None:
    with Orphans("orphans") as orphans:

        def run(at: int) -> End:
            victims.fork("executor", orphans.name, transport, points=kind, at=at)
            said = victims.line()
            if "ready" in said:
                orphans.call()
                end = victims.end()
            else:
                end = victims.ended(said)
            orphans.are_told()
            return end

        points.enumerate_points(run, steps[transport != "linux"], record_property)
