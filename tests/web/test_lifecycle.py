"""How a site ends, reloads, and survives; what is on the wire does not matter here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import shmbatch
from shmbatch.protocol import owners, ownership
from tests.processes import APPS, Gate, wait_until
from tests.programs import Watched, environment, ran, started, written
from tests.web.load import Client
from tests.web.serving import Site, answer, asking, hung_up, idle, serving

pytestmark = pytest.mark.no_transport

# Says in which version worker and executor are; notes each request that it has begun.
VERSIONED = """
    import asyncio
    import os
    import pathlib

    import shmbatch
    from tests.processes import pass_through

    app = shmbatch.App("versioned")
    file = pathlib.Path(__file__).with_name("begun")
    begun = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @app.function()
    @shmbatch.batched(max_batch_size=8, wait_ms=0)
    def version(xs: list[int]) -> list[int]:
        return [VERSION for _ in xs]

    @app.function()
    @shmbatch.batched(max_batch_size=8, wait_ms=0)
    async def held(xs: list[int]) -> list[int]:
        await asyncio.to_thread(pass_through, xs)
        return [VERSION for _ in xs]

    @app.function()
    @shmbatch.fastapi_endpoint()
    async def hold() -> list[int]:
        return [VERSION, await held.remote.aio(0)]

    @app.function()
    @shmbatch.fastapi_endpoint()
    async def which() -> list[int]:
        os.write(begun, b".")
        return [VERSION, await version.remote.aio(0)]
