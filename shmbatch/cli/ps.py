"""``shmbatch ps``: who serves what, from what their names say and what they answer."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from .printing import duration, printable, say, table

if TYPE_CHECKING:
    from ..protocol.owners import Owner

_ANSWER_S = 1.0  # an executor that has not answered by then is shown as one that does not
_ASKED_AT_ONCE = 32
_NOT_ANSWERING = "not answering"
_HEAD = ("NAME", "PID", "STATE", "UPTIME", "TRANSPORT", "PRODUCERS", "FUNCTIONS", "FILE")


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Print every executor of this directory, a line each.

    Its state is loading, serving, draining, or not answering.
    """
    from ..protocol import names, owners

    os.environ.pop(names.PRIVATE_NAMES, None)  # inside a run too: these are no app's names
    found = owners.owners()
    with ThreadPoolExecutor(max_workers=_ASKED_AT_ONCE) as asking:
        executors = list(asking.map(_described, found))
    if as_json:
        say(json.dumps(executors))
    else:
        _print(executors)


def _described(owner: Owner) -> dict[str, Any]:
    from ..client.asking import statistics
    from ..errors import ConfigError, ShmbatchError
    from ..protocol import ownership
    from ..protocol.clock import now_ns

    described: dict[str, Any] = {
        "name": owner.app,
        "pid": owner.pid,
        "state": owner.state,
        "uptime_s": None if owner.since_ns is None else (now_ns() - owner.since_ns) / 1e9,
        "transport": None,
        "producers": None,
        "functions": None,
        "file": owner.file,
    }
    if owner.state == ownership.SERVING:
        try:
            answer = statistics(owner.app, timeout=_ANSWER_S)
        except ConfigError:
            raise  # about ourselves, as that we may open no more descriptors
        except ShmbatchError:
            described["state"] = _NOT_ANSWERING
        else:
            functions = {name: each["producers"] for name, each in answer["functions"].items()}
            described["uptime_s"] = answer["uptime_s"]
            described["transport"] = answer["transport"]
            described["producers"] = sum(functions.values())
            described["functions"] = functions
    return described


def _print(executors: list[dict[str, Any]]) -> None:
    """Print a table. What is not known, because nobody has said it, is a dash."""
    rows = []
    for each in executors:
        uptime_s = each["uptime_s"]
        cells = (
            each["name"],
            each["pid"],
            each["state"],
            None if uptime_s is None else duration(uptime_s),
            each["transport"],
            each["producers"],
            ",".join(each["functions"] or ()) or None,
            None if each["file"] is None else printable(each["file"]),
        )
        rows.append(tuple("-" if cell is None else str(cell) for cell in cells))
    for line in table(_HEAD, rows):
        say(line)
