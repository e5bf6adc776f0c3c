"""Every behaviour that is to conform is tested here, and the page of differences is true.

The rows are those of a table of batching systems, in which Modal comes first; the paragraphs
are what is known of Modal beyond it. Each test of this folder says which it covers, in a comment
at its beginning: ``# Row 8. Spec: return.``
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_transport

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "explanation" / "differences-from-modal.md"

ROWS = {
    1: "largest batch",
    2: "wait",
    3: "idle executor",
    4: "batches by bytes, tokens or cost",
    5: "other parameters later",
    6: "one result that is an error",
    7: "kind of what is returned",
    8: "length of what is returned",
    9: "arguments that do not fit",
    10: "several arguments",
    11: "default arguments",
    12: "async functions",
    13: "sync functions",
    14: "sync functions that return coroutines",
    15: "generators",
    16: "methods",
    17: "several batched methods",
    18: "life cycle",
    19: "several batches at once",
    20: "growing while the executor is busy",
    21: "padding to allowed sizes",
    22: "values of different lengths",
    23: "sorting by length",
    24: "grouping by a key",
    25: "priorities",
    26: "fairness between callers",
    27: "deadlines of calls",
    28: "bounded queues",
    29: "cancelling one input",
    30: "order of results",
    31: "errors as values",
}
PARAGRAPHS = {
    "timer",
    "definition",
    "arguments",
    "return",
    "raise",
    "cancel",
    "async",
    "local",
    "results",
    "map",
}

_TAG = re.compile(r"Row (\d+)\.|Spec: (\w+)\.")


def spec_tests() -> Iterator[tuple[str, str, set[int | str]]]:
    """Yield file and name of each test of this folder, and what it says it covers."""
    for path in sorted(HERE.glob("test_*.py")):
        if path != Path(__file__):
            lines = path.read_text().splitlines()
            for node in ast.parse("\n".join(lines)).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    # The lines between the signature and the first statement of the test.
                    above = lines[node.lineno : node.body[0].lineno - 1]
                    comment = next((each for each in above if each.startswith("    # ")), "")
                    tags = {int(row) if row else word for row, word in _TAG.findall(comment)}
                    yield path.name, node.name, tags


def test_each_test_says_what_it_covers() -> None:
    silent = [f"{file}::{name}" for file, name, tags in spec_tests() if not tags]
    assert silent == []


def test_every_row_and_paragraph_is_covered() -> None:
    covered = {tag for *_, tags in spec_tests() for tag in tags}
    assert covered == ROWS.keys() | PARAGRAPHS


def rows_of_the_page() -> list[list[str]]:
    """The cells of each row of the page's tables, without their headings."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    headings = [at - 1 for at, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
    return [row for at, row in enumerate(cells) if at not in headings and at - 1 not in headings]


def test_each_difference_names_a_test_of_this_folder() -> None:
    known = defaultdict[str, set[str]](set)
    for file, name, _ in spec_tests():
        known[file].add(name.removeprefix("test_").replace("_", " "))
    rows = rows_of_the_page()
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 5, f"a row has {len(row)} cells: {row}"
        links = re.findall(r"\[([^]]+)\]\(\.\./\.\./tests/conformance/(\w+\.py)\)", row[4])
        assert links, f"{row[0]}: links no test"
        for text, file in links:
            assert text in known[file], f"{row[0]}: {file} has no test {text!r}"
