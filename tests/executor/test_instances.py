"""Objects of users' classes in the executor: made, entered, served, exited; all that may fail."""

# ruff: noqa: F821, UP037 - jaxtyping's shapes are strings that are no annotations
from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float32

import shmbatch
from shmbatch.app.classes import Class
from shmbatch.contract.definition import Definition
from shmbatch.errors import LoadError
from shmbatch.executor.instances import Instances, needs_loop

from .worlds import MS, START_NS, Plan, World

batched = shmbatch.batched(max_batch_size=4, wait_ms=0)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def told() -> list[str]:
    """What happened to the objects of this test's classes."""
    return []


@pytest.fixture
def model(told: list[str]) -> Callable[..., type]:
    """Makes a class of which objects tell what happens to them, some of it badly."""

    def made(name: str, *bad: str, error: BaseException | None = None) -> type:
        def happens(what: str) -> None:
            told.append(f"{name} {what}")
            if what in bad:
                raise error or ValueError(f"{what} is bad")

        class Model:
            def __init__(self) -> None:
                happens("init")

            @shmbatch.enter()
            def load(self) -> None:
                happens("load")

            @shmbatch.enter()
            async def warm(self) -> None:
                await asyncio.sleep(0)
                happens("warm")

            @batched
            def act(self, xs: list[int]) -> list[int]:
                happens("act")
                return xs

            @shmbatch.method()
            def told(self) -> None:
                happens("told")

            @shmbatch.exit()
            async def leave(self) -> None:
                await asyncio.sleep(0)
                happens("leave")

            @shmbatch.exit()
            def close(self) -> None:
                happens("close")

        Model.__name__ = name
        return Model

    return made


def definitions(*classes: type) -> list[Definition]:
    app = shmbatch.App("sums")
    for each in classes:
        app.cls()(each)
    return list(app.definitions.values())


def test_an_object_is_made_then_entered_then_exited_in_the_order_of_its_class(
    loop: asyncio.AbstractEventLoop, model: Callable[..., type], told: list[str]
) -> None:
    with Instances(loop) as instances:
        act, plain = instances.bound(definitions(model("One")))
        assert told == ["One init", "One load", "One warm"]
        assert act.function([1]) == [1]
        assert plain.function() == [None]
    assert told[3:] == ["One act", "One told", "One leave", "One close"]


def test_what_was_made_last_is_exited_first(
    loop: asyncio.AbstractEventLoop, model: Callable[..., type], told: list[str]
) -> None:
    with Instances(loop) as instances:
        instances.bound(definitions(model("One"), model("Two")))
    assert [each for each in told if "init" in each or "close" in each] == [
        "One init",
        "Two init",
        "Two close",
        "One close",
    ]


@pytest.mark.parametrize(
    ("bad", "message", "happened"),
    [
        ("init", "Two() cannot be made: ValueError: init is bad", ["One leave", "One close"]),
        (
            "load",
            "Model.load of Two() raises ValueError: load is bad",
            ["Two load", "Two leave", "Two close", "One leave", "One close"],
        ),
        (
            "warm",
            "Model.warm of Two() raises ValueError: warm is bad",
            ["Two load", "Two warm", "Two leave", "Two close", "One leave", "One close"],
        ),
    ],
)
def test_an_object_that_cannot_be_entered_is_exited_all_the_same_and_the_error_says_where(
    loop: asyncio.AbstractEventLoop,
    model: Callable[..., type],
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    bad: str,
    message: str,
    happened: list[str],
) -> None:
    both = definitions(model("One"), model("Two", bad))
    with pytest.raises(LoadError) as caught, Instances(loop) as instances:
        instances.bound(both)
    assert str(caught.value).rpartition("<locals>.")[2] == message
    assert told[told.index("Two init") + 1 :] == happened
    assert "Traceback" in caplog.text, "the log has the line of the user's file"


