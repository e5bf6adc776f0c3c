# ruff: noqa: F722, F821, UP037 - jaxtyping's shapes are strings that are no annotations
from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float, Float32, Int64
from torch import Tensor

import shmbatch
from shmbatch.errors import ConfigError
from tests.programs import environment, ran, written

batched = shmbatch.batched(max_batch_size=4, wait_ms=1)


@pytest.fixture
def app() -> shmbatch.App:
    return shmbatch.App("sums")


def refusal(app: shmbatch.App, function: Callable[..., Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        app.function()(batched(function))
    assert app.definitions == {}, "what was refused is not served"
    return str(caught.value)


# ---- names ---------------------------------------------------------------------------------


def test_an_apps_name_is_by_default_the_stem_of_its_file() -> None:
    assert shmbatch.App().name == "test_app"
    assert repr(shmbatch.App()) == "<App 'test_app': no functions>"


@pytest.mark.parametrize("name", ["", "two words", "a/b", "ä", "x" * 41])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shmbatch.App(name)
    assert str(caught.value) == (
        f"app name is {name!r}; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
    )


def test_an_image_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError) as caught:
        shmbatch.App(image="debian")
    assert str(caught.value) == (
        "there is no image=: everything runs on this machine, as it is; drop it"
    )


def test_an_image_of_a_function_is_refused_with_the_same_reason() -> None:
    with pytest.raises(ConfigError, match=r"^there is no image="):
        shmbatch.App("app").function(image="debian")


def test_other_options_of_an_app_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^App takes no gpu, secrets; it takes a name$"):
        shmbatch.App(gpu="any", secrets=[])


def test_without_a_file_an_app_needs_a_name() -> None:
    with pytest.raises(ConfigError) as caught:
        exec("import shmbatch; shmbatch.App()", {"__name__": "somewhere"})
    assert str(caught.value) == "App needs a name here, where there is no file to take it from"


# ---- functions -----------------------------------------------------------------------------


def test_a_registered_function_becomes_a_handle(app: shmbatch.App) -> None:
    @app.function()
    @batched
    def add(xs: list[int], ys: list[int]) -> list[int]:
        return [x + y for x, y in zip(xs, ys, strict=True)]

    assert isinstance(add, shmbatch.Function)
    assert repr(add) == "<Function 'sums.add'>"
    assert repr(app) == "<App 'sums': add>"
    assert add.local([1, 2], [300, 200]) == [301, 202]
    with pytest.raises(ConfigError) as caught:
        add([1], [2])
    assert str(caught.value) == (
        "'sums.add' cannot be called directly; use .remote(...) for one input, "
        "or .local(...) with lists"
    )


def test_the_decorators_need_their_parentheses(app: shmbatch.App) -> None:
    with pytest.raises(ConfigError, match=r"write @app\.function\(\)$"):
        app.function(batched(lambda xs: xs))
    with pytest.raises(ConfigError, match=r"write @app\.local_entrypoint\(\)$"):
        app.local_entrypoint(lambda: None)


def test_options_of_app_function_are_refused(app: shmbatch.App) -> None:
    with pytest.raises(ConfigError) as caught:
        app.function(gpu="any")
    assert str(caught.value) == ("app.function takes no gpu; options go to @shmbatch.batched(...)")


def test_a_function_that_is_not_batched_is_refused(app: shmbatch.App) -> None:
    def plain(xs: list[int]) -> list[int]:
        return xs

    with pytest.raises(ConfigError) as caught:
        app.function()(plain)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "'plain' is not batched; put @shmbatch.batched(max_batch_size=..., wait_ms=...) "
        "below @app.function()"
    )


def test_two_functions_of_one_name_are_refused(app: shmbatch.App) -> None:
    def add(xs: list[int]) -> list[int]:
        return xs

    app.function()(batched(add))
    with pytest.raises(ConfigError) as caught:
        app.function()(batched(add))
    assert str(caught.value) == "app 'sums' has a function 'add' already; rename one"


def test_generators_are_refused(app: shmbatch.App) -> None:
    def generator(xs: list[int]) -> Iterator[int]:
        yield from xs

    async def agenerator(xs: list[int]) -> AsyncIterator[int]:
        yield xs[0]

    for function in (generator, agenerator):
        assert refusal(app, function) == (
            f"sums.{function.__name__} is a generator, which gives its results one by one; "
            f"return a list with one result per input"
        )


