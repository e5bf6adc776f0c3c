"""What `shmbatch serve` refuses, and how: one line, and the status that says whose fault it is."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.programs import ROOT, SERVED, ran, written
from tests.web.serving import THIRD_PROGRAM

pytestmark = pytest.mark.no_transport


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = ran("serve", tmp_path / "no_such_file.py", "--port", port)
    assert result.stderr == (
        f"error: port {port} of '127.0.0.1' is in use; choose another --port\n"
    )
    assert (result.stdout, result.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("nowhere.invalid", "cannot listen on 'nowhere.invalid': "),
        ("192.0.2.1", "cannot listen on '192.0.2.1': it is no address of this machine; "),
        ("." * 300, f"cannot listen on '{'.' * 300}': "),
    ],
)
def test_a_host_that_is_not_here_is_refused(host: str, reason: str, tmp_path: Path) -> None:
    result = ran("serve", tmp_path / "no_such_file.py", "--port", 0, "--host", host)
    assert result.stderr.startswith(f"error: {reason}")
    assert result.stderr.endswith("; choose another --host\n")
    assert (result.stderr.count("\n"), result.returncode) == (1, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SERVED, "app 'site_to_be' has no endpoints; put @shmbatch.fastapi_endpoint(...) or"),
        ("import os; os._exit(3)", "ended with status 3 while it started; see its output above"),
    ],
    ids=["no endpoint", "ends"],
)
def test_a_file_that_cannot_be_served_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    result = ran("serve", written(tmp_path, "site_to_be.py", text), "--port", 0)
    assert reason in result.stderr
    assert (result.stderr.count("\n"), result.stdout, result.returncode) == (1, "", 1)


def test_a_startup_that_fails_ends_it(tmp_path: Path) -> None:
    text = """
        import contextlib
        import fastapi
        import shmbatch

        app = shmbatch.App()

        @contextlib.asynccontextmanager
        async def lives(site):
            raise RuntimeError("no model")
            yield

        @app.function()
        @shmbatch.asgi_app()
        def pages():
            return fastapi.FastAPI(lifespan=lives)
    """
    result = ran("serve", written(tmp_path, "pages.py", text), "--port", 0)
    assert "the startup of the ASGI app of endpoint 'pages' failed: " in result.stderr
    assert "RuntimeError: no model\n" in result.stderr
    reason = "error: an endpoint of app 'pages' failed to start, see above"
    assert result.stderr.splitlines()[-1] == reason
    assert result.returncode == 1


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = ran("serve", tmp_path / "missing.py", "--port", 0)
    assert result.stderr == f"error: there is no file '{tmp_path / 'missing.py'}'\n"
    assert result.returncode == 1


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    written(tmp_path, "uvicorn.py", "raise ModuleNotFoundError('no uvicorn', name='uvicorn')")
    file = written(tmp_path, "sums.py", THIRD_PROGRAM)
    result = ran("serve", file, "--port", 0, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert result.stderr == (
        "error: uvicorn is not installed; get it with `pip install 'shmbatch[web]'`\n"
    )
    assert result.returncode == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--port", 65_536],
        ["--workers", 0],
        ["--limit", 0],
        ["--grace", 1],
        ["--wait", "nap"],
        ["--device", "tpu"],
        ["--transport", "tcp"],
        ["--reload"],
        [],
    ],
    ids=str,
)
def test_wrong_options_are_wrong_usage(options: list[object], tmp_path: Path) -> None:
    file = [] if not options else [tmp_path / "missing.py"]
    result = ran("serve", *file, *options)
    assert (result.stdout, result.returncode) == ("", 2)
    assert result.stderr.startswith("Usage: shmbatch serve")


def test_a_wrong_name_is_refused(tmp_path: Path) -> None:
    result = ran("serve", tmp_path / "missing.py", "--name", "a b")
    assert result.stderr.startswith("error: app name is 'a b'; a name is 1 to 40")
    assert result.returncode == 1
