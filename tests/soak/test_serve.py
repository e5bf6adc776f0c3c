"""A site under load whose workers are killed: nobody else notices, and nothing is left of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from dataclasses import dataclass, field
from operator import le

import pytest

import shmbatch
from tests.processes import APPS, wait_until
from tests.soak.holding import held
from tests.web.serving import Site, serving

WORKERS, CONNECTIONS, KILL_EVERY_S = 4, 64, 5.0

# What an executor has open for a producer: its socket, its pidfd, and their segment.
DESCRIPTORS = 3

# A worker that is replaced sixty times may have grown its supervisor by what a few pages hold.
GROWTH_MAX = 4 << 20


@dataclass
class Results:
    """What all connections saw."""

    killed: list[int] = field(default_factory=list)
    answered: int = 0
    latencies_s: list[float] = field(default_factory=list)
    lost: int = 0
    by: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


async def connection(site: Site, at: int, results: Results, enough: asyncio.Event) -> None:
    """Ask over one connection, and over another where that is lost with its worker."""
    number = at
    while not enough.is_set():
        kills = len(results.killed)
        worker = None  # whoever has accepted the connection
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        try:
            while not enough.is_set():
                number += CONNECTIONS
                begun = time.monotonic()
                writer.write(f"POST /twice?x={number} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split()[0])
                body = (await reader.readexactly(length)).decode()
                results.latencies_s.append(time.monotonic() - begun)
                if not head.startswith("http/1.1 200 ") or json.loads(body)[0] != 2 * number:
                    results.wrong.append(f"{number}: {head.splitlines()[0]} {body}")
                    continue
                results.answered += 1
                worker = json.loads(body)[1]
                results.by.add(worker)
        except (asyncio.IncompleteReadError, ConnectionError):
            results.lost += 1
            if worker is None:  # nobody knows who had it; somebody must have been killed
                was_killed = len(results.killed) > kills
            else:
                was_killed = worker in results.killed
            if not was_killed:
                results.wrong.append(f"{number}: lost by worker {worker}, which was not killed")
        finally:
            writer.close()


async def load(site: Site, seconds: float) -> Results:
    """Load *site* that long, killing a worker every five seconds."""
    results = Results()
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for at in range(CONNECTIONS):
            group.create_task(connection(site, at, results, enough))
        until = time.monotonic() + seconds
        while True:
            await asyncio.sleep(min(KILL_EVERY_S / 2, seconds / 2))
            if time.monotonic() >= until:
                break
            workers = site.workers()
            victim = workers[len(results.killed) % len(workers)]
            results.killed.append(victim)
            os.kill(victim, signal.SIGKILL)
            await asyncio.sleep(min(KILL_EVERY_S / 2, seconds / 2))
        enough.set()
    return results


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(120)]),
        pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_only_requests_on_a_killed_worker_are_lost(seconds: int, transport: str) -> None:
    with serving(APPS / "gated_site.py", "--workers", WORKERS) as site:
        asyncio.run(load(site, 1))  # what is allocated once is allocated now
        before = settled(site)
        results = asyncio.run(load(site, seconds))
        after = settled(site)
        site.watch()
        quantiles = statistics.quantiles(results.latencies_s, n=100)
        print(
            f"{transport}: {results.answered:,} answered in {seconds} s by {len(results.by)} "
            f"workers, {len(results.killed)} of them killed, {results.lost} requests lost with "
            f"them; latency p50 {quantiles[49] * 1e3:.1f} ms, p99 {quantiles[98] * 1e3:.1f} ms\n"
            f"executor and supervisor before {before}, after {after}"
        )
        assert results.wrong == []
        assert results.answered > 0
        assert len(results.killed) >= seconds / KILL_EVERY_S
        assert len(results.by) > 1
        for was, now in zip(before, after, strict=True):
            assert now["resident"] <= was["resident"] + GROWTH_MAX
            assert now["threads"] <= was["threads"]
        # Whoever has just been asked for its statistics has yet to hang up.
        wait_until(
            lambda: all(map(le, descriptors(site), (each["descriptors"] for each in before))),
            "they have no more descriptors than they had",
        )


def descriptors(site: Site) -> list[int]:
    return [each["descriptors"] for each in settled(site)]


def settled(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    """Wait until all workers are there, and the executor has let go of those who were.

    Returns:
        what executor and supervisor hold, but for what the executor has for its producers: a
        worker that was not asked yet is none.
    """
    wait_until(lambda: len(site.workers()) == WORKERS, "all workers are there")
    site.post("/twice?x=1")

    def attached() -> int:
        counted = shmbatch.statistics("gated_site")["functions"]["double"]
        return int(counted["producers"])

    wait_until(lambda: attached() <= WORKERS, "the dead are detached")
    executor = held(site.executor())
    executor["descriptors"] -= DESCRIPTORS * attached()
    return executor, held(site.process.pid)
