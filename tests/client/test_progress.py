"""`progress=True`: a bar on standard error, and nothing else that is different."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import shmbatch
from shmbatch.client import progress
from shmbatch.errors import ConfigError
from shmbatch.protocol.names import Address
from tests import processes
from tests.processes import Served


@pytest.fixture(scope="module")
def executor(transport: str) -> Iterator[Served]:
    with processes.served("calls.py", "calls") as executor:
        yield executor


@pytest.fixture
def add(executor: Served) -> shmbatch.Function:
    return executor.connect("add")


async def collected(results: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in results]


async def asynchronous(count: int) -> AsyncIterator[int]:
    for each in range(count):
        yield each


PAIRS = [(x, 1) for x in range(30)]
SUMS = [x + 1 for x in range(30)]

VERBS: dict[str, tuple[Callable[[shmbatch.Function], Any], Any, str]] = {
    "map": (lambda f: list(f.map(range(30), [1] * 40, progress=True)), SUMS, "30/30"),
    "starmap": (lambda f: list(f.starmap(PAIRS, progress=True)), SUMS, "30/30"),
    "for_each": (lambda f: f.for_each(range(30), [1] * 30, progress=True), None, "30/30"),
    "map.aio": (
        lambda f: asyncio.run(collected(f.map.aio(range(30), [1] * 30, progress=True))),
        SUMS,
        "30/30",
    ),
    "starmap.aio": (
        lambda f: asyncio.run(collected(f.starmap.aio(PAIRS, progress=True))),
        SUMS,
        "30/30",
    ),
    "for_each.aio": (
        lambda f: asyncio.run(f.for_each.aio(range(30), [1] * 30, progress=True)),
        None,
        "30/30",
    ),
    "of who knows how many": (
        lambda f: list(f.map(iter(range(30)), [1] * 30, progress=True)),
        SUMS,
        "30/?",
    ),
    "of an async iterator": (
        lambda f: asyncio.run(collected(f.map.aio(asynchronous(30), [1] * 40, progress=True))),
        SUMS,
        "30/?",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_bar_on_standard_error_counts_the_results(
    add: shmbatch.Function, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    call, expected, counted = VERBS[verb]
    assert call(add) == expected
    told = capsys.readouterr()
    assert told.out == ""
    assert "calls.add" in told.err
    assert counted in told.err


def test_without_it_nothing_is_written(
    add: shmbatch.Function, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(add.map(range(30), [1] * 30)) == SUMS
    assert capsys.readouterr() == ("", "")


def test_leaving_early_ends_the_bar_where_it_was_and_gives_the_calls_up(
    add: shmbatch.Function, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = add.connect()
    free = connection.ring.free_slots
    results = add.map(range(30), [1] * 30, progress=True)
    assert [next(results), next(results)] == [1, 2]
    results.close()  # type: ignore[attr-defined]
    assert "2/30" in capsys.readouterr().err
    processes.wait_until(lambda: connection.ring.free_slots == free, "all slots are free again")

    async def leave() -> int:
        results = add.map.aio(range(30), [1] * 30, progress=True)
        try:
            async for each in results:
                return int(each)
        finally:
            await results.aclose()  # type: ignore[attr-defined]
        raise AssertionError

    assert asyncio.run(leave()) == 1
    assert "/30" in capsys.readouterr().err


def test_a_call_that_fails_ends_the_bar_and_raises(
    executor: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = executor.connect("fails")
    with pytest.raises(KeyError):
        fails.for_each(range(5), progress=True)
    assert "0/5" in capsys.readouterr().err
    found = list(fails.map(range(5), progress=True, return_exceptions=True))
    assert [type(each) for each in found] == [KeyError] * 5
    assert "5/5" in capsys.readouterr().err


def test_two_bars_may_be_open_at_once(
    add: shmbatch.Function, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = add.map(range(3), [0] * 3, progress=True)
    assert [list(add.map([x, x], [1, 1], progress=True)) for x in outer] == [
        [1, 1],
        [2, 2],
        [3, 3],
    ]
    assert capsys.readouterr().err.count("3/3") >= 1


def test_what_the_results_come_from_is_closed_with_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = []

    def results() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append("closed")

    inner = results()  # held here, so that nothing else closes it
    shown = progress.shown(inner, "f", ([0] * 20, range(10)))
    assert next(shown) == 0
    shown.close()  # type: ignore[attr-defined]
    assert closed == ["closed"]
    assert "1/10" in capsys.readouterr().err


@pytest.mark.no_transport
def test_where_rich_is_missing_one_sentence_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    function = shmbatch.Function(Address("nobody", "f"))
    for call in (
        lambda: function.map([1], progress=True),
        lambda: function.starmap([(1,)], progress=True),
        lambda: function.for_each([1], progress=True),
        lambda: function.map.aio([1], progress=True),
        lambda: function.starmap.aio([(1,)], progress=True),
        lambda: asyncio.run(function.for_each.aio([1], progress=True)),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == (
            "progress=True needs rich; install it with `pip install 'shmbatch[cli]'`"
        )


@pytest.mark.no_transport
def test_rich_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, shmbatch.client.function, shmbatch.client.progress; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "rich" not in loaded
