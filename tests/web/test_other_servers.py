"""The servers that docs/how-to/web-workers.md names do what it says, started as they are there."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import shmbatch
from tests.processes import wait_until
from tests.programs import ROOT, started

pytestmark = pytest.mark.no_transport

GUIDE = (ROOT / "docs" / "how-to" / "web-workers.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("gunicorn", "granian"))
]
# What takes another way from its start to a call than those before it.
EVERYDAY = [line for line in COMMANDS if "granian wsgi" not in line and "Worker" not in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the guide, and its executor."""
    folder = tmp_path_factory.mktemp("guide")
    for text in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\w+\.py)", text)
        assert name is not None
        (folder / name[1]).write_text(text)
    with started("start", folder / "sums.py") as executor:
        assert executor.stderr is not None
        assert "serves" in executor.stderr.readline()
        yield folder
        shmbatch.stop("sums")


def test_the_guide_names_all_servers() -> None:
    assert len(COMMANDS) == 6
    assert {line.split()[0] for line in COMMANDS} == {"gunicorn", "granian"}
    assert sum("--preload" in line for line in COMMANDS) == 2
    assert len(EVERYDAY) == 3


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, id=line, marks=[] if line in EVERYDAY else [pytest.mark.slow])
        for line in COMMANDS
    ],
)
def test_workers_of_another_server_call(command: str, folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    arguments = shlex.split(command.replace("8000", str(port)))
    with started("-m", *arguments, python=True, cwd=folder) as server:
        answers = [wait_until(lambda: post(port, 1, 300), "it answers")]
        answers += [post(port, number, 1) for number in range(20)]
        assert answers == [(200, {"result": 301})] + [
            (200, {"result": number + 1}) for number in range(20)
        ]
        status, refused = post(port, 1, 2**63) or (0, {})
        assert status == 422
        assert "parameter 'ys' of sums.add" in refused["detail"]
        server.terminate()
        assert server.wait(60) == 0
    wait_until(lambda: attached() == 0, "its workers have gone")


def post(port: int, x: int, y: int) -> tuple[int, dict[str, object]] | None:
    """Return status and body of the answer; None while nobody is there."""
    body = json.dumps({"x": x, "y": y})
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request("POST", "/add", body, {"Content-Type": "application/json"})
        except ConnectionError:
            return None
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def attached() -> int:
    count: int = shmbatch.statistics("sums")["functions"]["add"]["producers"]
    return count
