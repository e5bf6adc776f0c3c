"""What an executor counts, how that travels, and what is computed from it."""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.client.report import PERCENTILES, percentiles_ns, report
from shmbatch.errors import ProtocolError
from shmbatch.executor import failures as failures_module
from shmbatch.executor.batcher import SealReason
from shmbatch.executor.failures import Failures
from shmbatch.executor.statistics import Statistics
from shmbatch.protocol import snapshot
from shmbatch.protocol._core import Batch, Phases

BUCKETS = 976
REPORTED = {"count", "mean", *PERCENTILES, "max"}


def bucket(ns: int) -> int:
    """Where the core counts a time, by its own words and not by its arithmetic."""
    if ns < 16:
        return ns
    octave = ns.bit_length() - 5
    lower = 16 << octave
    return 16 * (octave + 1) + (ns - lower) // (1 << octave)


def histogram(times_ns: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for ns in times_ns:
        counts[bucket(ns)] += 1
    return counts


def packed(times_ns: list[int]) -> dict[str, Any]:
    return {
        "sum_ns": sum(times_ns),
        "max_ns": max(times_ns, default=0),
        "counts": struct.pack(f"={BUCKETS}Q", *histogram(times_ns)),
    }


def function_counts(**changed: Any) -> Any:
    return {
        "max_batch_size": 8,
        "wait_ns": 1_500_000,
        "slots": 64,
        "segment_nbytes": 20_000,
        "producers": 2,
        "waiting": 3,
        "in_flight": 1,
        "expired": 0,
        "cancelled": 7,
        "rejected": 0,
        "failed": {},
        "batch_sizes": {reason.value: {} for reason in SealReason},
        "halved": 0,
        "out_of_memory": 0,
        "memory_limit": None,
        "latencies": {"waiting": packed([])},
    } | changed


def taken(**functions: Any) -> Any:
    return {
        "version": "1.1",
        "name": "sums",
        "pid": 1,
        "transport": "linux",
        "device": "cpu",
        "state": "serving",
        "uptime_ns": 2_500_000_000,
        "admission": {
            "producers": 1,
            "producers_max": 9,
            "nbytes": 4096,
            "nbytes_max": 1 << 20,
            "refused": 2,
            "expelled": 3,
        },
        "functions": functions,
    }


def reported(**changed: Any) -> dict[str, Any]:
    """What is reported of one function."""
    function: dict[str, Any] = report(taken(add=function_counts(**changed)))["functions"]["add"]
    return function


# ---- percentiles -----------------------------------------------------------------------------

times = st.one_of(st.integers(0, 40), st.integers(0, 10**6), st.integers(0, 2**64 - 1))


@given(st.lists(times, min_size=1, max_size=300), st.integers(0, 1000))
def test_a_percentile_is_never_too_small_and_too_large_by_a_sixteenth_at_most(
    times_ns: list[int], thousandths: int
) -> None:
    rank = max(1, math.ceil(len(times_ns) * thousandths / 1000))
    exact = sorted(times_ns)[rank - 1]
    (found,) = percentiles_ns(histogram(times_ns), [thousandths], max(times_ns))
    assert exact <= found <= exact + exact // 16
    assert found <= max(times_ns)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=300), st.integers(0, 1000))
def test_short_times_are_exact(times_ns: list[int], thousandths: int) -> None:
    rank = max(1, math.ceil(len(times_ns) * thousandths / 1000))
    assert percentiles_ns(histogram(times_ns), [thousandths], 15) == [sorted(times_ns)[rank - 1]]


def test_the_whole_range_has_its_buckets() -> None:
    assert bucket(2**64 - 1) == BUCKETS - 1
    for at in range(BUCKETS):
        counts = [0] * BUCKETS
        counts[at] = 1
        (longest,) = percentiles_ns(counts, [500], 2**64)
        assert bucket(longest) == at
        assert bucket(longest + 1) == at + 1


