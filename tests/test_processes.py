"""When batches run, over real processes: producers of random habits, one executor, every trace
looked at afterwards.

Checked are I1 (no batch exceeds max_batch_size), I2 (every call is in exactly one batch), I3
(its outcome reaches its caller), I4 as far as it can be without a clock (nothing but a deadline
seals a batch that is not full), I5 (calls of one producer thread run in order), I6 (all arguments
of one call stand at one index) and I7 (neither errors nor deaths change anybody else's outcomes).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import traced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import processes, producing
from tests.processes import Program, Served

PRODUCERS = 3

SEALED = ("size", "all", "deadline", "drain")

# In these ways one thread makes all calls of a plan, one after the other, in the order of keys.
IN_ORDER = {"remote", "spawn", "backwards", "map", "unordered", "map.aio"}

# One producer makes the calls of several plans at once; keys are given out when it is done.
plans = st.lists(
    st.tuples(
        st.sampled_from(sorted(traced.FUNCTIONS)),
        st.sampled_from(producing.WAYS),
        st.integers(1, 120),  # calls
        st.integers(1, 24),  # of them in one crowd
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def executor(transport: str) -> Iterator[Served]:
    with processes.served("traced.py", "traced") as executor:
        yield executor


@pytest.fixture(scope="module")
def producers(executor: Served) -> Iterator[list[Program]]:
    """Processes that live through all examples; each keeps its connections."""
    code = "from tests import producing; producing.main()"
    started = [Program(code, executor.name) for _ in range(PRODUCERS)]
    yield started
    for program in started:
        program.close()


@settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(habits=st.lists(plans, min_size=PRODUCERS, max_size=PRODUCERS))
def test_every_call_is_in_one_batch_and_its_result_reaches_its_caller(
    executor: Served, producers: list[Program], habits: list[list[tuple[Any, ...]]]
) -> None:
    before = {name: executor.statistics(name) for name in traced.FUNCTIONS}
    first_key = 1
    told = []
    for producer, habit in zip(producers, habits, strict=True):
        lines = []
        for function, way, count, crowd in habit:
            lines.append((function, way, first_key, count, crowd))
            first_key += count
        producer.tell(json.dumps(lines))
        told.append(lines)

    traces: dict[str, list[list[int]]] = defaultdict(list)
    for producer, lines in zip(producers, told, strict=True):
        for (function, way, first, count, _), results in zip(
            lines, json.loads(producer.line()), strict=True
        ):
            # I3, I6: each caller got what it gave, all of it from one index.
            keys = range(first, first + count)
            assert [result[:4] for result in results] == [producing.expected(k) for k in keys]
            if way in IN_ORDER:
                places = [(number, index) for *_, number, index in results]
                assert places == sorted(places)  # I5
            traces[function] += results

    for function, results in traces.items():
        batches: dict[int, list[list[int]]] = defaultdict(list)
        for result in results:
            batches[result[5]].append(result)
        for rows in batches.values():
            (size,) = {row[4] for row in rows}
            assert size <= traced.FUNCTIONS[function]  # I1
            # I2: as many callers heard of this batch as were in it, each from its own index.
            assert sorted(row[6] for row in rows) == list(range(size))
        check_statistics(executor, function, before[function], len(results))


def check_statistics(executor: Served, function: str, before: dict[str, Any], calls: int) -> None:
    """I2 and I4, by what the executor has counted since *before*."""
    full = traced.FUNCTIONS[function]

    def counted() -> dict[str, Any] | None:
        # A batch is counted when its callers have their results already.
        after = executor.statistics(function)
        return after if after["calls_done"] - before["calls_done"] >= calls else None

    after = processes.wait_until(counted, "every batch is counted")
    assert after["calls_done"] - before["calls_done"] == calls  # I2
    assert after["calls_failed"] == 0
    batches = {
        int(size): count - before["batch_sizes"].get(size, 0)
        for size, count in after["batch_sizes"].items()
    }
    sealed = {reason: after["sealed"][reason] - before["sealed"][reason] for reason in SEALED}
    assert sum(size * count for size, count in batches.items()) == calls
    assert sum(batches.values()) == sum(sealed.values())
    # I4. A deadline may find a batch full; nothing else may find it not full.
    smaller = sum(count for size, count in batches.items() if size < full)
    assert sealed["size"] <= batches.get(full, 0)
    assert smaller <= sealed["deadline"]
    assert sealed["all"] == sealed["drain"] == 0


# Makes calls of which each third fails, in several ways, and checks each outcome; for ever.
CALLER = """
import itertools, select, sys, shmbatch
picky = shmbatch.connect(f"{sys.argv[1]}.picky")
first = int(sys.argv[2])

def right(x, outcome):
    if x % 3:
        return outcome == 7 * x
    return type(outcome) is ValueError and outcome.args == (x,)

def outcome_of(ask):
    try:
        return ask()
    except Exception as error:
        return error

print("connected", flush=True)
for turn in itertools.count():
    told = select.select([sys.stdin], [], [], 0)[0]
    xs = range(first + 40 * turn, first + 40 * turn + 40)
    pending = [picky.spawn(x) for x in xs]
    assert all(map(right, xs, picky.map(xs, return_exceptions=True)))
    assert all(right(x, outcome_of(lambda: picky.remote(x))) for x in xs[:6])
    assert all(right(x, outcome_of(call.get)) for x, call in zip(xs, pending))
    if turn == 0:
        print("calls", flush=True)
    if told:
        break
print(turn, flush=True)
"""


def test_neither_errors_nor_deaths_change_the_outcomes_of_others(executor: Served) -> None:
    """I7. Six producers die, each in the middle of its calls, while two others go on."""
    before = executor.statistics("picky")
    with Program(CALLER, executor.name, 0) as one, Program(CALLER, executor.name, 10**6) as other:
        for program in (one, other):
            assert [program.line(), program.line()] == ["connected", "calls"]
        for number in range(2, 8):
            with Program(CALLER, executor.name, number * 10**6) as victim:
                assert victim.line() == "connected"
                if number % 2:
                    assert victim.line() == "calls"
                victim.kill()
        for program in (one, other):
            program.tell()
            assert int(program.line()) > 0  # turns, and every outcome in them was right
            assert program.wait() == 0
    processes.wait_until(
        lambda: executor.statistics("picky")["producers"] == before["producers"],
        "they are detached",
    )
    assert executor.process.poll() is None
    assert "broke the protocol" not in executor.logged
    assert executor.statistics("picky")["calls_failed"] > before["calls_failed"]
