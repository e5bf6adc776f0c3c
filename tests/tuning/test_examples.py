"""Which inputs a function is tried on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmbatch.contract.columns import Column
from shmbatch.contract.signature import Signature
from shmbatch.errors import ConfigError
from shmbatch.tuning.examples import examples_for
from tests.rings import array, scalar, signature

TEXT = Column("texts", "str", "", "", (), max_bytes=10)
ROWS = Column("rows", "ragged", "numpy", "float32", (-5, 2), ("seq", ""))
NAMED = Signature((scalar("int", "n"), array("float32", 2, name="row")), scalar("int"))


def of_text() -> Signature:
    return Signature((TEXT,), scalar("int"))


def test_numbers_and_arrays_need_no_file() -> None:
    columns = signature("int", "float", "bool", array("float32", 2, 3), array("uint8", 4))
    made = examples_for(columns, "app.f", None)
    assert (
        made.described == "inputs made from the signature (zeros for integers, else from 0 to 1)"
    )
    assert len(made.calls) > 1
    for n, x, truth, image, pixels in made.calls:
        assert (n, truth) == (0, False)
        assert 0 <= x < 1
        assert (image.shape, image.dtype) == ((2, 3), np.float32)
        assert (image >= 0).all()
        assert image.max() < 1
        assert (pixels == 0).all()
    assert len({call[1] for call in made.calls}) > 1, "all are the same"


def test_rows_of_varying_length_are_made_as_long_as_they_may_be() -> None:
    made = examples_for(Signature((ROWS,), scalar("int")), "app.f", None)
    assert {call[0].shape for call in made.calls} == {(5, 2)}


def test_of_large_rows_fewer_are_made() -> None:
    def made(*shape: int) -> int:
        columns = signature("int", array("float32", *shape))
        return len(examples_for(columns, "app.f", None).calls)

    assert (made(16), made(1 << 20), made(8 << 20)) == (64, 3, 1)


def test_tensors_of_a_dtype_that_numpy_lacks_are_made_too() -> None:
    column = array("bfloat16", 3, library="torch", name="x")
    made = examples_for(Signature((column,), scalar("int")), "app.f", None)
    assert {call[0].nbytes for call in made.calls} == {6}


@pytest.mark.parametrize("kind", ["str", "bytes", "ndarray", "msgpack", "pickle"])
def test_what_can_be_anything_needs_a_file(kind: Any) -> None:
    element = ("any",) if kind == "msgpack" else ()
    column = Column("xs", kind, "", "", (), max_bytes=10, element=element)
    with pytest.raises(ConfigError, match=r"parameter 'xs' of app\.f is a list.*--input"):
        examples_for(Signature((column,), scalar("int")), "app.f", None)


def test_a_file_has_an_entry_for_each_parameter(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", n=np.array([1, 2]), row=np.ones((2, 2), np.float32))
    (tmp_path / "two.json").write_text(json.dumps({"n": [1, 2], "row": [[1, 1], [1, 1]]}))
    for name in ("two.npz", "two.json"):
        read = examples_for(NAMED, "app.f", str(tmp_path / name))
        assert read.described == f"2 inputs of {name}"
        assert sorted(n for n, _ in read.calls) == [1, 2]
        assert all((row == 1).all() and row.dtype == np.float32 for _, row in read.calls)


def test_a_file_of_the_only_parameter_needs_no_name(tmp_path: Path) -> None:
    one = Signature((array("float32", 2, name="row"),), scalar("int"))
    np.save(tmp_path / "rows.npy", np.zeros((3, 2), np.float32))
    assert len(examples_for(one, "app.f", str(tmp_path / "rows.npy")).calls) == 3
    (tmp_path / "texts.json").write_text('["a", "bc"]')
    np.save(tmp_path / "texts.npy", np.array(["a", "bc"]))
    for name in ("texts.json", "texts.npy"):
        read = examples_for(of_text(), "app.f", str(tmp_path / name))
        assert sorted(read.calls) == [("a",), ("bc",)]


def test_examples_come_in_a_random_order_that_a_seed_chooses(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps([f"word {number}" for number in range(20)]))
    first, again, other = (
        [text for (text,) in examples_for(of_text(), "app.f", str(file), seed).calls]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


ROW = [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"n": [1]}, "lacks 'row'; app.f takes 'n', 'row'"),
        ({"n": [1], "row": ROW, "m": [1]}, "has 'm', no parameter"),
        ({"rows": ROW, "n": [1]}, "lacks 'row' and has 'rows', no parameter"),
        ({"n": [1, 2], "row": ROW}, "has 2 'n', 1 'row'; give as many of each"),
        ({"n": [], "row": []}, "has no examples"),
        ({"n": 1, "row": ROW}, "has a int for 'n'; give a list"),
        ({"n": ["a"], "row": ROW}, "example 0 of .* parameter 'n' of app.f must be an int"),
        ({"n": [1], "row": [[1.0]]}, "example 0 of .* must have shape"),
        ({"n": [1], "row": [["a", "b"]]}, "values for 'row' that are no Float32"),
        ([1, 2], "has values of one parameter and there are 2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "input.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        examples_for(NAMED, "app.f", str(file))


def test_an_array_of_another_dtype_is_not_cast(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", n=np.array([1]), row=np.ones((1, 2)))
    with pytest.raises(ConfigError, match="must have dtype float32, got float64"):
        examples_for(NAMED, "app.f", str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", n=np.array(1), row=np.ones((1, 2)))
    with pytest.raises(ConfigError, match="a single int64 for 'n'"):
        examples_for(NAMED, "app.f", str(tmp_path / "x.npz"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file '.*x\.npz'"):
        examples_for(NAMED, "app.f", str(tmp_path / "x.npz"))
    for name in ("x.npz", "x.npy", "x.json"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ConfigError, match="cannot be read"):
            examples_for(NAMED, "app.f", str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"use a file \.npz, \.npy or \.json"):
        examples_for(NAMED, "app.f", str(tmp_path / "x.csv"))


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        examples_for(of_text(), "app.f", str(tmp_path / "x.npy"))
