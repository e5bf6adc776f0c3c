"""An async function runs as in a task of its own, whether or not it ever suspends."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from shmbatch.executor.runner import AsyncRunner, Run
from shmbatch.protocol._core import Batch

Function = Callable[..., Coroutine[Any, Any, Any]]

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Stage:
    """One function, its runner, and the event loop that it suspends on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.runners: list[AsyncRunner] = []

    def runner(self, function: Function) -> AsyncRunner:
        runner = AsyncRunner(function, self.loop)
        self.runners.append(runner)
        return runner

    def start(self, runner: AsyncRunner, *inputs: Any) -> Run:
        run = Run(Batch(1))
        runner.start(run, inputs)
        return run

    def finish(self, run: Run) -> Run:
        """Run the event loop, as the executor does, until the run is done."""
        while not run.done:
            self.loop.run_forever()  # ends when the runner has something to complete
        return run

    def run(self, function: Function, *inputs: Any) -> Run:
        return self.finish(self.start(self.runner(function), *inputs))

    def turn(self) -> None:
        """Run the event loop once."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()


@pytest.fixture
def stage() -> Iterator[Stage]:
    loop = asyncio.new_event_loop()
    troubles: list[Any] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    stage = Stage(loop)
    yield stage
    for runner in stage.runners:
        runner.close()
    pending = [task for task in asyncio.all_tasks(loop) if not task.done()]
    loop.close()
    assert pending == []
    assert troubles == []


# ---- at once, or later ----


def test_a_function_that_never_suspends_is_done_at_once(stage: Stage) -> None:
    async def double(xs: list[int]) -> list[int]:
        return [2 * x for x in xs]

    run = stage.start(stage.runner(double), [1, 2])

    assert run.done
    assert run.value == [2, 4]
    assert run.error is None


def test_awaiting_what_does_not_suspend_is_at_once_too(stage: Stage) -> None:
    async def inner(x: int) -> int:
        return x + 1

    async def outer(xs: list[int]) -> list[int]:
        async with asyncio.Lock(), asyncio.timeout(60):
            return [await inner(x) for x in xs]

    assert stage.start(stage.runner(outer), [1, 2]).value == [2, 3]


def test_a_function_that_suspends_goes_on_in_the_event_loop(stage: Stage) -> None:
    steps: list[str] = []

    async def slow(xs: list[int]) -> list[int]:
        steps.append("first")
        await asyncio.sleep(0)
        steps.append("second")
        await asyncio.sleep(1e-6)
        return [2 * x for x in xs]

    run = stage.start(stage.runner(slow), [1, 2])
    assert not run.done
    assert steps == ["first"]
    stage.finish(run)

    assert run.value == [2, 4]
    assert steps == ["first", "second"]


def test_what_is_awaited_first_may_be_done_already_or_come_from_a_thread(stage: Stage) -> None:
    async def done_already() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result("done")
        return await future

    async def gathered() -> list[int]:
        return list(await asyncio.gather(*(asyncio.sleep(0, i) for i in range(3))))

    async def shielded() -> str:
        return await asyncio.wait_for(asyncio.shield(asyncio.sleep(0, "shielded")), 60)

    async def from_a_thread() -> str:
        return await asyncio.to_thread(lambda: "thread")

    assert stage.run(done_already).value == "done"
    assert stage.run(gathered).value == [0, 1, 2]
    assert stage.run(shielded).value == "shielded"
    assert stage.run(from_a_thread).value == "thread"
    stage.loop.run_until_complete(stage.loop.shutdown_default_executor())


def test_batches_that_suspend_and_that_do_not_may_follow_each_other(stage: Stage) -> None:
    async def sometimes(number: int) -> int:
        if number % 3 == 0:
            await asyncio.sleep(0)
        if number % 5 == 0:
            raise ValueError(number)
        return number

    runner = stage.runner(sometimes)
    for number in range(30):
        run = stage.finish(stage.start(runner, number))
        if number % 5 == 0:
            assert isinstance(run.error, ValueError)
        else:
            assert (run.value, run.error) == (number, None)


def test_two_functions_may_be_suspended_at_a_time(stage: Stage) -> None:
    turn = asyncio.Event()

    async def waits() -> str:
        await turn.wait()
        return "waited"

    async def sets() -> str:
        await asyncio.sleep(0)
        turn.set()
        return "set"

    first = stage.start(stage.runner(waits))
    second = stage.start(stage.runner(sets))

    assert stage.finish(first).value == "waited"
    assert second.value == "set"


# ---- as in a task ----


@pytest.mark.parametrize("suspends", [False, True])
def test_the_first_step_runs_in_a_task_of_the_running_loop(stage: Stage, suspends: bool) -> None:
    async def look() -> list[Any]:
        seen = [asyncio.current_task(), asyncio.get_running_loop()]
        if suspends:
            await asyncio.sleep(0)
            seen += [asyncio.current_task(), asyncio.get_running_loop()]
        return seen

    run = stage.run(look)

    assert run.value[0] is not None
    assert run.value[1] is stage.loop
    assert run.value[2:] in ([], run.value[:2])
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    assert asyncio.current_task(stage.loop) is None


def test_no_loop_is_left_running_by_a_function_that_raises(stage: Stage) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    stage.run(broken)

    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    assert asyncio.current_task(stage.loop) is None


def test_context_variables_of_the_first_step_are_there_after_it(stage: Stage) -> None:
    async def remember() -> str:
        VARIABLE.set("set in the first step")
        await asyncio.sleep(0)
        return VARIABLE.get()

    assert stage.run(remember).value == "set in the first step"
    assert VARIABLE.get() == "unset"


@pytest.mark.parametrize("suspends", [False, True])
def test_a_batch_sees_no_context_variable_of_the_batch_before(
    stage: Stage, suspends: bool
) -> None:
    async def leave(mark: str) -> list[str]:
        seen = [VARIABLE.get()]
        VARIABLE.set(mark)
        if suspends:
            await asyncio.sleep(0)
        seen.append(VARIABLE.get())
        return seen

    runner = stage.runner(leave)
    for mark in ("one", "two"):
        assert stage.finish(stage.start(runner, mark)).value == ["unset", mark]


def test_a_timeout_that_passes_ends_the_wait_it_covers(stage: Stage) -> None:
    async def late(seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.sleep(0)
            return "late"
        return "never"

    runner = stage.runner(late)
    for seconds in (0, -1, 1e-6, 0):
        assert stage.finish(stage.start(runner, seconds)).value == "late"


def test_a_timeout_that_passes_uncaught_is_the_functions_error(stage: Stage) -> None:
    async def late() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    runner = stage.runner(late)
    for _ in range(2):
        assert isinstance(stage.finish(stage.start(runner)).error, TimeoutError)


def test_a_timeout_that_is_left_in_time_disturbs_no_later_batch(stage: Stage) -> None:
    async def quick(seconds: float) -> str:
        async with asyncio.timeout(seconds):
            return "in time"

    async def waits(number: int) -> int:
        await asyncio.sleep(0)
        return number

    runner = stage.runner(quick)
    for seconds in (0, 60):
        assert stage.start(runner, seconds).value == "in time"
        stage.turn()
    waiting = stage.runner(waits)
    assert stage.finish(stage.start(waiting, 7)).value == 7
    assert stage.start(runner, 60).value == "in time"


def test_a_task_group_may_be_entered_in_the_first_step(stage: Stage) -> None:
    async def child(number: int) -> int:
        await asyncio.sleep(0)
        return 10 * number

    async def parent() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child(number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert stage.run(parent).value == [0, 10, 20]


@pytest.mark.parametrize("waits_inside", [False, True])
def test_a_task_that_fails_cancels_its_group_and_no_later_batch(
    stage: Stage, waits_inside: bool
) -> None:
    async def child() -> None:
        raise LookupError("child")

    async def parent(fails: bool) -> str:
        async with asyncio.TaskGroup() as group:
            if fails:
                group.create_task(child())
            if waits_inside:
                await asyncio.sleep(0 if not fails else 3600)
        return "fine"

    runner = stage.runner(parent)
    for _ in range(2):
        error = stage.finish(stage.start(runner, True)).error
        assert isinstance(error, ExceptionGroup)
        assert isinstance(error.exceptions[0], LookupError)
        assert stage.finish(stage.start(runner, False)).value == "fine"


@pytest.mark.parametrize("warm", [False, True])
def test_a_function_may_cancel_itself_in_the_first_step(stage: Stage, warm: bool) -> None:
    """The next await raises, as in any task; the batches after it are not concerned."""

    async def cancels(itself: bool) -> str:
        if itself:
            task = asyncio.current_task()
            assert task is not None
            task.cancel("enough")
        await asyncio.sleep(0)
        return "went on"

    runner = stage.runner(cancels)
    if warm:
        assert stage.finish(stage.start(runner, False)).value == "went on"
    error = stage.finish(stage.start(runner, True)).error
    assert isinstance(error, asyncio.CancelledError)
    assert stage.finish(stage.start(runner, False)).value == "went on"


def test_a_function_may_cancel_itself_and_never_await(stage: Stage) -> None:
    async def cancels(itself: bool, awaits: bool) -> str:
        task = asyncio.current_task()
        assert task is not None
        if itself:
            task.cancel()
        if awaits:
            await asyncio.sleep(0)
        return "went on"

    runner = stage.runner(cancels)
    assert stage.start(runner, True, False).value == "went on"
    assert stage.finish(stage.start(runner, False, True)).value == "went on"
    stage.turn()
    assert stage.finish(stage.start(runner, False, True)).value == "went on"


def test_a_function_may_swallow_its_cancellation(stage: Stage) -> None:
    async def stubborn() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "went on"
        return "not cancelled"

    runner = stage.runner(stubborn)
    for _ in range(2):
        assert stage.finish(stage.start(runner)).value == "went on"


def test_a_task_made_in_the_first_step_lives_on(stage: Stage) -> None:
    made: list[asyncio.Task[str]] = []

    async def background() -> str:
        await asyncio.sleep(0)
        return "ran"

    async def makes() -> str:
        made.append(asyncio.create_task(background()))
        return "made"

    assert stage.start(stage.runner(makes)).value == "made"
    assert stage.loop.run_until_complete(made[0]) == "ran"


# ---- whatever is raised ----


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (ValueError("bad"), ValueError),
        (SystemExit(3), SystemExit),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (GeneratorExit(), GeneratorExit),
        (asyncio.CancelledError(), asyncio.CancelledError),
        (StopIteration(1), RuntimeError),  # as Python itself has it for coroutines
        (StopAsyncIteration(), StopAsyncIteration),
        (ExceptionGroup("many", [ValueError()]), ExceptionGroup),
    ],
)
def test_whatever_a_function_raises_is_its_runs_error(
    stage: Stage, suspends: bool, raised: BaseException, seen: type[BaseException]
) -> None:
    async def broken(breaks: bool) -> str:
        if suspends:
            await asyncio.sleep(0)
        if breaks:
            raise raised
        return "fine"

    runner = stage.runner(broken)
    for _ in range(2):
        run = stage.finish(stage.start(runner, True))
        assert isinstance(run.error, seen)
        assert run.value is None
        assert stage.finish(stage.start(runner, False)).value == "fine"


def test_awaiting_what_is_no_awaitable_of_this_loop_is_the_functions_error(stage: Stage) -> None:
    other = asyncio.new_event_loop()
    foreign: asyncio.Future[None] = other.create_future()

    async def awaits_a_foreign_future() -> None:
        await foreign

    class Strange:
        def __await__(self) -> Iterator[int]:
            yield 42

    async def awaits_nonsense() -> None:
        await Strange()  # type: ignore[misc]

    for function in (awaits_a_foreign_future, awaits_nonsense):
        runner = stage.runner(function)
        for _ in range(2):
            assert isinstance(stage.finish(stage.start(runner)).error, RuntimeError)
    other.close()


# ---- the end ----


def test_closing_ends_the_waiting_task_and_may_be_repeated(stage: Stage) -> None:
    async def quick() -> None:
        pass

    async def slow() -> None:
        await asyncio.sleep(0)

    for function in (quick, slow):
        runner = stage.runner(function)
        stage.finish(stage.start(runner))
        for _ in range(2):
            runner.close()
            assert asyncio.all_tasks(stage.loop) == set()
    stage.runner(quick).close()  # never started


def test_closing_cancels_a_function_that_is_suspended(stage: Stage) -> None:
    cleaned: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned up")

    runner = stage.runner(waits)
    run = stage.start(runner)
    stage.turn()
    runner.close()

    assert cleaned == ["cleaned up"]
    assert run.done
    assert isinstance(run.error, asyncio.CancelledError)


def test_closing_cancels_a_function_whose_first_step_has_just_ended(stage: Stage) -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    runner = stage.runner(waits)
    run = stage.start(runner)
    runner.close()

    assert isinstance(run.error, asyncio.CancelledError)


def test_one_task_serves_all_batches_of_a_function(stage: Stage) -> None:
    tasks: set[Any] = set()

    async def look(suspends: bool) -> None:
        tasks.add(asyncio.current_task())
        if suspends:
            await asyncio.sleep(0)

    runner = stage.runner(look)
    for number in range(20):
        stage.finish(stage.start(runner, number % 2 == 0))

    assert len(tasks) == 1
