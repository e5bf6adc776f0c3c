"""What ``@batched`` may say about values."""

from __future__ import annotations

from typing import Any

import pytest

from shmbatch.contract.options import value_options
from shmbatch.errors import ConfigError


def test_defaults_are_64_kib_and_lists() -> None:
    options = value_options()

    assert options.max_bytes == 65_536
    assert options.max_lengths == ()
    assert options.ragged == "list"
    assert not options.pickled


def test_lengths_are_kept_in_the_order_of_their_names() -> None:
    one = value_options(max_lengths={"b": 2, "a": 1})

    assert one == value_options(max_lengths={"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"max_bytes": 0}, "max_bytes is 0; use an int from 1 to 4294967296"),
        ({"max_bytes": 2**32 + 1}, "max_bytes is 4294967297; use an int from 1 to 4294967296"),
        ({"max_bytes": 1e3}, "max_bytes is 1000.0; use an int from 1 to 4294967296"),
        ({"max_bytes": True}, "max_bytes is True; use an int from 1 to 4294967296"),
        (
            {"max_bytes": 10**99},
            "max_bytes is an int of 329 bits; use an int from 1 to 4294967296",
        ),
        ({"max_bytes": None}, "max_bytes is NoneType; use an int from 1 to 4294967296"),
        (
            {"max_lengths": [("seq", 3)]},
            'max_lengths is list; use a dict from names of axes to lengths, as in {"seq": 512}',
        ),
        (
            {"max_lengths": {3: 3}},
            'max_lengths has the key 3; keys are names of axes, as in {"seq": 512}',
        ),
        (
            {"max_lengths": {"a b": 3}},
            """max_lengths has the key 'a b'; keys are names of axes, as in {"seq": 512}""",
        ),
        (
            {"max_lengths": {"seq": 0}},
            "max_lengths['seq'] is 0; use an int from 1 to 1099511627776",
        ),
        ({"ragged": "stack"}, "ragged is 'stack'; use 'list' or 'pad'"),
        ({"ragged": None}, "ragged is NoneType; use 'list' or 'pad'"),
        (
            {"codec": "json"},
            "codec is 'json'; use 'pickle', or leave it out to have annotations decide",
        ),
        (
            {"codec": "pickle", "max_lengths": {"seq": 3}},
            "max_lengths means nothing with codec='pickle'; drop one of them",
        ),
        (
            {"codec": "pickle", "ragged": "pad"},
            "ragged='pad' means nothing with codec='pickle'; drop one of them",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_right(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_options(**said)

    assert str(caught.value) == message
