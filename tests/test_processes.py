"""When batches run, over real processes: producers of random habits, one executor, every trace
looked at afterwards.

Checked are I1 (no batch exceeds max_batch_size), I2 (every call is in exactly one batch), I3
(its outcome reaches its caller) and I6 (all arguments of one call stand at one index).
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


@pytest.fixture(scope="module", params=["linux", "posix"])
def executor(request: pytest.FixtureRequest) -> Iterator[Served]:
    with processes.served("traced.py", "traced", "--transport", request.param) as executor:
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
        for (function, _, first, count, _), results in zip(
            lines, json.loads(producer.line()), strict=True
        ):
            # I3, I6: each caller got what it gave, all of it from one index.
            keys = range(first, first + count)
            assert [result[:4] for result in results] == [producing.expected(k) for k in keys]
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
        after = executor.statistics(function)
        assert after["calls_done"] - before[function]["calls_done"] == len(results)  # I2
        assert after["calls_failed"] == 0
