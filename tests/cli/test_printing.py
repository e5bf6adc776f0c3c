from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shmbatch.cli.printing import duration, memory, printable, table
from tests.programs import environment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0s"),
        (59.9, "59s"),
        (184, "3m 4s"),
        (7380.5, "2h 3m"),
        (93_600, "1d 2h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("nbytes", "text"), [(67_392, "65.8 KiB"), (3 << 20, "3.0 MiB")])
def test_memory_is_shown_with_its_unit(nbytes: int, text: str) -> None:
    assert memory(nbytes) == text


def test_columns_are_aligned_to_the_left_or_to_the_right() -> None:
    lines = list(table(("NAME", "N", "FILE"), [("sums", "100", "a.py"), ("x", "2", "b")], [1]))
    assert lines == ["NAME    N  FILE", "sums  100  a.py", "x       2  b"]


def test_control_characters_are_escaped_and_others_are_not() -> None:
    assert printable("/a b/é.py") == "/a b/é.py"
    assert printable("a\nb\x1b[31m\udcff") == r"a\nb\x1b[31m\udcff"


@pytest.mark.no_transport
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_one_line(options: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "shmbatch", "ps", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert result.stderr == "error: cannot write to standard output: No space left on device\n"
    assert result.returncode == 1
