"""Decides whether the checker of weak memory allows what C11 allows, and nothing else.

Each litmus test has an outcome that is known to be allowed or forbidden in RC11.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.model.tso_checker import Model, Process, Program, View, Violation
from tests.model.weak_checker import (
    ACQ_REL,
    ACQUIRE,
    RELAXED,
    RELEASE,
    add,
    explore,
    fence,
    load,
    read,
    sleep_on,
    store,
    wake,
    write,
)


def thread(steps: tuple[tuple[str, str, int, str], ...]) -> Program:
    """Return what was read."""
    seen: tuple[int, ...] = ()
    at = 0
    while at < len(steps):
        kind, word, value, order = steps[at]
        if kind == "R":
            got = yield load(word, order)
            seen = (*seen, got)
            del got
        elif kind == "W":
            yield store(word, value, order)
        elif kind == "U":
            got = yield add(word, value, order)
            seen = (*seen, got)
            del got
        else:
            yield fence(order)
        at += 1
        del kind, word, value, order
    return seen


def steps(text: str) -> tuple[tuple[str, str, int, str], ...]:
    """Read "Wx1.rel Rx.acq F.sc Ux1.acq_rel"."""
    orders = {
        "rlx": RELAXED,
        "acq": ACQUIRE,
        "rel": RELEASE,
        "acq_rel": ACQ_REL,
        "sc": "seq_cst",
    }
    found = []
    for each in text.split():
        what, order = each.split(".")
        value = int(what[2:]) if what[2:] else 0
        found.append((what[0], what[1:2], value, orders[order]))
    return tuple(found)


def outcomes(*texts: str) -> set[tuple[tuple[int, ...], ...]]:
    """Return what the threads can have read when all have finished, and the last values."""
    found = set()
    names = [f"T{number}" for number in range(len(texts))]
    words = sorted({each[1] for text in texts for each in steps(text) if each[1]})

    def collect(view: View) -> None:
        if all(view.finished(name) for name in names):
            reads = tuple(view.local(name, "return") for name in names)
            found.add((*reads, tuple(view.word(word) for word in words)))

    explore(
        Model(
            words=dict.fromkeys(words, 0),
            processes=tuple(
                Process(name, functools.partial(thread, steps(text)))
                for name, text in zip(names, texts, strict=True)
            ),
            good=lambda view: all(view.finished(name) for name in names),
            invariant=collect,
        )
    )
    return found


# Name, threads, what they read, whether they can.
READS = [
    ("MP", ("Wx1.rlx Wy1.rlx", "Ry.rlx Rx.rlx"), ((), (1, 0)), True),
    ("MP+rel+acq", ("Wx1.rlx Wy1.rel", "Ry.acq Rx.rlx"), ((), (1, 0)), False),
    ("MP+rel", ("Wx1.rlx Wy1.rel", "Ry.rlx Rx.rlx"), ((), (1, 0)), True),
    ("MP+acq", ("Wx1.rlx Wy1.rlx", "Ry.acq Rx.rlx"), ((), (1, 0)), True),
    ("MP+fences", ("Wx1.rlx F.rel Wy1.rlx", "Ry.rlx F.acq Rx.rlx"), ((), (1, 0)), False),
    (
        "MP through a relaxed RMW",
        ("Wx1.rlx Wy1.rel", "Uy1.rlx", "Ry.acq Rx.rlx"),
        ((), (1,), (2, 0)),
        False,
    ),
    (
        "MP through a later relaxed store",
        ("Wx1.rlx Wy1.rel Wy2.rlx", "Ry.acq Rx.rlx"),
        ((), (2, 0)),
        True,
    ),
    ("SB+rel+acq", ("Wx1.rel Ry.acq", "Wy1.rel Rx.acq"), ((0,), (0,)), True),
    ("SB+fences", ("Wx1.rlx F.sc Ry.rlx", "Wy1.rlx F.sc Rx.rlx"), ((0,), (0,)), False),
    ("SB+one fence", ("Wx1.rlx F.sc Ry.rlx", "Wy1.rlx Rx.rlx"), ((0,), (0,)), True),
    (
        "SB through RMWs of one word",
        ("Wx1.rlx Uz1.acq_rel Ry.rlx", "Wy1.rlx Uz1.acq_rel Rx.rlx"),
        ((0, 0), (1, 0)),
        False,
    ),
    (
        "SB through RMWs of two words",
        ("Wx1.rlx Uz1.acq_rel Ry.rlx", "Wy1.rlx Uw1.acq_rel Rx.rlx"),
        ((0, 0), (0, 0)),
        True,
    ),
    ("LB", ("Rx.rlx Wy1.rlx", "Ry.rlx Wx1.rlx"), ((1,), (1,)), False),
    (
        "IRIW+rel+acq",
        ("Wx1.rel", "Wy1.rel", "Rx.acq Ry.acq", "Ry.acq Rx.acq"),
        ((), (), (1, 0), (1, 0)),
        True,
    ),
    (
        "IRIW+fences",
        ("Wx1.rlx", "Wy1.rlx", "Rx.rlx F.sc Ry.rlx", "Ry.rlx F.sc Rx.rlx"),
        ((), (), (1, 0), (1, 0)),
        False,
    ),
    ("WRC+rel+acq", ("Wx1.rlx", "Rx.acq Wy1.rel", "Ry.acq Rx.rlx"), ((), (1,), (1, 0)), False),
    ("WRC+rlx", ("Wx1.rlx", "Rx.rlx Wy1.rel", "Ry.acq Rx.rlx"), ((), (1,), (1, 0)), False),
    ("WRC", ("Wx1.rlx", "Rx.rlx Wy1.rlx", "Ry.acq Rx.rlx"), ((), (1,), (1, 0)), True),
    ("CoRR", ("Wx1.rlx Wx2.rlx", "Rx.rlx Rx.rlx"), ((), (2, 1)), False),
    (
        "CoRR of two",
        ("Wx1.rlx", "Wx2.rlx", "Rx.rlx Rx.rlx", "Rx.rlx Rx.rlx"),
        ((), (), (1, 2), (2, 1)),
        False,
    ),
    ("CoWR", ("Wx1.rlx Rx.rlx", "Wx2.rlx"), ((0,), ()), False),
    ("atomicity", ("Ux1.rlx", "Ux1.rlx"), ((0,), (0,)), False),
]

# The same with the last values of x and y.
LAST = [
    ("2+2W+rel", ("Wx1.rel Wy2.rel", "Wy1.rel Wx2.rel"), (1, 1), True),
    ("2+2W+fences", ("Wx1.rlx F.sc Wy2.rlx", "Wy1.rlx F.sc Wx2.rlx"), (1, 1), False),
    ("CoWW", ("Wx1.rlx Wx2.rlx", "Wy1.rlx"), (1, 1), False),
]


def test_threads_read_what_c11_allows_and_nothing_else() -> None:
    for name, texts, reads, allowed in READS:
        assert (reads in {outcome[:-1] for outcome in outcomes(*texts)}) == allowed, name


def test_stores_end_in_an_order_that_c11_allows_and_in_no_other() -> None:
    for name, texts, last, allowed in LAST:
        assert (last in {outcome[-1] for outcome in outcomes(*texts)}) == allowed, name


# ---- plain memory, and sleep ----------------------------------------------------------------


def writes(order: str) -> Program:
    yield write("data", 1)
    yield store("flag", 1, order)


def reads(order: str) -> Program:
    flag = yield load("flag", order)
    if flag:
        value = yield read("data")
        if value != 1:
            raise Violation("stale")


def reads_then_says(order: str) -> Program:
    yield read("data")
    yield store("flag", 1, order)


def writes_when_told(order: str) -> Program:
    flag = yield load("flag", order)
    if flag:
        yield write("data", 1)


@pytest.mark.parametrize(
    ("one", "other", "race"),
    [
        pytest.param(
            functools.partial(writes, RELEASE), functools.partial(reads, ACQUIRE), None, id="right"
        ),
        pytest.param(
            functools.partial(writes, RELAXED),
            functools.partial(reads, ACQUIRE),
            "data race: T1 reads data",
            id="written, then read",
        ),
        pytest.param(
            functools.partial(reads_then_says, RELEASE),
            functools.partial(writes_when_told, RELAXED),
            "data race: T1 writes data",
            id="read, then written",
        ),
    ],
)
def test_a_data_race_is_found_whatever_is_read(
    one: Callable[[], Program], other: Callable[[], Program], race: str | None
) -> None:
    model = Model(
        words={"data": 0, "flag": 0},
        processes=(Process("T0", one), Process("T1", other)),
        good=lambda view: True,
    )
    assert explore(model, ("data",)).violation == race


def sleeper() -> Program:
    yield sleep_on("word", 0)


def waker(stores: bool) -> Program:
    if stores:
        yield store("word", 1, RELAXED)
    yield wake("word")


@pytest.mark.parametrize("stores", [True, False])
def test_a_sleeper_sees_what_its_waker_stored_before(stores: bool) -> None:
    model = Model(
        words={"word": 0},
        processes=(
            Process("sleeper", sleeper),
            Process("waker", functools.partial(waker, stores)),
        ),
        good=lambda view: view.finished("sleeper"),
    )
    result = explore(model)
    assert (result.violation is None) == stores
