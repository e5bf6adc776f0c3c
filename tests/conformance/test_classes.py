"""Methods that are batched, what a class may have beside them, and the life of its objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conforming_classes
import pytest

import shmbatch
from shmbatch.errors import CallTimeout, ConfigError
from tests import processes
from tests.conformance.calling import outcomes
from tests.processes import PATIENCE_S, Gate, Served
from tests.programs import ran, written

# For type checkers a class stays what it was, without its parameters.
Model: Any = conforming_classes.Model
Needing: Any = conforming_classes.Needing

# The second program of Modal's guide, its import changed, with an entrypoint as the first has.
SECOND_PROGRAM = """
    import shmbatch as modal

    app = modal.App()

    @app.cls()
    class BatchedClass():
        @modal.batched(max_batch_size=2, wait_ms=1000)
        async def batch_add(self, xs: list[int], ys: list[int]) -> list[int]:
            return [x + y for x, y in zip(xs, ys)]

    @app.local_entrypoint()
    async def main():
        async for result in BatchedClass().batch_add.starmap.aio([(1, 300), (2, 200), (3, 100)]):
            print(f"Sum: {result}")
"""


@pytest.fixture(scope="module")
def model(transport: str, module_gate: Gate) -> Iterator[Served]:
    with processes.served("conforming_classes.py", "conforming_classes") as executor:
        yield executor


@pytest.fixture
def refreshed(model: Served) -> Any:
    """The model with its factor as it was declared."""
    Model().refresh.remote(factor=2)
    return Model()


def test_the_second_program_of_the_guide_prints_its_sums_in_order(tmp_path: Path) -> None:
    # Row 16. The first one is in tests/cli/test_run.py.
    result = ran("run", written(tmp_path, "second.py", SECOND_PROGRAM))
    assert (result.stdout, result.stderr, result.returncode) == (
        "Sum: 301\nSum: 202\nSum: 103\n",
        "",
        0,
    )


def test_a_batched_method_has_its_object_and_takes_lists(refreshed: Any) -> None:
    # Row 16. Spec: results.
    assert outcomes(refreshed.scale, range(10)) == list(range(0, 20, 2))
    assert list(refreshed.scale.map(range(10))) == list(range(0, 20, 2))
    assert shmbatch.connect("conforming_classes.Model.scale").remote(21) == 42


def test_an_async_method_is_batched_as_a_sync_one(refreshed: Any) -> None:
    # Row 12. Row 16. Spec: async.
    async def main() -> list[Any]:
        calls = [refreshed.pair.remote.aio(1, ys=3), refreshed.pair.remote.aio(ys=4, xs=2)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [[2, 1, 2, 3, 4]] * 2


def test_a_class_has_as_many_batched_methods_as_it_likes(refreshed: Any) -> None:
    # Row 17. Spec: definition. Modal allows one, and no other method beside it.
    waiting = refreshed.pair.spawn(1, 3)
    assert refreshed.scale.remote(5) == 10  # each has its own batches
    assert not waiting.done()
    refreshed.refresh.remote(factor=7)  # and all of them have one object
    assert refreshed.pair.remote(2, 4) == [7, 1, 2, 3, 4]
    assert waiting.get(PATIENCE_S) == [7, 1, 2, 3, 4]
    assert refreshed.scale.remote(5) == 35


def test_a_plain_method_runs_between_batches(refreshed: Any, module_gate: Gate) -> None:
    # Row 17. Spec: definition.
    first = refreshed.gated.spawn(1)
    assert module_gate.arrived() == [1]
    changed = refreshed.refresh.spawn(5, by=1)
    later = [refreshed.gated.spawn(x) for x in (2, 3)]
    with pytest.raises(CallTimeout):
        changed.get(timeout=0.020)  # it waits for the batch, though that only awaits something
    module_gate.open(2)
    assert first.get(PATIENCE_S) == [2, 1]
    assert changed.get(PATIENCE_S) == 6
    assert [call.get(PATIENCE_S) for call in later] == [[6, 2, 3]] * 2


def test_a_plain_method_takes_one_calls_arguments_and_may_have_defaults(refreshed: Any) -> None:
    # Row 11. Row 17.
    refresh = refreshed.refresh
    assert refresh.remote(5) == 5
    assert [refresh.remote(5, 1), refresh.remote(5, by=2), refresh.remote(by=3, factor=5)] == [
        6,
        7,
        8,
    ]


def test_other_parameters_are_a_methods_own(refreshed: Any) -> None:
    # Row 5. Row 17. Modal has `with_batching` of a class, which has one batched method.
    alone = refreshed.pair.with_batching(max_batch_size=1)
    waiting = refreshed.pair.spawn(1, 3)
    assert alone.remote(5, 6) == [2, 5, 6]
    assert refreshed.pair.remote(2, 4) == waiting.get(PATIENCE_S) == [2, 1, 2, 3, 4]
    assert not hasattr(Model, "with_batching")


def test_an_object_is_entered_once_before_anything_is_served(refreshed: Any) -> None:
    # Row 18. Sync or async, from the top of the class.
    pid, history = refreshed.told.remote()
    assert history == ["load", "warm"]
    assert refreshed.told.remote() == (pid, history)


def test_an_object_is_exited_after_its_last_batch(tmp_path: Path, gate: Gate) -> None:
    # Row 18.
    path = tmp_path / "exited"
    executor = Served("conforming_classes.py", "exiting", CONFORMING_EXIT=str(path))
    call = executor.connect("Model.gated").spawn(1)
    assert gate.arrived() == [1]
    assert not path.exists()
    gate.open()
    assert call.get(PATIENCE_S) == [2, 1]
    executor.stop()
    assert path.read_text() == "['load', 'warm'] exit"


def test_a_class_that_cannot_be_entered_is_not_served(tmp_path: Path) -> None:
    # Row 18.
    fails = (
        "@modal.enter()\n        def load(self):\n            raise OSError('no such model')\n\n"
    )
    before = "        @modal.batched"
    program = SECOND_PROGRAM.replace(before, f"        {fails}{before}")
    result = ran("run", written(tmp_path, "unloaded.py", program))
    assert (result.stdout, result.returncode) == ("", 1)
    assert "BatchedClass.load of BatchedClass() raises OSError: no such model" in result.stderr


def test_each_set_of_parameters_has_a_process_of_its_own(transport: str) -> None:
    # Row 24. Spec: definition. As in Modal each has its own containers.
    with conforming_classes.app.run():
        found = outcomes(Needing(seed=10).plus, [1, 2]) + outcomes(Needing(seed=20).plus, [1, 2])
        pids = [pid for pid, _ in found]
        assert [result for _, result in found] == [11, 12, 21, 22]
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert Model(factor=3).scale.remote(5) == 15
        assert Model().scale.remote(5) == Model(factor=2).scale.remote(5) == 10


@pytest.mark.no_transport
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: Needing(), "Needing needs parameter 'seed'"),
        (lambda: Needing(1), "takes its parameters by keyword"),
        (lambda: Needing(seed="1"), "parameter 'seed' of Needing is '1'; use a value of int"),
        (lambda: Model(sede=1), "Model has no parameter 'sede'; it has factor"),
    ],
)
def test_parameters_are_checked_where_they_are_given(made: Callable[[], Any], reason: str) -> None:
    # Row 24.
    with pytest.raises(ConfigError, match=reason):
        made()


@pytest.mark.no_transport
def test_a_method_is_called_locally_on_an_object_made_here() -> None:
    # Row 16. Row 18. Spec: local.
    model = Model(factor=5)
    assert model.scale.local([1, 2]) == [5, 10]
    assert model.told.local()[1] == ["load", "warm"]
    assert asyncio.run(model.pair.local([1], [2])) == [[5, 1, 2]]


@pytest.mark.no_transport
def test_what_is_not_decorated_is_not_served() -> None:
    # Row 17.
    with pytest.raises(AttributeError, match=r"it has scale, .*decorate it with @shmbatch.method"):
        _ = Model().helper


@pytest.fixture
def app() -> shmbatch.App:
    return shmbatch.App("defined")


@pytest.mark.no_transport
def test_the_rules_for_functions_are_those_for_methods(app: shmbatch.App) -> None:
    # Row 11. Row 15. Row 16. Spec: definition.
    def same(self: Any, xs: list[int]) -> list[int]:
        return xs

    def defaulted(self: Any, xs: list[int] = []) -> list[int]:  # noqa: B006
        return xs

    def generator(self: Any, xs: list[int]) -> Iterator[int]:
        yield from xs

    def alone(self: Any) -> list[int]:
        return []

    batched = shmbatch.batched(max_batch_size=4, wait_ms=10)
    for function, reason in (
        (defaulted, "parameter 'xs' of defined.C.it has a default"),
        (generator, "defined.C.it is a generator"),
        (alone, "defined.C.it has no parameters"),
    ):
        with pytest.raises(ConfigError, match=reason):
            app.cls()(type("C", (), {"it": batched(function)}))
    assert repr(app.cls()(type("C", (), {"it": batched(same)}))) == "<Class 'defined.C'>"


@pytest.mark.no_transport
def test_hooks_take_self_and_no_options() -> None:
    # Row 18. Modal's may be told to take a snapshot of memory.
    with pytest.raises(ConfigError, match=r"enter takes no arguments; write @shmbatch\.enter\(\)"):
        shmbatch.enter(snap=True)

    def close(self: Any, error: BaseException) -> None:
        """Is not told of one."""

    with pytest.raises(ConfigError, match="is called with self alone"):
        shmbatch.exit()(close)  # type: ignore[arg-type]


@pytest.mark.no_transport
def test_a_class_without_anything_to_serve_is_refused(app: shmbatch.App) -> None:
    # Row 16. Spec: definition.
    class Empty:
        pass

    class Made:
        def __init__(self, seed: int) -> None:
            self.seed = seed

        @shmbatch.method()
        def told(self) -> int:
            return self.seed

    with pytest.raises(ConfigError, match=r"class defined\.Empty has no method to serve"):
        app.cls()(Empty)
    with pytest.raises(ConfigError, match=r"has an __init__ with parameters; declare them as in"):
        app.cls()(Made)
    with pytest.raises(ConfigError, match=r"which is no class; use @app\.function\(\)"):
        app.cls()(len)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"is a class; use @app\.cls\(\)"):
        app.function()(Empty)  # type: ignore[call-overload]