def test_parameters_that_are_no_columns_are_refused(app: shmbatch.App) -> None:
    def nothing() -> list[int]: ...
    def default(xs: list[int], ys: list[int] = []) -> list[int]: ...  # noqa: B006
    def star(*xs: list[int]) -> list[int]: ...
    def stars(**xs: list[int]) -> list[int]: ...
    def keyword(*, xs: list[int]) -> list[int]: ...

    assert refusal(app, nothing) == (
        "sums.nothing has no parameters; a batch needs at least 1 list or stack"
    )
    assert refusal(app, default) == (
        "parameter 'ys' of sums.default has a default, but in a batch every call gives a value; "
        "drop the default"
    )
    assert refusal(app, star) == (
        "sums.star takes *xs; name each parameter, one column stands for one"
    )
    assert refusal(app, stars) == (
        "sums.stars takes **xs; name each parameter, one column stands for one"
    )
    assert refusal(app, keyword) == (
        "parameter 'xs' of sums.keyword is keyword-only, values are passed by position; "
        "drop the '*'"
    )


def test_annotations_that_are_no_columns_are_refused(app: shmbatch.App) -> None:
    def lacking(xs: list[complex]) -> list[int]: ...
    def no_result(xs: list[int]) -> None: ...
    def bare(xs: int) -> list[int]: ...
    def ragged(xs: Float32[np.ndarray, "batch length"]) -> list[int]: ...
    def no_batch(xs: Float32[np.ndarray, "3 4"]) -> list[int]: ...
    def many_dtypes(xs: Float[np.ndarray, "batch 3"]) -> list[int]: ...
    def unresolvable(xs: list[int], ys: Nowhere) -> list[int]: ...  # type: ignore[name-defined]

    for function in (lacking, bare, ragged, no_batch, many_dtypes):
        message = refusal(app, function)
        assert f"parameter 'xs' of sums.{function.__name__}" in message
    assert "result of sums.no_result" in refusal(app, no_result)
    assert "MessagePack lacks complex; use a dataclass" in refusal(app, lacking)
    assert refusal(app, unresolvable) == (
        "annotation of parameter 'ys' of sums.unresolvable cannot be resolved "
        "(NameError: name 'Nowhere' is not defined); "
        "annotate with names that the module has when it runs"
    )


def test_what_can_be_batched_is_accepted(app: shmbatch.App) -> None:
    def scalars(xs: list[int], ys: list[float], zs: list[bool], /) -> list[float]: ...
    async def awaits(xs: list[int]) -> list[int]: ...
    def arrays(
        xs: Float32[np.ndarray, "batch 3 4"], ys: Int64[np.ndarray, "batch"]
    ) -> Float32[np.ndarray, "batch 3"]: ...

    for function in (scalars, awaits, arrays):
        app.function()(batched(function))
    assert list(app.definitions) == ["scalars", "awaits", "arrays"]
    assert app.definitions["scalars"].signature.describe() == (
        "(xs: list[int], ys: list[float], zs: list[bool]) -> list[float]"
    )