def test_a_hook_that_ends_the_process_is_an_error_like_others(
    loop: asyncio.AbstractEventLoop, model: Callable[..., type], told: list[str]
) -> None:
    with pytest.raises(LoadError, match=r"raises SystemExit: 3$"), Instances(loop) as instances:
        instances.bound(definitions(model("One", "load", error=SystemExit(3))))
    assert told[-2:] == ["One leave", "One close"]


def test_a_signal_while_an_object_is_entered_stays_one(
    loop: asyncio.AbstractEventLoop, model: Callable[..., type], told: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Instances(loop) as instances:
        instances.bound(definitions(model("One", "load", error=KeyboardInterrupt())))
    assert told[-2:] == ["One leave", "One close"]


@pytest.mark.parametrize("error", [ValueError("leave is bad"), SystemExit(3)])
def test_an_exit_that_fails_is_logged_and_the_others_take_place(
    loop: asyncio.AbstractEventLoop,
    model: Callable[..., type],
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    with Instances(loop) as instances:
        instances.bound(definitions(model("One"), model("Two", "leave", error=error)))
    assert told[-4:] == ["Two leave", "Two close", "One leave", "One close"]
    assert "leave of Two() raises" in caplog.text
    assert type(error).__name__ in caplog.text


def test_a_loop_is_needed_where_something_is_async(model: Callable[..., type]) -> None:
    def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    class Sync:
        act = batched(lambda self, xs: xs)

    class Hooked:
        act = Sync.act

        @shmbatch.exit()
        @quiet
        async def leave(self) -> None: ...

    Sync.act.function.__name__ = "act"
    assert [needs_loop(each) for each in definitions(Sync)] == [False]
    assert [needs_loop(each) for each in definitions(Hooked)] == [True]
    assert all(needs_loop(each) for each in definitions(model("One")))


# ---- plain methods -------------------------------------------------------------------------


class Keeping:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    @shmbatch.method(max_lengths={"seq": 4})
    def keep(
        self,
        fixed: Float32[np.ndarray, "3"],
        ragged: Float32[np.ndarray, "seq"],
        loose: np.ndarray,
        text: str,
    ) -> int:
        self.kept.append((fixed, ragged, loose, text))
        return len(self.kept)

    @shmbatch.method()
    async def later(self, value: int = 1) -> list[int]:
        await asyncio.sleep(0)
        return [value]


def test_a_plain_method_becomes_a_function_on_batches_of_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    with Instances(loop) as instances:
        keep, later = instances.bound(definitions(Keeping))
        assert (keep.is_async, later.is_async) == (False, True)
        assert loop.run_until_complete(later.function([3])) == [[3]]
        assert keep.function(np.ones((1, 3)), [np.ones(2)], [np.ones(1)], ["x"]) == [1]


def test_the_arguments_of_a_plain_method_are_its_own_to_keep() -> None:
    app = shmbatch.App("sums")
    served: Any = app.cls()(Keeping)
    assert isinstance(served, Class)
    with Instances(None) as instances:
        keep = instances.bound([app.definitions["Keeping.keep"]])[0]
        world = World(
            Plan(max_batch_size=1, wait_ns=0),
            signature=keep.signature,
            body=keep.function,
        )
        world.strict = False
        for number in range(4):
            values = (
                np.full(3, number, np.float32),
                np.full(number, number, np.float32),
                np.full(2, number),
                str(number),
            )
            world.at(
                START_NS + number * MS,
                functools.partial(world.producers[0].submit, 0, coerced(keep, values)),
            )
        world.run()
        kept = keep.function.__wrapped__.__self__.kept
    assert len(kept) == 4
    for number, (fixed, ragged, loose, text) in enumerate(kept):
        assert fixed.tolist() == [number] * 3, "a later call is not written over it"
        assert ragged.tolist() == [number] * number
        assert loose.tolist() == [number] * 2
        assert text == str(number)


def coerced(definition: Definition, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the core takes for these values, as a producer's connection makes it."""
    from shmbatch.contract.packing import packing

    done = []
    for column, value in zip(definition.signature.parameters, values, strict=True):
        packed = packing(column, "a test")
        done.append((column.coerce if packed is None else packed.pack)(value, "a test"))
    return tuple(done)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shmbatch")
