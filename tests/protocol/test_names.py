"""Which texts are names and addresses, and what an app goes by inside a run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from shmbatch.errors import ConfigError
from shmbatch.protocol import names
from shmbatch.protocol.names import Address
from tests.protocol.homes import Other, home, no_descriptor_is_left, outside

__all__ = ["home", "no_descriptor_is_left", "outside"]  # fixtures


# What a name is.


@pytest.mark.parametrize("text", ["a", "Z9", "_", "-", "run-1a2b", "x" * 40])
def test_letters_digits_and_two_signs_make_a_name(text: str) -> None:
    assert names.check_name(text, "name") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 41,
        "a.b",
        "a/b",
        "..",
        "a b",
        "a\n",
        "\na",
        "naïve",
        "\u0661",
        "a\0",
        "a=b",
        "a,b",
    ],
)
def test_anything_else_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        names.check_name(text, "app name")

    assert str(refusal.value) == (
        f"app name is {text!r}; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
    )


@pytest.mark.parametrize("thing", [None, 5, b"sums", ["sums"], "x" * 1_000_000])
def test_what_a_peer_may_send_instead_of_a_name_is_refused_in_few_words(thing: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        names.check_name(thing, "app name")

    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("text", "app", "function"),
    [("sums.batch_add", "sums", "batch_add"), ("sums.Model.run", "sums", "Model.run")],
)
def test_an_address_is_an_app_and_a_function(text: str, app: str, function: str) -> None:
    address = Address.parse(text)

    assert address == Address(app, function)
    assert str(address) == text
    assert pickle.loads(pickle.dumps(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sums", "address 'sums' names no function; write 'app.function' or 'app.Class.method'"),
        ("", "address '' names no function; write 'app.function' or 'app.Class.method'"),
        ("sums.", "function name is ''; a name is "),
        (".add", "app name is ''; a name is "),
        ("sums..add", "class name is ''; a name is "),
        ("sums.Model.", "function name is ''; a name is "),
        ("sums.a.b.c", "class name is 'a.b'; a name is "),
        ("../x.add", "app name is ''; a name is "),
        ("sums.a/b", "function name is 'a/b'; a name is "),
    ],
)
def test_other_addresses_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Address.parse(text)

    assert str(refusal.value).startswith(message)


# Private names.


def test_an_app_means_itself_until_a_private_name_is_advertised(home: Path) -> None:
    assert names.resolve("sums") == "sums"
    names.advertise("sums", "run-1")
    names.advertise("other", "run-2")
    names.advertise("sums", "run-3")

    assert [names.resolve(app) for app in ("sums", "other", "third")] == [
        "run-3",
        "run-2",
        "third",
    ]
    with Other("from shmbatch.protocol.names import resolve; print(resolve('sums'))") as child:
        assert child.finish() == "run-3"


def test_a_withdrawn_name_leaves_no_trace(home: Path) -> None:
    names.advertise("sums", "run-1")
    names.advertise("other", "run-2")

    names.withdraw("sums")
    names.withdraw("sums")

    assert names.resolve("sums") == "sums"
    assert os.environ["SHMBATCH_NAMES"] == "other=run-2"
    names.withdraw("other")
    assert "SHMBATCH_NAMES" not in os.environ


@pytest.mark.parametrize("text", ["sums", "sums=", "=run-1", "sums=a=b", "sums=../x", "a=b,c"])
def test_a_malformed_setting_is_refused(
    text: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMBATCH_NAMES", text)

    with pytest.raises(ConfigError, match=r"^(app|private) name .*in SHMBATCH_NAMES is '.*'; a "):
        names.resolve("sums")


def test_only_names_are_resolved_and_advertised(home: Path) -> None:
    for refused in (
        lambda: names.resolve("a/b"),
        lambda: names.advertise("a,b", "run-1"),
        lambda: names.advertise("sums", "run-1,other=x"),
    ):
        with pytest.raises(ConfigError):
            refused()
    assert "SHMBATCH_NAMES" not in os.environ
