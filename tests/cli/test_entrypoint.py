"""How an entrypoint's parameters are read from the command line."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import click
import pytest

from shmbatch.cli.entrypoint import parsed
from shmbatch.errors import ConfigError

if TYPE_CHECKING:
    from fractions import Fraction  # no module has it when a signature is read

pytestmark = pytest.mark.no_transport


class Colour(enum.Enum):
    RED = 1
    DARK_BLUE = 2


class Mode(enum.StrEnum):
    FAST = "quick"
    SLOW = "careful"


def called(entrypoint: Callable[..., Any], *arguments: str) -> Any:
    return entrypoint(**parsed(entrypoint, arguments, "shmbatch run a.py --"))


def every(
    count: int,
    part: float,
    text: str,
    flag: bool,
    path: Path,
    when: datetime,
    colour: Colour,
    mode: Mode,
    choice: Literal["a", 3],
    many: list[int],
    maybe: int | None,
    old: Optional[str],  # noqa: UP045
    bare,  # type: ignore[no-untyped-def]
    *,
    key_word: int,
) -> dict[str, Any]:
    return dict(locals())


EVERY = {
    "--count": ["-3"],
    "--part": ["1e-3"],
    "--text": ["--x y"],
    "--no-flag": [],
    "--path": ["a/b"],
    "--when": ["2026-01-02"],
    "--colour": ["DARK_BLUE"],
    "--mode": ["SLOW"],
    "--choice": ["3"],
    "--many": ["1", "--many", "2"],
    "--maybe": ["7"],
    "--old": [""],
    "--bare": ["8"],
    "--key-word": ["9"],
}


def test_every_supported_annotation_is_an_option() -> None:
    words = [word for option, values in EVERY.items() for word in (option, *values)]
    assert called(every, *words) == {
        "count": -3,
        "part": 0.001,
        "text": "--x y",
        "flag": False,
        "path": Path("a/b"),
        "when": datetime(2026, 1, 2),
        "colour": Colour.DARK_BLUE,
        "mode": Mode.SLOW,
        "choice": 3,
        "many": [1, 2],
        "maybe": 7,
        "old": "",
        "bare": "8",
        "key_word": 9,
    }


@pytest.mark.parametrize("missing", EVERY)
def test_what_has_no_default_must_be_given(missing: str) -> None:
    words = [
        word for option, values in EVERY.items() if option != missing for word in (option, *values)
    ]
    with pytest.raises(click.MissingParameter) as caught:
        called(every, *words)
    assert missing.replace("--no-", "--") in caught.value.format_message()


def test_what_is_not_given_has_pythons_own_default() -> None:
    unique = object()

    def defaulted(
        count: int = 3.5,  # type: ignore[assignment]
        part: float | None = None,
        many: list[int] | None = None,
        others: list[str] = ["x"],  # noqa: B006
        colour: Colour = Colour.RED,
        mode: Mode = Mode.FAST,
        choice: Literal["a", 3] = 3,
        flag: bool = True,
        off: bool = False,
        path: Path = Path("a"),
        when: datetime = datetime.max,
        anything: str = unique,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        return dict(locals())

    assert called(defaulted) == {
        "count": 3.5,
        "part": None,
        "many": None,
        "others": ["x"],
        "colour": Colour.RED,
        "mode": Mode.FAST,
        "choice": 3,
        "flag": True,
        "off": False,
        "path": Path("a"),
        "when": datetime.max,
        "anything": unique,
    }
    given = called(defaulted, "--no-flag", "--off", "--many", "1", "--mode", "SLOW")
    assert (given["flag"], given["off"], given["many"], given["mode"]) == (
        False,
        True,
        [1],
        Mode.SLOW,
    )


def test_without_annotation_a_parameter_is_what_its_default_is() -> None:
    def bare(n=3, part=0.5, loud=False, name="x", other=None):  # type: ignore[no-untyped-def]
        return n, part, loud, name, other

    assert called(bare) == (3, 0.5, False, "x", None)
    words = ["--n", "4", "--part", "1", "--loud", "--name", "5", "--other", "6"]
    assert called(bare, *words) == (4, 1.0, True, "5", "6")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "3.5"], "Invalid value for '--count': '3.5' is not a valid integer."),
        (["--part", "one"], "Invalid value for '--part': 'one' is not a valid float."),
        (["--colour", "blue"], "Invalid value for '--colour': 'blue' is not one of 'RED', 'DARK_"),
        (["--mode", "quick"], "Invalid value for '--mode': 'quick' is not one of 'FAST', 'SLOW'."),
        (["--choice", "b"], "Invalid value for '--choice': 'b' is not one of 'a', '3'."),
        (["--when", "noon"], "Invalid value for '--when': 'noon' does not match the formats"),
        (["--many", "1,2"], "Invalid value for '--many': '1,2' is not a valid integer."),
        (["--counts", "1"], "No such option '--counts'"),
        (["--text"], "Option '--text' requires an argument."),
    ],
)
def test_what_does_not_fit_is_wrong_usage(arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        called(every, *arguments)
    assert caught.value.format_message().startswith(message)


def test_an_entrypoint_without_parameters_has_no_options() -> None:
    def main() -> str:
        return "called"

    assert called(main) == "called"
    with pytest.raises(click.UsageError, match="No such option '--n'"):
        called(main, "--n", "3")
    with pytest.raises(click.UsageError, match=r"Got unexpected extra argument \(more\)"):
        called(main, "more")


def test_help_tells_the_options_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    def main(
        n_steps: int,
        colour: Colour = Colour.RED,
        many: list[int] = [1, 2],  # noqa: B006
        flag: bool = True,
        maybe: int | None = None,
    ) -> None:
        """Train for a while."""

    with pytest.raises(click.exceptions.Exit) as caught:
        called(main, "--help")
    assert caught.value.exit_code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Usage: shmbatch run a.py -- [OPTIONS] Train for a while.")
    for part in (
        "--n-steps INTEGER [required]",
        "--colour [RED|DARK_BLUE] RED by default.",
        "--many INTEGER 1, 2 by default.",
        "--flag / --no-flag yes by default.",
        "--maybe INTEGER --help",
    ):
        assert part in text


def test_an_annotation_that_no_option_can_have_is_refused() -> None:
    def tupled(pair: tuple[int, int]) -> None: ...

    def listed(names: list[list[str]]) -> None: ...

    def bare(names: list) -> None: ...  # type: ignore[type-arg]

    def either(name: int | str) -> None: ...

    for entrypoint, parameter, shown in (
        (tupled, "pair", "tuple[int, int]"),
        (listed, "names", "list[str]"),
        (bare, "names", "list"),
        (either, "name", "int | str"),
    ):
        with pytest.raises(ConfigError) as caught:
            called(entrypoint)
        assert str(caught.value) == (
            f"parameter {parameter!r} of entrypoint {entrypoint.__name__!r} has annotation "
            f"{shown}; use int, float, str, bool, Path, datetime, an Enum, a Literal, or a list "
            f"of one of these"
        )


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    def main(part: Fraction) -> None: ...

    with pytest.raises(ConfigError) as caught:
        called(main)
    assert str(caught.value) == (
        "an annotation of entrypoint 'main' cannot be resolved (NameError: name 'Fraction' is "
        "not defined); use names that the module has when it runs"
    )