def test_times_are_reported_in_microseconds() -> None:
    times_ns = [1_000] * 989 + [50_000] * 10 + [2_000_000]
    latency = reported(latencies={"running": packed(times_ns)})["latency_us"]["running"]
    assert set(latency) == REPORTED
    assert latency["count"] == 1000
    assert latency["mean"] == 3.489
    assert 1 <= latency["p50"] == latency["p90"] <= 1.0625
    assert 50 <= latency["p99"] == latency["p99.9"] <= 53.125
    assert latency["max"] == 2000


def test_where_nothing_was_timed_there_is_no_time() -> None:
    latency = reported()["latency_us"]["waiting"]
    assert latency == dict.fromkeys(REPORTED) | {"count": 0}


def test_the_core_counts_in_these_buckets() -> None:
    phases = Phases()
    for phase in range(4):
        sum_ns, max_ns, counts = phases.read(phase)
        assert (sum_ns, max_ns, counts) == (0, 0, bytes(8 * BUCKETS))
    assert Batch(4, phases).count == 0


# ---- totals ----------------------------------------------------------------------------------


def test_batches_are_counted_by_size_and_by_the_reason_they_were_sealed_for() -> None:
    statistics = Statistics()
    for calls, reason in ((4, "size"), (4, "size"), (1, "deadline"), (2, "deadline"), (4, "all")):
        statistics.count(calls, 0, SealReason(reason))
    function = reported(batch_sizes=statistics.batch_sizes())
    assert function["batches"] == 5
    assert function["calls_done"] == 15
    assert function["mean_batch_size"] == 3.0
    assert list(function["batch_sizes"].items()) == [("1", 1), ("2", 1), ("4", 3)]
    assert function["sealed"] == {"size": 2, "all": 1, "deadline": 2, "drain": 0}
    assert function["batch_sizes_by_reason"] == {
        "size": {"4": 2},
        "all": {"4": 1},
        "deadline": {"1": 1, "2": 1},
        "drain": {},
    }


def test_calls_that_never_ran_are_done_too_but_in_no_batch() -> None:
    statistics = Statistics()
    statistics.count(3, 2, SealReason.SIZE)
    statistics.count(0, 4, SealReason.SIZE)
    function = reported(
        batch_sizes=statistics.batch_sizes(),
        rejected=statistics.rejected,
        failed={"InputTypeError": 6, "ValueError": 1},
        expired=5,
    )
    assert function["batches"] == 1
    assert function["calls_done"] == 3 + 6 + 5
    assert function["calls_failed"] == 12
    assert function["failed"] == {"InputTypeError": 6, "DeadlineExceeded": 5, "ValueError": 1}


def test_what_is_reported_of_an_executor_has_these_keys() -> None:
    whole = report(taken(add=function_counts(), sub=function_counts()))
    assert list(whole) == [
        *("name", "pid", "version", "transport", "device", "state", "uptime_s"),
        *("admission", "functions"),
    ]
    assert whole["admission"] == taken()["admission"]
    assert whole["uptime_s"] == 2.5
    assert list(whole["functions"]) == ["add", "sub"]
    assert list(whole["functions"]["add"]) == [
        *("max_batch_size", "wait_ms", "producers", "slots", "segment_nbytes"),
        *("calls_waiting", "calls_in_flight", "calls_done", "calls_failed", "failed"),
        *("calls_cancelled", "batches", "mean_batch_size"),
        *("batch_sizes", "sealed", "batch_sizes_by_reason"),
        *("executions_halved", "executions_out_of_memory", "memory_limit"),
        "latency_us",
    ]
    assert whole["functions"]["add"]["mean_batch_size"] is None
    assert whole["functions"]["add"]["wait_ms"] == 1.5
    assert whole["functions"]["add"]["calls_cancelled"] == 7


# ---- the journey -----------------------------------------------------------------------------


@pytest.fixture
def travelled() -> Iterator[Any]:
    """What comes out of a descriptor that bytes were put into."""
    fds = []

    def load(data: bytes) -> Any:
        fd = os.memfd_create("test")
        fds.append(fd)
        os.write(fd, data)
        return snapshot.load(fd)

    yield load
    for fd in fds:
        os.close(fd)


