"""When spinning is tried, and how it gives up where it does not pay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.errors import ConfigError
from shmbatch.protocol._core import Spinning
from shmbatch.protocol.spinning import MODES, spinning_for, wait_mode

AUTO_NS = 20_000


def in_vain(how: Spinning) -> None:
    """Spin for nothing, and sleep."""
    how.vain += 1
    how.slept()


def sleeps_until_a_spin(how: Spinning) -> int:
    """Sleep until spinning is tried again; return how often that was."""
    for sleeps in range(1, 1000):
        how.slept()
        if how.spin_ns:
            return sleeps
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


def test_park_never_spins() -> None:
    how = spinning_for("park", AUTO_NS)

    for _ in range(500):
        assert how.spin_ns == 0
        how.slept()


def test_spin_always_spins_and_for_long() -> None:
    how = spinning_for("spin", AUTO_NS)

    for _ in range(500):
        assert how.spin_ns > 10 * AUTO_NS
        how.slept()


def test_auto_begins_with_a_spin() -> None:
    assert spinning_for("auto", AUTO_NS).spin_ns == AUTO_NS


def test_spins_in_vain_are_followed_by_ever_more_sleeps() -> None:
    how = spinning_for("auto", AUTO_NS)
    in_vain(how)
    assert how.spin_ns == 0

    sleeps = []
    for _ in range(11):
        sleeps.append(sleeps_until_a_spin(how))
        in_vain(how)

    assert sleeps == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]


def test_a_spin_that_succeeded_makes_the_next_failures_cheap_again() -> None:
    how = spinning_for("auto", AUTO_NS)
    for _ in range(5):
        in_vain(how)
        sleeps_until_a_spin(how)

    how.won += 3
    in_vain(how)

    assert sleeps_until_a_spin(how) == 1
    in_vain(how)
    assert sleeps_until_a_spin(how) == 2


def test_a_sleep_without_a_spin_in_vain_ends_no_spinning() -> None:
    """As of another thread, which slept before this one began to spin."""
    how = spinning_for("auto", AUTO_NS)
    for _ in range(3):
        how.slept()
        assert how.spin_ns == AUTO_NS


# Of each wait: how many spins have won since the last one, and whether its own was in vain.
WAITS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=100)


@given(mode=st.sampled_from(MODES), quiet=st.sampled_from([0, 600]), waits=WAITS)
def test_however_it_goes_the_rule_of_the_docstring_holds(
    mode: str, quiet: int, waits: list[tuple[int, bool]]
) -> None:
    how = spinning_for(mode, AUTO_NS)
    sleeps = 0

    for won, vain in [(0, True)] * quiet + waits:
        before = how.spin_ns
        how.won += won if before else 0
        how.vain += 1 if before and vain else 0
        how.slept()
        sleeps = 0 if before else sleeps + 1
        if mode == "spin":
            assert how.spin_ns == before > 0
        elif mode == "park":
            assert how.spin_ns == 0
        elif before:
            assert how.spin_ns == (0 if vain else AUTO_NS)
        elif sleeps >= 256:
            assert how.spin_ns == AUTO_NS
        else:
            assert how.spin_ns in (0, AUTO_NS)
