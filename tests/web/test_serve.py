from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmbatch
from shmbatch.protocol import owners
from tests.processes import APPS, Gate, wait_until
from tests.programs import ran, written
from tests.web.serving import CLIENT, THIRD_PROGRAM, Site, answer, asking, serving


def test_the_third_program_of_the_guide_runs_in_two_executions(tmp_path: Path) -> None:
    runs_as_the_guide_says(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.no_transport
def test_it_does_so_with_one_worker_and_under_another_name(tmp_path: Path) -> None:
    runs_as_the_guide_says(tmp_path, 1, "--name", "other")


def runs_as_the_guide_says(folder: Path, workers: int, *options: str) -> None:
    file = written(folder, "sums.py", THIRD_PROGRAM)
    with serving(file, "--workers", workers, *options) as site:
        client = written(folder, "client.py", CLIENT.format(url=site.url))
        result = ran(client, python=True)
        assert (result.stdout, result.stderr) == ("Sum: 301\nSum: 202\nSum: 103\n", "")
        name = options[1] if options else "sums"
        counted = shmbatch.statistics(name)["functions"]["batch_add"]
        assert (counted["calls_done"], counted["batches"]) == (3, 2)
        assert len(site.workers()) == workers
        assert site.said[0].endswith(f"with {workers} worker{'s' * (workers > 1)}")
        site.until(rf"POST {site.url}/add$")
        site.until(rf"documentation at {site.url}/docs$")


@pytest.fixture(scope="module")
def site(module_gate: Gate, transport: str) -> Iterator[Site]:
    with serving(APPS / "gated_site.py", "--limit", 3) as site:
        yield site


def held(what: str) -> Any:
    return shmbatch.statistics("gated_site")["functions"]["held"][what]


def test_a_client_that_goes_cancels_its_call(site: Site, module_gate: Gate) -> None:
    before = held("calls_cancelled")
    with asking(site, "/hold?x=1") as first:
        assert module_gate.arrived() == [1]
        with asking(site, "/hold?x=2"):
            wait_until(lambda: held("calls_waiting") == 1, "the second call waits")
        wait_until(lambda: held("calls_cancelled") == before + 1, "it is cancelled")
        assert held("calls_waiting") == 0
        module_gate.open()
        assert answer(first)[1] == "1", "its batch-mate is none of its business"


def test_a_sync_endpoint_whose_client_has_gone_runs_to_its_end(
    site: Site, module_gate: Gate
) -> None:
    with asking(site, "/hold?x=1") as first:
        assert module_gate.arrived() == [1]
        with asking(site, "/hold_in_thread?x=2"):
            wait_until(lambda: held("calls_waiting") == 1, "the second call waits")
        module_gate.open()
        assert answer(first)[1] == "1"
    assert module_gate.arrived() == [2]
    module_gate.open()
    wait_until(lambda: held("calls_in_flight") == 0, "it has run")


@pytest.mark.no_transport
def test_a_sync_endpoint_counts_until_its_end_whoever_has_gone(tmp_path: Path, gate: Gate) -> None:
    file = written(
        tmp_path,
        "threads.py",
        """
        import shmbatch
        from tests.processes import pass_through

        app = shmbatch.App()

        @app.function()
        @shmbatch.fastapi_endpoint()
        def wait(x: int) -> int:
            pass_through([x])
            return x
        """,
    )
    with serving(file, "--limit", 1) as site:
        with asking(site, "/wait?x=1") as gone:
            assert gate.arrived() == [1]
            gone.shutdown(socket.SHUT_RDWR)
        for _ in range(20):  # its worker has been told by then
            assert site.get("/wait?x=2").status == 503
        gate.open()
        wait_until(lambda: site.get("/nowhere").status == 404, "it has ended")


def test_one_request_too_many_is_answered_at_once_and_told_to_come_back(
    site: Site, module_gate: Gate
) -> None:
    with (
        asking(site, "/hold?x=1") as first,
        asking(site, "/hold?x=2") as second,
        asking(site, "/hold?x=3") as third,
    ):
        arrived = module_gate.arrived()
        wait_until(lambda: held("calls_waiting") == 3 - len(arrived), "all three have called")
        refused = site.post("/twice?x=1", padding="x" * 200_000)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.body == {"detail": "this worker has 3 requests in progress; try again"}
        assert site.get("/livez").status == site.get("/readyz").status == 200
        while len(arrived) < 3:
            module_gate.open()
            arrived += module_gate.arrived()
        module_gate.open()
        assert [answer(each)[1] for each in (first, second, third)] == ["1", "2", "3"]
    assert site.post("/twice?x=1").body[0] == 2


def test_it_is_ready_while_its_executor_answers(site: Site) -> None:
    assert site.get("/readyz").body == site.get("/healthz").body == {"status": "ready"}
    os.kill(site.executor(), signal.SIGSTOP)
    try:
        unready = site.get("/readyz")
        assert unready.status == 503
        assert "the executor of 'gated_site' does not answer" in unready.body["reason"]
        assert site.get("/livez").body == {"status": "alive"}
    finally:
        os.kill(site.executor(), signal.SIGCONT)
    site.ready()


@pytest.mark.no_transport
def test_an_app_without_functions_needs_no_executor(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "pages.py",
        """
        import contextlib
        import fastapi
        import shmbatch

        app = shmbatch.App()

        @contextlib.asynccontextmanager
        async def lives(site):
            yield {"greeting": "hello"}

        @app.function()
        @shmbatch.asgi_app()
        def pages():
            site = fastapi.FastAPI(lifespan=lives)

            @site.get("/greet/{name}")
            async def greet(name: str, request: fastapi.Request) -> str:
                return f"{request.state.greeting} {name}"

            return site
        """,
    )
    with serving(file) as site:
        site.until(rf"ASGI app at {site.url}/pages$")
        assert owners.owners() == []
        assert site.get("/readyz").status == 200
        for path in ("/greet/you", "/pages/greet/you"):
            assert site.get(path).body == "hello you"
        assert "greet" in str(site.get("/openapi.json").body), "its pages are its own"
