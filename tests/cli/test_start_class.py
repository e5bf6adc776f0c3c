"""``shmbatch start FILE::CLASS``: one instance of a class, and what `ps` and `stop` make of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmbatch
from shmbatch.app.load import load_file
from tests.programs import ended, ran, serving, written

pytestmark = pytest.mark.no_transport  # how it is started; its calls are in tests/client

MODEL = """
    import os
    import shmbatch

    app = shmbatch.App()

    @app.cls()
    class Model:
        seed: int = shmbatch.parameter()
        name: str = shmbatch.parameter(default="")
        share: float = shmbatch.parameter(default=0.5)

        @shmbatch.batched(max_batch_size=4, wait_ms=0)
        def plus(self, xs: list[int]) -> list[int]:
            return [self.seed + x for x in xs]

        @shmbatch.method()
        def told(self) -> list:
            return [os.getpid(), self.seed, self.name, self.share]
"""

OTHER = """
    @app.cls()
    class Other:
        @shmbatch.method()
        def told(self) -> int:
            return os.getpid()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, "model_file.py", MODEL)


@pytest.fixture
def model(file: Path) -> Iterator[Any]:
    """The class as a producer imports it."""
    yield load_file(file).Model
    del sys.modules[file.stem]
    sys.path.remove(str(file.parent))


def test_an_instance_is_served_under_the_name_that_producers_look_for(
    file: Path, model: Any
) -> None:
    three = model(seed=3, name="a=b é")
    name = three.told.address.served_as()
    with serving(f"{file}::Model", "--param", "seed=3", "--param", "name=a=b é") as process:
        assert three.told.remote() == [process.pid, 3, "a=b é", 0.5]
        assert three.plus.remote(1) == 4
        assert shmbatch.connect(f"{name}.Model.plus").remote(1) == 4
        with pytest.raises(shmbatch.errors.ExecutorNotFound, match=r"serves 'model_file-Model-"):
            model(seed=4).plus.remote(1)
        (row,) = json.loads(ran("ps", "--json").stdout)
        assert (row["name"], row["pid"]) == (name, process.pid)
        taken = ran("start", f"{file}::Model", "--param", "seed=3", "--param", "name=a=b é")
        assert f"error: name {name!r} is already served by process {process.pid}" in taken.stderr
        assert taken.returncode == 1
        assert ran("stop", name).returncode == 0
        assert ended(process)[0] == 0


def test_a_name_of_its_own_replaces_that_of_the_instance(file: Path, model: Any) -> None:
    with serving(f"{file}::Model", "--param", "seed=3", "--name", "three") as process:
        assert shmbatch.connect("three.Model.told").remote() == [process.pid, 3, "", 0.5]
        shmbatch.stop("three")
        assert ended(process)[0] == 0


def test_an_instance_is_served_in_the_background_with_a_log_of_its_name(
    file: Path, model: Any, logs: Path
) -> None:
    name = model(seed=5, share=2).told.address.served_as()
    options = ["--param", "seed=5", "--param", "share=2"]
    result = ran("start", f"{file}::Model", *options, "--detach")
    assert result.returncode == 0, result.stderr
    pid = model(seed=5, share=2).told.remote()[0]
    assert result.stdout == f"{name} is served by process {pid}, log {logs / f'{name}.log'}\n"
    assert f"{name} serves Model.plus, Model.told" in (logs / f"{name}.log").read_text()
    assert ran("stop", name).returncode == 0
    relative = ran(
        "start", "model_file.py::Model", "--param", "seed=1", "--name", "one", "--detach",
        cwd=file.parent,
    )  # fmt: skip
    assert relative.returncode == 0, relative.stderr
    assert shmbatch.connect("one.Model.plus").remote(1) == 2
    shmbatch.stop("one")


def test_without_a_class_what_needs_no_parameters_is_served(tmp_path: Path) -> None:
    file = written(tmp_path, "both.py", MODEL, OTHER)
    with serving(file) as process:
        assert shmbatch.connect("both.Other.told").remote() == process.pid
        with pytest.raises(shmbatch.errors.UnknownFunction):
            shmbatch.connect("both.Model.plus")
        shmbatch.stop("both")
        assert ended(process)[0] == 0


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "",
            [],
            "class Model of app 'model_file' needs parameters (seed, name, share); serve one "
            "instance with `shmbatch start {file}::Model --param ...`",
        ),
        ("::Nodel", [], "app 'model_file' has no class 'Nodel'; it has 'Model'"),
        ("::", [], "app 'model_file' has no class ''; it has 'Model'"),
        ("::Model", [], "Model needs parameter 'seed'; it has seed, name, share"),
        (
            "::Model",
            ["--param", "seed=x"],
            "parameter 'seed' of Model is 'x'; write a value of int",
        ),
        (
            "::Model",
            ["--param", "seed"],
            "--param 'seed' has no value; write --param name=value",
        ),
        (
            "::Model",
            ["--param", "sed=1"],
            "Model has no parameter 'sed'; it has seed, name, share",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(
    file: Path, target: str, options: list[str], message: str, logs: Path
) -> None:
    result = ran("start", f"{file}{target}", *options)
    assert result.stderr == f"error: {message.format(file=file)}\n"
    assert (result.stdout, result.returncode) == ("", 1)


def test_a_parameter_without_a_class_is_wrong_usage(file: Path) -> None:
    result = ran("start", file, "--param", "seed=1")
    assert (result.stdout, result.returncode) == ("", 2)
    assert f"--param goes with a class, as in {file}::CLASS" in " ".join(result.stderr.split())
