"""What to propose of what was measured."""

from __future__ import annotations

import pytest

from shmbatch.errors import ConfigError
from shmbatch.tuning.proposal import Proposal, ms, proposed, stepped_sizes, with_sizes
from shmbatch.tuning.service import Overhead, Service, Timings
from shmbatch.tuning.variants import Parameters

MS = 1e6


def service(per_batch_ms: float, per_call_ms: float, way_ms: float = 0.0) -> Service:
    """Return a function whose time is a straight line, timed to 64 calls."""
    timings = Timings()
    for size in (1, 2, 4, 8, 16, 32, 64):
        total_ns = int((per_batch_ms + per_call_ms * size) * MS)
        timings.add(size, [total_ns] * 3, [total_ns] * 3)
    return Service(timings, Overhead(way_ns=[way_ms * MS]))


SIZES = [1, 2, 4, 8, 16, 32, 64]


def propose(of: Service, target_ms: float, limit: str = "") -> Proposal:
    return proposed(of, SIZES, target_ms * MS, "app.f", limit)


def test_the_largest_batch_is_one_that_twice_fits_into_the_target() -> None:
    found = propose(service(10, 1, way_ms=0.5), 50)
    assert found.parameters.max_batch_size == 8, "16 take 26 ms, 8 take 18"
    assert "twice its 18.0 ms fit into the target, so a call" in found.reasons["max_batch_size"]


def test_what_is_left_of_the_target_is_for_waiting() -> None:
    found = propose(service(10, 1, way_ms=0.5), 50)
    assert found.parameters.wait_ms == 31, "50 less 18 and 0.5, rounded down"
    assert found.reasons["wait_ms"] == (
        "50 ms less 18.0 ms for a full batch and 0.500 ms for the way there and back, both p99"
    )


def test_a_larger_batch_has_to_gain_something() -> None:
    found = propose(service(0.1, 1), 1000)
    assert found.parameters.max_batch_size == 2, "2.1 ms for 2, which is 1.05 each, is near 1.0"
    assert found.reasons["max_batch_size"].endswith("larger batches gain less than 5 %")


def test_why_there_was_nothing_larger_is_said() -> None:
    found = propose(service(100, 0.1), 1000, limit="--max allows no more than 64")
    assert found.parameters.max_batch_size == 64
    assert found.reasons["max_batch_size"].endswith("; --max allows no more than 64")


def test_a_target_that_not_even_one_call_meets_is_refused_with_what_can_be() -> None:
    with pytest.raises(ConfigError, match=r"cannot meet 5 ms: a single call takes 11\.5 ms, "):
        propose(service(10, 1, way_ms=0.5), 5)


def test_where_only_lone_calls_meet_the_target_it_says_so() -> None:
    found = propose(service(10, 1), 15)
    assert found.parameters.max_batch_size == 1
    assert "a call that finds the executor busy is late" in found.reasons["max_batch_size"]


def test_there_is_no_negative_time_to_wait() -> None:
    slow_at_times = service(1, 0)
    for timing in slow_at_times.timings.by_size.values():
        timing.total_ns.append(int(90 * MS))
    assert propose(slow_at_times, 20).parameters.wait_ms == 0


def steps(between_ms: float, power_ms: float = 10) -> Timings:
    """Return times of a function that takes one for powers of two, and another in between."""
    timings = Timings()
    for size in stepped_sizes(8):
        total_ns = int((power_ms if size in (4, 8) else between_ms) * MS)
        timings.add(size, [total_ns] * 3, [total_ns] * 3)
    return timings


def sized(of: Timings, largest: int = 8, graphs: bool = False, arrays: bool = True) -> Proposal:
    return with_sizes(Proposal(Parameters(largest, 3)), of, graphs, arrays)


def test_sizes_are_allowed_where_padding_to_them_saves_time() -> None:
    found = sized(steps(between_ms=20))
    assert found.parameters == Parameters(8, 3, (1, 2, 4, 8))
    assert found.reasons["batch_sizes"] == (
        "padded to them, a batch between takes 50% less; 3 calls take 20.0 ms as they are, "
        "10.0 ms padded"
    )


@pytest.mark.parametrize("between_ms", [5, 10, 10.5])
def test_any_size_is_allowed_where_padding_saves_nothing(between_ms: float) -> None:
    assert sized(steps(between_ms)).parameters == Parameters(8, 3)


def test_microseconds_are_not_worth_padding() -> None:
    assert sized(steps(0.005, power_ms=0.003)).parameters.batch_sizes is None
    assert sized(steps(0.050, power_ms=0.030)).parameters.batch_sizes == (1, 2, 4, 8)


def test_only_arrays_of_fixed_shape_are_padded() -> None:
    found = sized(steps(20), arrays=False)
    assert found.parameters.batch_sizes is None
    assert found.reasons["batch_sizes"] == "not all parameters are arrays of fixed shape"


def test_graphs_have_a_size_each() -> None:
    assert sized(steps(10), graphs=True).parameters.batch_sizes == (1, 2, 4, 8)


def test_a_largest_batch_that_is_no_power_of_two_is_allowed() -> None:
    assert sized(steps(20), largest=7).parameters.batch_sizes == (1, 2, 4, 7)
    assert sized(steps(20), largest=2).parameters.batch_sizes is None, "nothing to pad"


def test_steps_are_looked_for_below_powers_of_two_and_halfway() -> None:
    assert stepped_sizes(16) == [3, 4, 6, 7, 8, 12, 15, 16]
    assert stepped_sizes(2) == []


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0.000 ms"), (1234, "0.001 ms"), (18 * MS, "18.0 ms"), (2e9, "2000 ms")]
)
def test_durations_have_three_digits(ns: float, text: str) -> None:
    assert ms(ns) == text
