"""Says at the end of a test session at how many fault points processes were killed.

With SHMBATCH_FAULT_POINTS=FILE the same is written to a file, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.crash.points import Visits

Recorder = Callable[[str, Any], None]  # pytest's `record_property`

REPORTED = "fault_points"  # a property of tests, which travels from workers to their controller

_LINE = "{transport:6} {role:24} {kills:6} kills at "
_ENUMERATED = "points ({kind}), {how}, the last of them the {last}th"


def record(recorder: Recorder, visits: Visits) -> None:
    """Have the session say what a test has visited."""
    recorder(REPORTED, asdict(visits))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each enumeration."""
    records: list[dict[str, Any]] = []
    for report in terminalreporter.getreports("passed"):
        over = next((name for name in ("linux", "posix") if f"[{name}" in report.nodeid), "")
        records += [
            {"transport": over, **value}
            for key, value in report.user_properties
            if key == REPORTED
        ]
    if not records:
        return
    terminalreporter.section("kills at fault points")
    for each in records:
        where = "random moments" if each["kind"] == "random" else _ENUMERATED
        how = "at every one" if each["step"] == 1 else f"at one in {each['step']}"
        terminalreporter.line((_LINE + where).format(how=how, **each))
    if path := os.environ.get("SHMBATCH_FAULT_POINTS"):
        Path(path).write_text(json.dumps(records, indent=1) + "\n")