def test_a_snapshot_of_any_size_arrives_as_it_was() -> None:
    many = {f"f{i}": function_counts(batch_sizes={"size": {i: 2**63}}) for i in range(300)}
    fd = snapshot.store(taken(**many))
    try:
        assert os.fstat(fd).st_size > 1 << 20
        os.lseek(fd, 17, os.SEEK_SET)  # whatever somebody else did to the offset they share
        assert snapshot.load(fd) == taken(**many)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"functions": {"add": {"producers": 1}}}),
        msgspec.msgpack.encode(taken(add=function_counts(failed={"ValueError": "many"}))),
        msgspec.msgpack.encode(taken(add=function_counts()) | {"pid": None}),
        msgspec.msgpack.encode(taken(add=function_counts()))[:-1],
    ],
    ids=["nothing", "no MessagePack", "deep", "empty", "list", "half", "text", "null", "cut"],
)
def test_what_is_no_snapshot_is_a_protocol_error(travelled: Any, data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"statistics are malformed: .*; the executor must"):
        travelled(data)


def test_a_descriptor_that_is_no_memory_is_a_protocol_error() -> None:
    out, into = os.pipe()
    try:
        with pytest.raises(ProtocolError, match="statistics are malformed"):
            snapshot.load(out)
    finally:
        os.close(out)
        os.close(into)


def test_a_histogram_of_another_size_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="a histogram has 12 bytes, not 7808"):
        reported(latencies={"waiting": packed([]) | {"counts": bytes(12)}})


# ---- failures --------------------------------------------------------------------------------


class Clock:
    now_ns = 5

    def __call__(self) -> int:
        return self.now_ns


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_of_a_kind_of_error_one_line_a_minute_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = Failures("sums.add", clock)
    failures.note(raised(ValueError("odd\nand more")), 3)
    assert failures.by_kind() == {}
    failures.settle()
    (line,) = said(caplog)
    assert line.startswith("3 calls of sums.add failed: ValueError: odd and more (")
    assert line.endswith(f"{raised.__code__.co_firstlineno + 2})")
    for _ in range(1000):
        failures.note(ValueError("odd"))
        failures.settle()
    assert said(caplog) == []
    failures.note(KeyError("x"))
    failures.settle()
    assert said(caplog) == ["1 call of sums.add failed: KeyError: 'x'"]
    clock.now_ns += failures_module.EVERY_NS
    failures.note(ValueError("even"), 2)
    failures.settle()
    assert said(caplog) == [
        "1002 calls of sums.add failed since the last line like this: ValueError: even"
    ]
    failures.settle()
    assert said(caplog) == []
    assert failures.by_kind() == {"ValueError": 1005, "KeyError": 1}


def test_the_traceback_is_logged_where_somebody_debugs(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures("sums.add", Clock())
    with caplog.at_level(logging.DEBUG, "shmbatch.executor"):
        failures.note(raised(ValueError("odd")))
        failures.settle()
    assert "Traceback" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "shmbatch.executor"):
        failures.note(raised(KeyError("odd")), 1, logging.INFO)
        failures.settle()
    assert "Traceback" not in caplog.text
    (record,) = caplog.records
    assert record.levelno == logging.INFO


def test_kinds_of_errors_have_a_limit_and_are_all_counted() -> None:
    failures = Failures("sums.add", Clock())
    for number in range(100):
        failures.note(type(f"E{number}" + "x" * 1000, (Exception,), {})(), 2)
        failures.settle()
    kinds = failures.by_kind()
    assert len(kinds) <= 33
    assert sum(kinds.values()) == 200
    assert kinds["other"] == 200 - 2 * (len(kinds) - 1)
    assert max(map(len, kinds)) <= 80


def test_an_error_that_cannot_be_printed_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Awkward(Exception):
        def __str__(self) -> str:
            raise SystemExit

    failures = Failures("sums.add", Clock())
    failures.note(Awkward())
    failures.settle()
    assert said(caplog) == [
        "1 call of sums.add failed: Awkward: <SystemExit while it was described>"
    ]
    assert failures.by_kind() == {"Awkward": 1}
