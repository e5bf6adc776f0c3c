"""The model of how long a batch keeps the executor."""

from __future__ import annotations

import pytest

from shmbatch.tuning.service import (
    Loaded,
    Overhead,
    Service,
    Timings,
    overhead,
    percentile,
    typical,
)


def timed(**total_ns: int) -> Timings:
    """Return timings without noise; of the total the function takes all but 1000 ns."""
    timings = Timings()
    for size, each in total_ns.items():
        timings.add(int(size[1:]), [each] * 5, [each - 1000] * 5)
    return timings


LINE = timed(n1=11_000, n2=12_000, n4=14_000, n8=18_000)  # 10_000 a batch and 1000 a call


def test_between_two_sizes_that_were_timed_is_a_straight_line() -> None:
    assert LINE.total_ns(4) == 14_000
    assert LINE.total_ns(5) == 15_000
    assert LINE.function_ns(6) == 15_000


def test_beyond_the_largest_each_call_takes_as_long_as_there() -> None:
    assert LINE.total_ns(16) == 36_000


def test_runs_of_one_size_are_added_up() -> None:
    timings = Timings()
    timings.add(1, [10], [5])
    timings.add(1, [30, 20], [5, 5])
    assert timings.total_ns(1) == 20
    assert timings.by_size[1].calls_per_s == pytest.approx(5e7)


def test_noise_is_that_of_the_nearest_size_and_does_not_change_the_mean() -> None:
    timings = Timings()
    timings.add(1, [100, 300], [1, 1])
    timings.add(8, [1000, 1000], [1, 1])
    assert timings.noise(2) == [0.5, 1.5]
    assert timings.noise(7) == [1.0, 1.0]


def test_what_load_adds_is_found_again_in_runs_that_follow_the_model() -> None:
    truth = Service(LINE, Overhead(slowdown=1.5, per_batch_ns=700, per_call_ns=50))
    runs = [Loaded(size, truth.period_ns(size), 1.5 * LINE.function_ns(size)) for size in (2, 4)]
    found = overhead(LINE, runs, [300], on_host=True)
    assert found.slowdown == pytest.approx(1.5)
    assert found.per_batch_ns == pytest.approx(700)
    assert found.per_call_ns == pytest.approx(50)
    assert found.way_p50_ns == 300
    assert Service(LINE, found).period_ns(8) == pytest.approx(truth.period_ns(8))


@pytest.mark.parametrize("periods", [(20_000, 14_000), (12_000, 60_000), (1, 1)])
def test_no_overhead_is_negative(periods: tuple[int, int]) -> None:
    runs = [
        Loaded(size, period, LINE.function_ns(size))
        for size, period in zip((2, 4), periods, strict=True)
    ]
    found = overhead(LINE, runs, [0], on_host=True)
    assert found.per_batch_ns >= 0
    assert found.per_call_ns >= 0


def test_one_run_gives_what_a_batch_adds() -> None:
    found = overhead(LINE, [Loaded(1, 12_000, 10_000)], [0], on_host=True)
    assert (found.slowdown, found.per_batch_ns, found.per_call_ns) == (1.0, 1000, 0.0)


def test_on_a_device_batches_may_take_less_than_alone() -> None:
    found = overhead(LINE, [Loaded(2, 6_000, 1), Loaded(4, 7_000, 1)], [0], on_host=False)
    assert (found.slowdown, found.per_batch_ns, found.per_call_ns) == (0.5, 0.0, 0.0)


def test_the_typical_run_is_the_one_in_the_middle() -> None:
    runs = [Loaded(8, 10, 5), Loaded(8, 1000, 6), Loaded(8, 12, 700)]
    assert typical(runs) == Loaded(8, 12, 6)


def test_a_padded_batch_takes_as_long_as_the_size_it_has_then() -> None:
    service = Service(LINE, Overhead(per_call_ns=100), batch_sizes=(1, 8))
    assert service.period_ns(1) == 11_100
    assert service.period_ns(2) == 18_200, "padding rows are no calls"


def test_times_are_drawn_from_those_that_were_seen() -> None:
    timings = Timings()
    timings.add(1, [100, 300], [1, 1])
    draw = Service(timings, Overhead()).drawing(0)
    assert {draw(1) for _ in range(50)} == {100, 300}


def test_an_unusually_long_batch_is_as_much_longer_as_when_alone() -> None:
    timings = Timings()
    timings.add(1, [100] * 98 + [500] * 2, [1] * 100)
    assert Service(timings, Overhead(slowdown=2)).p99_ns(1) == 1000


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile(range(1, 101), 0.5) == 51
    assert percentile(range(1, 101), 0.99) == 100
    assert percentile([7], 0.99) == 7
