"""A simulation: who ran with whom, when and why, in a time that only a test moves."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

import shmbatch
from shmbatch import errors, testing
from shmbatch.testing import BatchRecord, SealReason, Simulation
from tests.testing import functions
from tests.testing.functions import Counter, add_slowly, app, rows_seen, scaled, small

pytestmark = pytest.mark.no_transport  # there are no processes


def test_a_batch_waits_for_its_oldest_call_and_not_a_nanosecond_longer() -> None:
    with Simulation(scaled) as simulation:
        producer = simulation.producer()
        first = producer.call(1.5, 2)
        simulation.advance(0.002)
        second = producer.call(x := 4.0, by=3)
        simulation.advance(0.002_999_999)
        assert not first.done()
        simulation.advance(1e-9)
        assert (first.get(), second.get()) == (3.0, 3 * x)
        assert simulation.now == 0.005


def test_what_became_of_the_batches_is_data() -> None:
    with Simulation(app, duration=0.001) as simulation:
        adder, other = simulation.producer(add_slowly), simulation.producer("scaled")
        for number in range(3):
            adder.call(number, number)
        other.call(1.0, 1)
        simulation.run()
        assert simulation.batches == [
            BatchRecord("tested.add_slowly", (1, 2), 2, SealReason.SIZE, 0.0, 0.251),
            BatchRecord("tested.scaled", (4,), 1, SealReason.DEADLINE, 0.005, 0.006),
            BatchRecord("tested.add_slowly", (3,), 1, SealReason.DEADLINE, 1.0, 1.251),
        ]
        assert simulation.batches.of("add_slowly").sizes == [2, 1]
        assert repr(simulation.batches).splitlines() == [
            "at 0 ms  tested.add_slowly  calls 1 2  (size), took 251 ms",
            "at 5 ms  tested.scaled  calls 4  (deadline), took 1 ms",
            "at 1000 ms  tested.add_slowly  calls 3  (deadline), took 251 ms",
        ]
        assert repr(testing.Batches()) == "no batches"


def test_calls_that_come_while_a_batch_runs_share_the_next() -> None:
    with Simulation(scaled) as simulation:
        producer = simulation.producer()
        simulation.duration = lambda batch: 0.02 if 1 in batch.calls else 0.0
        producer.call(1.0, 1)
        for at in (0.007, 0.009, 0.011):
            simulation.at(at, lambda: producer.call(2.0, 2))
        simulation.run()
        assert simulation.batches.calls == [[1], [2, 3, 4]]
        assert [batch.start for batch in simulation.batches] == [0.005, 0.025]


def test_an_executor_that_drains_runs_what_was_called_and_takes_no_more() -> None:
    with Simulation(scaled) as simulation:
        producer = simulation.producer()
        call = producer.call(1.0, 3)
        simulation.drain()
        assert call.get() == 3.0
        assert simulation.batches.reasons == [SealReason.DRAIN]
        with pytest.raises(errors.ExecutorClosed, match="has been drained"):
            producer.call(1.0, 3)
        with pytest.raises(errors.ConfigError, match="make another one"):
            simulation.advance(1)


def test_outcomes_are_those_that_a_producer_gets() -> None:
    @small()
    def picky(xs: list[int]) -> list[Any]:
        if 13 in xs:
            raise LookupError("thirteen")
        return [ValueError(x) if x < 0 else "text" if x == 7 else x for x in xs]

    with Simulation(picky) as simulation:
        producer = simulation.producer(deadline_ms=3)
        late = producer.call(1)
        simulation.run()
        with pytest.raises(errors.DeadlineExceeded, match="call 1 of producer 1 was not launched"):
            late.get()
        assert late.batch is None
        producer = simulation.producer()
        calls = [producer.call(x) for x in (1, -2)]
        with pytest.raises(errors.CallTimeout, match=r"no outcome at .* advance\(\)"):
            calls[0].get()
        simulation.run()
        assert calls[0].get() == 1
        assert repr(calls[1].error()) == "ValueError(-2)"
        alone = producer.call(13)
        simulation.run()
        with pytest.raises(LookupError, match="thirteen"):
            alone.get()
        assert simulation.batches[-1].raised
        with pytest.raises(errors.InputTypeError, match="must be an int"):
            producer.call("1")


def test_a_cancelled_call_never_runs_and_counts_towards_nothing() -> None:
    with Simulation(scaled) as simulation:
        producer = simulation.producer()
        calls = [producer.call(1.0, 1) for _ in range(3)]
        assert calls[0].cancel()
        assert calls[0].cancel(), "again"
        with pytest.raises(errors.CallCancelled):
            calls[0].get()
        producer.call(1.0, 1)
        simulation.run()
        assert simulation.batches.calls == [[2, 3, 4]]
        assert not calls[1].cancel(), "too late"


def test_a_call_that_is_cancelled_while_it_runs_disturbs_nobody() -> None:
    with Simulation(scaled, duration=0.01) as simulation:
        producer = simulation.producer()
        one, other = producer.call(1.0, 1), producer.call(2.0, 1)
        said: list[bool] = []
        simulation.at(0.008, lambda: said.append(one.cancel()))
        simulation.run()
        assert said == [False]
        assert other.get() == 2.0


def test_calls_of_a_producer_that_leaves_do_not_run() -> None:
    with Simulation(scaled) as simulation:
        one, other = simulation.producer(), simulation.producer()
        one.call(1.0, 1)
        kept = other.call(2.0, 1)
        simulation.advance(0.001)
        one.leave()
        simulation.run()
        assert simulation.batches.calls == [[kept.number]]
        with pytest.raises(errors.ConfigError, match="producer 1 has left"):
            one.call(1.0, 1)


def test_a_producer_gets_no_more_slots_than_there_are() -> None:
    @small(slots=2)
    def same(xs: list[int]) -> list[int]:
        return xs

    with Simulation(same) as simulation:
        producer = simulation.producer()
        producer.call(1)
        producer.call(2)
        with pytest.raises(errors.RingFull, match="all 2 slots of 'same' in use"):
            producer.call(3)
        simulation.run()
        assert producer.call(3).number == 3


def test_padding_is_seen_by_the_function_and_by_the_record() -> None:
    with Simulation(rows_seen) as simulation:
        producer = simulation.producer()
        calls = [producer.call(x) for x in (1, 2, 3)]
        simulation.run()
        assert calls[0].get() == [1, 2, 3, 3]
        assert simulation.batches[0].size == 4
        assert "calls 1 2 3 in 4 rows" in repr(simulation.batches)


def test_what_an_async_function_awaits_takes_virtual_time_only() -> None:
    heard: list[object] = []

    @small()
    async def waits(xs: list[int]) -> list[int]:
        try:
            async with asyncio.timeout(60):
                await asyncio.sleep(3600)
        except TimeoutError:
            heard.append(await asyncio.to_thread(threading.current_thread))
        await asyncio.gather(*(asyncio.sleep(x) for x in xs))
        return xs

    with Simulation(waits) as simulation:
        call = simulation.producer().call(30)
        began = time.monotonic()
        simulation.run()
        assert call.get() == 30
        assert simulation.now == 90.005
        assert time.monotonic() - began < 30, "nobody slept"
    assert heard == [threading.current_thread()]


def test_an_async_function_that_awaits_what_never_comes_is_told_of() -> None:
    @small()
    async def forever(xs: list[int]) -> list[int]:
        await asyncio.Event().wait()
        return xs

    with Simulation(forever) as simulation:
        call = simulation.producer().call(1)
        simulation.run()
        assert not call.done()
        with pytest.raises(errors.ConfigError, match="'forever' awaits something that nothing"):
            simulation.drain()


def test_an_async_function_is_not_simulated_inside_an_event_loop() -> None:
    async def asynchronous_test() -> None:
        with Simulation(scaled):
            pass
        for attempt in (Simulation, testing.check_batching):
            with pytest.raises(errors.ConfigError, match="do it in a plain test, not in an async"):
                attempt(add_slowly)

    asyncio.run(asynchronous_test())


def test_an_async_function_goes_on_when_the_test_lets_it() -> None:
    gates: list[asyncio.Event] = []

    @small()
    async def gated(xs: list[int]) -> list[int]:
        gates.append(asyncio.Event())
        await gates[0].wait()
        return xs

    with Simulation(gated) as simulation:
        call = simulation.producer().call(1)
        simulation.advance(1)
        assert not call.done()
        simulation.at(2, lambda: gates[0].set())
        simulation.run()
        assert (call.get(), simulation.now) == (1, 2.0)


def test_an_action_that_fails_fails_the_test_and_not_the_function() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with Simulation(scaled, duration=0.01) as simulation:
        simulation.producer().call(1.0, 1)
        simulation.at(0.008, fail)
        with pytest.raises(KeyError, match="mine"):
            simulation.run()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_interrupts_the_test_is_not_taken_for_the_function_s(kind: str) -> None:
    def interrupted(xs: list[int]) -> list[int]:
        raise KeyboardInterrupt

    async def interrupted_later(xs: list[int]) -> list[int]:
        await asyncio.sleep(0.001)
        raise KeyboardInterrupt

    function = small()(interrupted if kind == "plain" else interrupted_later)
    with Simulation(function) as simulation:
        for _ in range(9):
            simulation.producer().call(1)
        with pytest.raises(KeyboardInterrupt):
            simulation.run()
        assert len(simulation.batches) == 1
    for check in (testing.check_batching, testing.check_batch_invariance):
        with pytest.raises(KeyboardInterrupt):
            check(function, max_examples=5)


def test_times_that_are_none_are_refused() -> None:
    with Simulation(scaled) as simulation:
        for wrong in (-1, float("nan"), float("inf"), "1", None):
            with pytest.raises(errors.ConfigError, match=r"seconds is .*; use virtual seconds"):
                simulation.advance(wrong)  # type: ignore[arg-type]
            with pytest.raises(errors.ConfigError, match=r"seconds is .*; use virtual seconds"):
                simulation.at(wrong, list)  # type: ignore[arg-type]
        simulation.producer().call(1.0, 1)
        simulation.duration = float("nan")
        with pytest.raises(errors.ConfigError, match="duration is nan; use virtual seconds"):
            simulation.run()


def test_a_closed_simulation_takes_neither_producers_nor_calls() -> None:
    with Simulation(scaled) as simulation:
        producer = simulation.producer()
    for late in (simulation.producer, lambda: producer.call(1.0, 1)):
        with pytest.raises(errors.ConfigError, match="the simulation is closed"):
            late()


def test_methods_of_a_class_share_the_object_that_was_entered() -> None:
    with Simulation(app) as simulation:
        above = simulation.producer("Counter.above")
        raising = simulation.producer(Counter().raise_to)
        before = above.call(4)
        simulation.advance(0.005)
        raised = raising.call(10)
        after = above.call(4)
        simulation.run()
        assert (before.get(), raised.get(), after.get()) == (2, 10, 12)
    with Simulation(Counter(start=5).above) as simulation:
        call = simulation.producer().call(4)
        simulation.run()
        assert call.get() == 7


def test_a_handle_with_other_batching_is_simulated_with_that() -> None:
    with Simulation(scaled.with_batching(max_batch_size=2, wait_ms=1)) as simulation:
        producer = simulation.producer()
        for _ in range(3):
            producer.call(1.0, 1)
        simulation.run()
        assert simulation.batches.sizes == [2, 1]
        assert [batch.start for batch in simulation.batches] == [0.0, 0.001]


def test_a_simulation_makes_no_thread_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("it must not")

    monkeypatch.setattr(socket, "socketpair", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
    with Simulation(app) as simulation:
        call = simulation.producer(add_slowly).call(1, 2)
        simulation.drain()
        assert call.get() == 3


def test_what_is_no_batched_function_is_refused() -> None:
    connected = shmbatch.Function(scaled.address)
    for wrong, reason in (
        ((), "a simulation needs a function"),
        ((len,), "'len' is no batched function"),
        ((shmbatch.App("empty"),), "app 'empty' has no functions"),
        ((connected,), "has the address 'tested.scaled' but not the function"),
    ):
        with pytest.raises(errors.ConfigError, match=reason):
            Simulation(*wrong)
    with Simulation(app) as simulation:
        with pytest.raises(errors.ConfigError, match="several functions, add_slowly, scaled"):
            simulation.producer()
        with pytest.raises(errors.ConfigError, match="no function 'nothing'"):
            simulation.producer("nothing")
        with pytest.raises(errors.ConfigError, match=r"has 'tested\.scaled' twice; give each"):
            Simulation(app, scaled)
    with pytest.raises(errors.ConfigError, match="several functions"):
        testing.check_batching(app)
    with pytest.raises(errors.ConfigError, match="is a plain method"):
        testing.check_batching(functions.Counter().raise_to)
