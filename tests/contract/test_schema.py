"""How a type is described, found again, and told from one that has changed."""

from __future__ import annotations

import datetime
import pathlib
import sys
import types
import typing
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest
import shapes
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32

from shmbatch.contract import schema
from shmbatch.errors import ConfigError

Name = typing.NewType("Name", str)

TYPES: list[tuple[Any, str]] = [
    (int, "int"),
    (None, "None"),
    (datetime.datetime, "datetime.datetime"),
    (shapes.Order, "shapes.Order"),
    (shapes.Colour, "shapes.Colour"),
    (int | None, "int | None"),
    (typing.Optional[str], "str | None"),  # noqa: UP045
    (dict[str, list[int]], "dict[str, list[int]]"),
    (typing.Dict[str, int], "dict[str, int]"),  # noqa: UP006
    (tuple[int, ...], "tuple[int, ...]"),
    (tuple[()], "tuple[()]"),
    (list, "list"),
    (shapes.Box[int], "shapes.Box[int]"),
    (Literal["a", 3, None, True], "Literal['a', 3, None, True]"),
    (Annotated[int, msgspec.Meta(ge=0)], "Annotated[int, Meta(ge=0)]"),
    (dict[shapes.Point, shapes.Circle | shapes.Square], "dict[shapes.Point, shapes.Circle | s"),
]


def refusal(annotation: Any) -> str:
    with pytest.raises(ConfigError, match=r"^it has that, but ") as caught:
        schema.checked(annotation, "it has that")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("annotation", "text"), TYPES, ids=lambda each: str(each)[:40])
def test_a_type_is_found_by_its_description(annotation: Any, text: str) -> None:
    tree, fingerprint = schema.checked(annotation, "it")

    schema.check(tree)
    assert schema.text(tree).startswith(text)
    found = schema.resolve(tree)
    assert schema.describe(found) == tree
    assert schema.fingerprint(found) == fingerprint
    assert msgspec.msgpack.Decoder(found)


def test_what_adds_nothing_is_left_out() -> None:
    assert schema.describe(Name) == schema.describe(str)
    assert schema.describe(Annotated[int, "a note"]) == schema.describe(int)
    assert schema.describe(Any) == schema.describe(object) == schema.ANY


def test_a_class_with_other_fields_has_another_fingerprint() -> None:
    def fingerprint(*fields: tuple[str, Any]) -> str:
        return schema.fingerprint(make_dataclass("Item", fields))

    same = fingerprint(("a", int), ("b", str))

    assert same == fingerprint(("a", int), ("b", str))
    others = [
        fingerprint(("a", int)),
        fingerprint(("a", int), ("b", str), ("c", int)),
        fingerprint(("a", int), ("b", int)),
        fingerprint(("a", int), ("c", str)),
    ]
    assert len({same, *others}) == 5


def test_classes_that_hold_themselves_have_fingerprints() -> None:
    assert schema.fingerprint(shapes.Item) == schema.fingerprint(shapes.Item)


@pytest.mark.parametrize(
    ("annotation", "fact"),
    [
        (complex, "MessagePack lacks complex; use a dataclass, a msgspec.Struct or another type"),
        (shapes.Plain, "MessagePack lacks shapes.Plain; use a dataclass"),
        (dict[str, set[range]], "MessagePack lacks range;"),
        (
            np.ndarray | None,
            "MessagePack lacks numpy.ndarray; annotate the parameter itself with ",
        ),
        (torch.Tensor, 'or list[np.ndarray], or use codec="pickle"'),
        (Float32[np.ndarray, "n"], "MessagePack lacks Float32[ndarray, 'n']; annotate"),
        (Literal[b"x"], "MessagePack lacks a Literal of b'x'; use ints and strs"),
        (shapes.T, "~T is no type; use one that exists when the function is defined"),
        (
            make_dataclass("Local", [("a", int)]),
            "Local cannot be found by that name; define it at",
        ),
        (shapes.Item | shapes.Order, "msgspec refuses it: Type unions may not contain more"),
        (Literal[tuple(range(1000))], "the description of a type has more than 1000 characters"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_type_that_cannot_travel_is_refused_with_the_reason(annotation: Any, fact: str) -> None:
    assert fact in refusal(annotation)


@dataclass
class Mine:
    a: int


def test_a_class_of_the_main_program_is_called_by_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = "/somewhere/shop.py"
    main.Mine = Mine  # type: ignore[attr-defined]
    monkeypatch.setattr(Mine, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)

    tree = schema.describe(Mine)

    assert tree == ("class", "shop", "Mine")
    assert schema.resolve(tree) is Mine


@pytest.mark.parametrize(
    "tree",
    [("class", "nowhere_at_all", "X"), ("class", "shapes", "Nothing"), ("class", "shapes", "T")],
)
def test_a_class_that_is_not_there_is_not_found(tree: schema.Tree) -> None:
    with pytest.raises(LookupError):
        schema.resolve(tree)


hostile = st.recursive(
    st.none() | st.text(max_size=5) | st.integers() | st.sampled_from(["of", "class", "union"]),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=10,
)


@given(hostile)
def test_what_passes_the_check_can_be_shown(tree: Any) -> None:
    try:
        schema.check(tree)
    except ValueError:
        return
    assert len(schema.text(tree)) <= schema.MAX_TEXT


@pytest.mark.parametrize(
    "annotation",
    [
        dict[str, object],
        list[object],
        tuple[object, ...],
        Annotated[int, msgspec.Meta(description="of an order")],
        Annotated[int, msgspec.Meta(ge=0, title="count", examples=[1])],
        list[Annotated[str, msgspec.Meta(max_length=3, description="short")]],
    ],
)
def test_what_a_description_leaves_out_changes_no_fingerprint(annotation: Any) -> None:
    """Or the executor would take its own function for that of another file."""
    tree, fingerprint = schema.checked(annotation, "it")

    assert schema.fingerprint(schema.resolve(tree)) == fingerprint


@dataclass
class Broken:
    when: "datetime.missing"  # type: ignore[name-defined] # noqa: UP037


def test_a_forward_reference_that_leads_nowhere_is_a_clear_error() -> None:
    assert "AttributeError" in refusal(Broken) or "missing" in refusal(Broken)


def test_a_module_that_exits_has_no_class(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(LookupError, match="SystemExit"):
        schema.find_class("leaving", "X")
