"""When executions begin and end, as the watchdog is told, which sees nothing else of them.

What may last is inside of the function that it is done for, so that the clocks of others stand
still: its own code, waiting for its device, and what is done with objects of the user's.
"""

from __future__ import annotations

from typing import Any

import pytest

from shmbatch.contract.failing import failure_options
from shmbatch.executor.served import ServedFunction
from shmbatch.testing import Simulation
from tests.executor.fake_gpu import FakeGpu
from tests.executor.fake_gpu_streams import Operation
from tests.executor.test_cuda import Rig, in_the_loop, row
from tests.executor.test_isolating_cuda import Retrying, refusing
from tests.executor.test_memory_limit import batched, made
from tests.executor.worlds import MS, START_NS, Plan

ENTER, LEAVE = ("enter",), ("leave", True, True)
ON_DEVICE = [ENTER, LEAVE]


class Clock:
    """What the core's watchdog is told of one function."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.inside = False

    def enter(self, number: int) -> None:
        assert not self.inside
        self.inside = True
        self.told.append(("enter",))

    def leave(self, number: int, in_flight: bool, lands: bool) -> None:
        assert self.inside
        self.inside = False
        self.told.append(("leave", in_flight, lands))

    def done(self, number: int, in_flight: bool) -> None:
        assert self.inside  # it has delivered results
        self.inside = False
        self.told.append(("done", in_flight))


class Waiting(FakeGpu):
    """Notes whether the host was inside of a function when it waited for more than an event."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fetched: list[bool] = []
        super().__init__("lazy")

    def _finish(self, operation: Operation) -> None:
        if not operation.done and operation.function is not None:
            self.fetched.append(self.clock.inside)
        super()._finish(operation)


def short(rows: Any) -> Any:
    """Return what does not fit the declaration, and is therefore fetched at once."""
    return (rows * 2)[:, :1]


def clocked(served: ServedFunction, gpu: Waiting) -> None:
    """Have a function tell the device's clock; what was waited for until now was its making."""
    gpu.fetched.clear()
    served.be_clocked(gpu.clock, 0)  # type: ignore[arg-type]


def test_a_batch_on_a_device_lands_from_when_its_function_has_returned() -> None:
    gpu = Waiting()
    rig = Rig(gpu)
    clocked(rig.served, gpu)
    rig.submit(rig.clients[0], 4)
    rig.submit(rig.clients[1], 4)
    rig.launch()
    rig.launch()
    rig.complete()
    rig.complete()
    assert gpu.clock.told == [
        *ON_DEVICE,
        *ON_DEVICE,
        ENTER,
        ("done", True),
        ENTER,
        ("done", False),
    ]
    rig.finish()
    assert rig.wrong() == {}


def test_each_part_of_a_batch_in_pieces_is_an_execution() -> None:
    gpu = Waiting()
    failing = failure_options(on_error="isolate")
    rig = Retrying(gpu, refusing(frozenset({2})), failing=failing)
    clocked(rig.served, gpu)
    rig.submit(rig.clients[0], 4)
    while rig.launch() or rig.served.flights or rig.served.retries.waiting:
        rig.complete()
    assert gpu.clock.told == 5 * [*ON_DEVICE, ENTER, ("done", False)]
    rig.finish()
    assert set(rig.wrong()) == {2}


def test_what_fetches_a_result_at_once_waits_for_the_device_inside() -> None:
    gpu = Waiting()
    rig = Rig(gpu, short)
    clocked(rig.served, gpu)
    rig.submit(rig.clients[0], 4)
    rig.launch()
    assert gpu.fetched == [True]
    rig.finish()


@pytest.mark.parametrize("watched", [False, True])
def test_what_a_suspended_function_returns_is_fetched_inside_too(watched: bool) -> None:
    async def body(rows: Any) -> Any:
        over = world.events.create_future()  # type: ignore[union-attr]
        world.at(world.now_ns + MS, lambda: over.set_result(None))
        await over
        return short(rows)

    gpu = Waiting()
    plan = Plan(max_batch_size=2, wait_ns=0, slots=4, is_async=True)
    beside, slow_ms = ([plan], 1) if watched else ([], None)
    world = in_the_loop(gpu, plan, body, slow_ms=slow_ms, beside=beside)
    clocked(world.functions[0], gpu)
    world.at(START_NS, lambda: world.producers[0].submit(values=(row(1).numpy(),)))
    world.producers[0].waiting.clear()
    world.run()
    assert gpu.fetched == [True]
    suspended = ("leave", True, False)
    assert gpu.clock.told == [ENTER, suspended, *ON_DEVICE, ENTER, ("done", False)]


@pytest.mark.parametrize("fails", [False, True])
def test_objects_of_the_users_are_looked_at_inside(fails: bool) -> None:
    clock = Clock()
    looks: list[bool] = []

    def noted(self: object) -> str:
        looks.append(clock.inside)
        return "?"

    result = type("Result", (), {"__class__": property(noted)})
    error = type("Error", (Exception,), {"__str__": noted, "__class__": property(noted)})

    def function(xs: list[int]) -> list[Any]:
        if fails:
            raise error
        return [result()]

    with Simulation(batched(function)) as simulation:
        simulation.functions[0].be_clocked(clock, 0)  # type: ignore[arg-type]
        (outcome,) = made(simulation, range(1))
    assert isinstance(outcome, Exception)
    assert looks
    assert all(looks)
    assert clock.told == [ENTER, ("leave", False, False), ENTER, ("done", False)]
