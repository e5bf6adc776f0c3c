"""When spinning is tried, and how it gives up where it does not pay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.errors import ConfigError
from shmbatch.protocol import spinning as module
from shmbatch.protocol.spinning import MODES, Spinning, wait_mode

AUTO_NS = 20_000


def with_cpus(cpus: int, mode: str = "auto") -> Spinning:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "usable_cpus", lambda: cpus)
        return Spinning(mode, AUTO_NS)


def parks_until_a_spin(spinning: Spinning, *, won: int = 0, active: int = 1) -> int:
    """Park until spinning is tried again; return how often that was."""
    for parks in range(1, 1000):
        spinning.parked(won=won, active=active)
        if spinning.spin_ns:
            return parks
    raise AssertionError("it never spins again")


# ---- the mode ----


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_is_given_wins_over_the_environment(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_WAIT", "nonsense")

    assert wait_mode(mode) == mode


@pytest.mark.parametrize("mode", MODES)
def test_without_one_the_environment_says(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMBATCH_WAIT", mode)

    assert wait_mode(None) == mode


def test_without_either_it_is_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMBATCH_WAIT", raising=False)

    assert wait_mode(None) == "auto"


@pytest.mark.parametrize("mode", ["", "Spin", "yield"])
def test_an_unknown_mode_is_refused_by_the_name_of_its_source(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = re.escape(f"is {mode!r}; it must be one of auto, spin, park")
    with pytest.raises(ConfigError, match=f"^wait {known}$"):
        wait_mode(mode)
    monkeypatch.setenv("SHMBATCH_WAIT", mode)
    with pytest.raises(ConfigError, match=f"^SHMBATCH_WAIT {known}$"):
        wait_mode(None)


# ---- whether to spin ----


def test_auto_spins_where_a_cpu_is_spare() -> None:
    assert with_cpus(2).spin_ns == AUTO_NS


def test_auto_never_spins_on_a_single_cpu() -> None:
    spinning = with_cpus(1)

    for _ in range(500):
        assert spinning.spin_ns == 0
        spinning.parked(won=0, active=0)


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_park_never_spins(cpus: int) -> None:
    spinning = with_cpus(cpus, "park")

    for _ in range(500):
        assert spinning.spin_ns == 0
        spinning.parked(won=0, active=0)


@pytest.mark.parametrize("cpus", [1, 2])
def test_spin_always_spins_and_for_long(cpus: int) -> None:
    spinning = with_cpus(cpus, "spin")

    for _ in range(500):
        assert spinning.spin_ns > 10 * AUTO_NS
        spinning.parked(won=0, active=99)


def test_spins_in_vain_are_followed_by_ever_more_parks() -> None:
    spinning = with_cpus(2)
    spinning.parked(won=0, active=1)  # the first spin was in vain
    assert spinning.spin_ns == 0

    parks = []
    for _ in range(9):
        parks.append(parks_until_a_spin(spinning))
        spinning.parked(won=0, active=1)

    assert parks == [1, 2, 4, 8, 16, 32, 64, 64, 64]


def test_a_spin_that_succeeded_makes_the_next_failures_cheap_again() -> None:
    spinning = with_cpus(2)
    for _ in range(5):
        spinning.parked(won=0, active=1)
        parks_until_a_spin(spinning)

    spinning.parked(won=3, active=1)  # three have won since, this one was in vain

    assert parks_until_a_spin(spinning, won=3) == 1
    spinning.parked(won=3, active=1)
    assert parks_until_a_spin(spinning, won=3) == 2


def test_with_as_many_active_producers_as_cpus_nobody_spins() -> None:
    spinning = with_cpus(4)
    spinning.parked(won=0, active=4)
    for _ in range(500):
        spinning.parked(won=0, active=4)
        assert spinning.spin_ns == 0

    spinning.parked(won=0, active=3)
    assert spinning.spin_ns == AUTO_NS


@given(
    cpus=st.integers(1, 8),
    mode=st.sampled_from(MODES),
    history=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10)), max_size=300),
)
def test_however_it_goes_the_rule_of_the_docstring_holds(
    cpus: int, mode: str, history: list[tuple[int, int]]
) -> None:
    spinning = with_cpus(cpus, mode)
    won = parks = 0

    for wins, active in history:
        won += wins
        before = spinning.spin_ns
        spinning.parked(won=won, active=active)
        parks = 0 if before else parks + 1
        if mode == "spin":
            assert spinning.spin_ns == before > 0
        elif mode == "park" or cpus == 1:
            assert spinning.spin_ns == 0
        else:
            assert spinning.spin_ns in (0, AUTO_NS)
            if spinning.spin_ns:
                assert active < cpus
            if before:
                assert spinning.spin_ns == 0  # after a spin in vain it parks at least once
            if parks >= 64 and active < cpus:
                assert spinning.spin_ns == AUTO_NS
