"""``shmbatch doctor``: what may be wrong here, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from .printing import printable, say, table

if TYPE_CHECKING:
    from ..doctor.finding import Finding

_LEVEL = len("warning")  # columns, so that the rest stands in the same place on every machine


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--fix", is_flag=True, help="Remove what executors have left that were killed.")
def command(as_json: bool, fix: bool) -> None:
    """Look at the machine, at settings and at executors, and say what to do.

    A warning works, for less or slower; a problem does not, and makes the exit status 1.
    """
    from ..doctor.examination import examine
    from ..protocol.names import PRIVATE_NAMES

    os.environ.pop(PRIVATE_NAMES, None)  # inside a run too: these are no app's names
    findings = examine(fix=fix)
    if as_json:
        say(json.dumps([each._asdict() for each in findings]))
    else:
        _print(findings)
    if any(each.level == "problem" for each in findings):
        sys.exit(1)


def _print(findings: list[Finding]) -> None:
    rows: list[tuple[str, str, str]] = []
    for each in findings:
        rows.append((each.level.ljust(_LEVEL), each.subject, printable(each.found)))
        if each.remedy:
            rows.append(("", "", f"-> {printable(each.remedy)}"))
    for line in table(("", "WHAT", "FOUND"), rows):
        say(line)