"""


def versioned(folder: Path, version: int) -> Path:
    return written(folder, "versioned_site.py", VERSIONED, f"VERSION = {version}")


def test_a_stop_lets_accepted_requests_finish(gate: Gate) -> None:
    with serving(APPS / "gated_site.py") as site:
        with idle(site) as other, asking(site, "/hold?x=1") as first:
            assert gate.arrived() == [1]
            site.signal(signal.SIGTERM)
            site.until("stops: requests that were accepted finish")
            assert hung_up(other), "a connection that asks for nothing is closed"
            gate.open()
            head, body = answer(first)
            assert body == "1"
            assert "connection: close" in head
        assert site.process.wait(60) == 0


@pytest.mark.slow
def test_a_request_that_never_ends_holds_up_a_reload_for_so_long(gate: Gate) -> None:
    with serving(APPS / "gated_site.py", "--grace", 2) as site:
        (old,) = site.workers()
        with asking(site, "/hold?x=1") as endless:
            assert gate.arrived() == [1]
            site.signal(signal.SIGHUP)
            site.until(rf"\(process {old}\) has not finished within 2 s and is killed")
            assert hung_up(endless)
        gate.open()
        site.until_it_serves()
        assert site.post("/twice?x=1").body == [2, *site.workers()]


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_reload_lets_calls_finish(tmp_path: Path, gate: Gate) -> None:
    with serving(versioned(tmp_path, 1)) as site:
        call = shmbatch.connect("versioned.held").spawn(0)  # of another producer
        assert gate.arrived() == [0]
        site.signal(signal.SIGHUP)
        wait_until(lambda: state() == ownership.DRAINING, "the executor drains")
        (next_worker,) = site.workers()
        site.signal(signal.SIGTERM)
        # Reaped, too: now it is the executor's turn to be told, which it is already.
        wait_until(lambda: not Path(f"/proc/{next_worker}").exists(), "who waits to serve is gone")
        gate.open()
        assert call.get(timeout=60) == 1
        assert site.process.wait(60) == 0


def state() -> str | None:
    owner = owners.owner("versioned")
    return None if owner is None else owner.state


@pytest.mark.slow
def test_a_second_signal_lets_nothing_finish(gate: Gate) -> None:
    with serving(APPS / "gated_site.py") as site:
        with asking(site, "/hold?x=1") as first:
            assert gate.arrived() == [1]
            site.signal(signal.SIGINT)
            site.until("stops: requests that were accepted finish")
            site.signal(signal.SIGINT)
            assert hung_up(first)
            assert site.process.wait(60) == 128 + signal.SIGINT
        assert owners.owner("gated_site") is None


@pytest.mark.slow
def test_a_reload_runs_new_code_and_accepted_requests_finish_with_the_old(
    tmp_path: Path, gate: Gate
) -> None:
    with serving(versioned(tmp_path, 1)) as site:
        old = {site.executor(), *site.workers()}
        with idle(site) as other, asking(site, "/hold") as first:
            assert gate.arrived() == [0]
            versioned(tmp_path, 2)
            site.signal(signal.SIGHUP)
            assert hung_up(other), "a connection that asks for nothing is closed"
            with asking(site, "/which") as second:  # nobody accepts: it waits
                gate.open()
                assert answer(first)[1] == "[1,1]"
                site.until_it_serves()
                assert answer(second)[1] == "[2,2]"
        assert not old & {site.executor(), *site.workers()}
        assert ran("stop", "versioned").returncode == 0
        assert site.process.wait(60) == 0, "a site whose executor was stopped has done its duty"


@pytest.mark.slow
def test_a_site_under_load_reloads_and_stops_and_loses_no_request(tmp_path: Path) -> None:
    with serving(versioned(tmp_path, 1), "--workers", 2) as site:
        clients = [Client(site.port, "/which", kept=at % 2 == 0) for at in range(6)]
        for client in clients:
            client.until([1, 1])
        (tmp_path / "versioned_site.py").write_text("raise RuntimeError('not yet')")
        site.signal(signal.SIGHUP)
        site.until(r"nothing is reloaded: .*RuntimeError: not yet \(line 1\)")
        versioned(tmp_path, 2)
        site.signal(signal.SIGHUP)
        for client in clients:
            client.until([2, 2])
        site.until_it_serves()
        assert [client.lost for client in clients] == [0] * 6

        assert site.stop() == 0
        for client in clients:
            client.join()
    answers = [answer for client in clients for answer in client.answers]
    assert [client.others for client in clients] == [[]] * 6
    assert {tuple(answer) for answer in answers} == {(1, 1), (2, 2)}, "old calls old, new new"
    assert len(answers) == (tmp_path / "begun").stat().st_size, "some had no answer"


def test_killed_workers_and_executors_are_replaced_and_a_killed_supervisor_ends_all() -> None:
    with serving(APPS / "gated_site.py", "--workers", 2) as site:
        killed, other = site.workers()
        os.kill(killed, signal.SIGKILL)
        site.until(rf"a web worker \(process {killed}\) was killed by SIGKILL and is replaced")
        assert site.post("/twice?x=1").body == [2, other]
        wait_until(lambda: len(site.workers()) == 2, "there is another")
        site.watch()
        (new,) = set(site.workers()) - {other}
        os.kill(other, signal.SIGSTOP)  # so that the new one has to answer
        assert site.post("/twice?x=2").body == [4, new]
        os.kill(other, signal.SIGCONT)

        executor, supervisor = site.executor(), site.supervisor()
        os.kill(executor, signal.SIGKILL)
        site.until(r"gated_site was killed by SIGKILL; it is started again")
        wait_until(lambda: site.post("/twice?x=3").status == 200, "there is another")
        assert site.executor() != executor
        site.watch()
        os.kill(supervisor, signal.SIGKILL)
        assert site.process.wait(60) == 1
        assert site.rest().splitlines()[-1] == (
            f"error: the supervisor of 'gated_site' (process {supervisor}) was killed by SIGKILL"
        )
        assert site.family_gone()
    assert owners.owner("gated_site") is None


@pytest.mark.slow
def test_everything_ends_when_the_supervisor_is_killed(gate: Gate) -> None:
    with serving(APPS / "gated_site.py", "--workers", 2) as site:
        with asking(site, "/hold?x=1") as first:
            assert gate.arrived() == [1]
            site.signal(signal.SIGKILL)
            gate.open()
            assert answer(first)[1] == "1"
        assert site.family_gone()
        site.process.wait(60)
    assert owners.owner("gated_site") is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_loads_for_ever_ends_with_the_supervisor(
    number: int, tmp_path: Path
) -> None:
    file = written(
        tmp_path,
        "slow_site.py",
        """
        import os, pathlib, threading
        pathlib.Path(__file__).with_name(f"loading-{os.getpid()}").touch()
        threading.Event().wait()
        """,
    )
    with started("serve", file, "--port", 0) as process:
        (loading,) = wait_until(lambda: list(tmp_path.glob("loading-*")), "it loads")
        with Watched(int(loading.name.partition("-")[2])) as worker:
            process.send_signal(number)
            assert worker.gone()
            assert process.wait(60) == (-9 if number == signal.SIGKILL else 0)


@pytest.mark.slow
@pytest.mark.parametrize("ignores", [False, True])
def test_a_site_whose_terminal_is_gone_stops_unless_under_nohup(ignores: bool) -> None:
    ours, theirs = os.openpty()
    take = "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    if ignores:
        take += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    run = "os.execv(sys.executable, [sys.executable, '-m', 'shmbatch', 'serve', *sys.argv[1:]])"
    with subprocess.Popen(
        [sys.executable, "-c", take + run, str(APPS / "gated_site.py"), "--port", "0"],
        stdin=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        site = Site(process)
        with closing(site):
            site.signal(signal.SIGHUP)
            site.until("reloads")  # there still is one
            site.until_it_serves()
            os.close(ours)
            if ignores:
                site.until("reloads")
                site.until_it_serves()
                assert site.stop() == 0
            assert process.wait(60) == 0
            assert site.family_gone()
    assert owners.owner("gated_site") is None