def test_what_is_said_of_a_gpu_stands_in_the_definition(app: shmbatch.App) -> None:
    @app.function()
    @batched
    def plain(xs: list[int]) -> list[int]: ...

    @app.function()
    @shmbatch.batched(
        max_batch_size=8, wait_ms=1, batch_sizes=[1, 8], cuda_graphs=True, direct_dma=False
    )
    def graphed(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch"]: ...

    definition = app.definitions["plain"]
    assert (definition.batch_sizes, definition.cuda_graphs) == (None, False)
    assert definition.direct_dma == "auto"
    definition = app.definitions["graphed"]
    assert (definition.batch_sizes, definition.cuda_graphs) == ((1, 8), True)
    assert definition.direct_dma is False


def test_a_function_that_no_graph_can_capture_is_refused_by_its_full_name(
    app: shmbatch.App,
) -> None:
    graphed = shmbatch.batched(max_batch_size=8, wait_ms=1, batch_sizes=(8,), cuda_graphs=True)

    def add(xs: Float32[Tensor, "batch 3"], ys: list[int]) -> Float32[Tensor, "batch 3"]: ...
    async def awaits(xs: Float32[Tensor, "batch 3"]) -> Float32[Tensor, "batch 3"]: ...

    with pytest.raises(
        ConfigError, match=r"^parameter 'ys' of sums\.add is list\[int\], but cuda"
    ):
        app.function()(graphed(add))
    with pytest.raises(ConfigError, match=r"^sums\.awaits is async, and what it awaits cannot be"):
        app.function()(graphed(awaits))
    assert app.definitions == {}, "what was refused is not served"


def test_a_promise_to_leave_stacks_alone_needs_a_stack(app: shmbatch.App) -> None:
    reads = shmbatch.batched(max_batch_size=8, wait_ms=1, read_only=True)

    def keeps(xs: Float32[np.ndarray, "batch 3"], ys: list[str]) -> list[int]: ...
    def keeps_tensors(xs: Float32[Tensor, "batch 3"]) -> list[int]: ...
    def lists(xs: list[int], ys: list[np.ndarray]) -> list[int]: ...

    for function in (keeps, keeps_tensors):
        app.function()(reads(function))
        assert app.definitions[function.__name__].read_only
        assert not batched(function).definition("f", app.definitions["keeps"].signature).read_only
    message = (
        "read_only=True means nothing for {}, none of whose parameters is a stack, as of "
        'Float32[np.ndarray, "batch 16"]; annotate one so, or drop read_only'
    )
    with pytest.raises(ConfigError) as caught:
        app.function()(reads(lists))
    assert str(caught.value) == message.format("sums.lists")

    class Lists:
        same = reads(lists)

    with pytest.raises(ConfigError) as caught:
        app.cls()(Lists)
    assert str(caught.value) == message.format("sums.Lists.same")


def test_functions_of_an_interactive_session_are_refused(tmp_path: Path) -> None:
    session = """
import shmbatch
app = shmbatch.App("session")

@app.function()
@shmbatch.batched(max_batch_size=1, wait_ms=0)
def add(xs: list[int]) -> list[int]:
    return xs
"""
    for arguments, text in ((["-c", session], ""), (["-"], session), (["-i", "-q"], session)):
        result = subprocess.run(
            [sys.executable, *arguments],
            input=text,
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=60,
        )
        assert "ConfigError: add was not defined in a file" in result.stderr
        assert "so no executor can import it; put it in a file" in result.stderr


# ---- entrypoints and running ---------------------------------------------------------------


def test_an_entrypoint_stays_the_function_it_was(app: shmbatch.App) -> None:
    @app.local_entrypoint()
    def main() -> str:
        return "called"

    assert main() == "called"


def test_an_entrypoint_whose_parameters_are_no_options_is_refused(app: shmbatch.App) -> None:
    def many(*paths: str) -> None: ...

    def named(**paths: str) -> None: ...

    def unnamed(path: str, /) -> None: ...

    for entrypoint, shown in (
        (many, "*paths: 'str'"),
        (named, "**paths: 'str'"),
        (unnamed, "path: 'str'"),
    ):
        with pytest.raises(ConfigError) as caught:
            app.local_entrypoint()(entrypoint)
        assert str(caught.value) == (
            f"entrypoint {entrypoint.__name__!r} takes {shown}, which is no option of a command; "
            f"name each parameter"
        )
    with pytest.raises(ConfigError) as caught:
        app.local_entrypoint()(len)
    assert str(caught.value) == "entrypoint <built-in function len> must be a function"
    assert app.entrypoints == {}


def test_two_entrypoints_of_one_name_are_refused(app: shmbatch.App) -> None:
    def main() -> None: ...

    app.local_entrypoint()(main)
    with pytest.raises(ConfigError, match=r"^app 'sums' has an entrypoint 'main' already$"):
        app.local_entrypoint()(main)


def test_an_app_without_functions_does_not_run(app: shmbatch.App) -> None:
    with pytest.raises(ConfigError) as caught:
        app.run()
    assert str(caught.value) == "app 'sums' has no functions; add one with @app.function()"


def test_an_app_made_interactively_does_not_run(tmp_path: Path) -> None:
    code = "import shmbatch; shmbatch.App('session').run()"
    result = ran("-c", code, python=True)
    assert "ConfigError: app 'session' was made interactively; put it in a file" in result.stderr


def test_a_file_whose_stem_is_no_name_needs_a_named_app(tmp_path: Path) -> None:
    file = written(tmp_path, "two words.py", "import shmbatch\nshmbatch.App()")
    assert "app name is 'two words'; a name is 1 to 40" in ran(file, python=True).stderr
