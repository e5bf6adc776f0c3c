from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmbatch.app.load import find_app, find_entrypoint, load_file
from shmbatch.errors import LoadError
from tests.programs import SERVED, written


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Forget modules and folders that a test loaded."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]
    sys.path[:] = path


def test_a_file_is_loaded_once_as_the_module_of_its_stem(tmp_path: Path) -> None:
    file = written(tmp_path, "user_served.py", SERVED)
    module = load_file(file)
    assert sys.modules["user_served"] is module
    assert load_file(file) is module
    assert find_app(module).name == "user_served"


def test_a_file_is_loaded_as_it_is_now_though_it_looks_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To Python, which takes bytecode by the file's second and size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for version in (1, 2):
        file = written(tmp_path, "user_served.py", f"version = {version}")
        os.utime(file, (1, 1))
        module = load_file(file)
        assert module.version == version
        del sys.modules["user_served"]


def test_a_relative_path_and_a_link_are_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_file(written(tmp_path, "user_served.py", SERVED))
    monkeypatch.chdir(tmp_path)
    assert load_file(Path("user_served.py")) is module


def test_a_file_can_import_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "user_helper.py", "VALUE = 3")
    module = load_file(written(tmp_path, "user_main.py", "from user_helper import VALUE"))
    assert module.VALUE == 3


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    load_file(written(tmp_path, "user_served.py", SERVED))
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", "user_served.py", SERVED)
    with pytest.raises(LoadError) as caught:
        load_file(other)
    assert str(caught.value) == (
        f"'{other}' has the name of module 'user_served', in use already; rename it"
    )


def test_what_a_file_raises_is_said_with_its_own_line(tmp_path: Path) -> None:
    file = written(tmp_path, "user_broken.py", "import json\n\njson.loads('nonsense')")
    with pytest.raises(LoadError) as caught:
        load_file(file)
    assert str(caught.value) == (
        f"'{file}' does not import: JSONDecodeError: Expecting value: "
        f"line 1 column 1 (char 0) (line 3)"
    )
    assert "user_broken" not in sys.modules


def test_a_file_that_failed_can_be_loaded_once_it_is_mended(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        load_file(written(tmp_path, "user_broken.py", "1 / 0"))
    assert load_file(written(tmp_path, "user_broken.py", "x = 1000")).x == 1000


def test_a_refusal_at_definition_is_said_with_its_line(tmp_path: Path) -> None:
    text = (
        SERVED
        + """
    @app.function()
    @shmbatch.batched(max_batch_size=0, wait_ms=0)
    def none(xs: list[int]) -> list[int]:
        return xs
    """
    )
    file = written(tmp_path, "user_none.py", text)
    with pytest.raises(LoadError) as caught:
        load_file(file)
    assert str(caught.value) == (
        f"'{file}' does not import: ConfigError: max_batch_size is 0; "
        f"use an int from 1 to 65536 (line {file.read_text().splitlines().index(_DECORATOR) + 1})"
    )


_DECORATOR = "@shmbatch.batched(max_batch_size=0, wait_ms=0)"


def test_an_interrupt_while_a_file_loads_stays_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_file(written(tmp_path, "user_slow.py", "raise KeyboardInterrupt"))


def test_an_app_imported_under_two_names_is_one_app(tmp_path: Path) -> None:
    module = load_file(written(tmp_path, "user_served.py", SERVED, "alias = app"))
    assert find_app(module) is module.app


def test_the_sole_entrypoint_needs_no_name(tmp_path: Path) -> None:
    main = "@app.local_entrypoint()\ndef main(): pass"
    app = find_app(load_file(written(tmp_path, "user_served.py", SERVED, main)))
    assert find_entrypoint(app) is app.entrypoints["main"] is find_entrypoint(app, "main")
