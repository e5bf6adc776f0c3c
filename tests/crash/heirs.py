"""Who calls a supervised executor that is killed, and what must be true of each of their calls."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import shmbatch
from shmbatch import errors
from tests import processes
from tests.crash import roles
from tests.crash.bystanders import TOLD, Bystander, mapped, swept
from tests.crash.points import End, Victims
from tests.processes import PATIENCE_S

NAME = "succession"

Outcomes = dict[int, Any]


class Heirs:
    """Producers in this process whose executor, or its supervisor, is killed while they call.

    Each call ends once. One that may not be repeated was executed at most once, and once if it has
    a result; one that may be has a result as long as there is a supervisor.
    """

    def __init__(self, name: str, ledger: Path) -> None:
        self.name = name
        self._ledger = ledger
        self._outcomes: dict[str, Outcomes] = {}
        self._before = processes.descriptors(), mapped()

    def call(self) -> None:
        """Make calls in every way, each once; then have the executor stop."""
        self._ledger.write_bytes(b"")
        ways = (self._in_turn, self._through_few_slots, self._mapped, self._at_once)
        self._outcomes = {}
        with ThreadPoolExecutor(len(ways)) as threads:
            for each in [threads.submit(way) for way in ways]:
                try:
                    self._outcomes |= each.result(2 * PATIENCE_S)
                except TOLD as error:  # while it connected
                    self._outcomes |= {f"none, {len(self._outcomes)}": {-1: error}}
        with suppress(errors.ExecutorNotFound):
            shmbatch.stop(self.name)

    def are_served(self, *, supervised: bool) -> None:
        """Every call has the outcome that it is to have, and nothing is left.

        Args:
            supervised: the supervisor was not killed itself.
        """
        executed = Counter(map(int, self._ledger.read_text().split()))
        for function, outcomes in self._outcomes.items():
            for x, outcome in outcomes.items():
                if isinstance(outcome, BaseException):
                    gone = errors.ExecutorGone if supervised else TOLD
                    assert isinstance(outcome, gone), outcome
                    assert not supervised or not function.startswith("often"), outcome
                    assert executed[x] <= (3 if function.startswith("often") else 1)
                else:
                    assert outcome == 2 * x
                    assert 1 <= executed[x] <= (3 if function.startswith("often") else 1)
        self._outcomes.clear()
        roles.hang_up(self.name)
        if (processes.descriptors(), mapped()) != self._before:
            gc.collect()
        assert (processes.descriptors(), mapped()) == self._before
        swept(self.name)

    def _function(self, name: str) -> shmbatch.Function:
        return shmbatch.connect(f"{self.name}.{name}", timeout=PATIENCE_S, wait="park")

    def _in_turn(self) -> dict[str, Outcomes]:
        once = self._function("once")
        return {"once": {x: _outcome(once.remote, x) for x in range(5)}}

    def _through_few_slots(self) -> dict[str, Outcomes]:
        few = self._function("few")
        with ThreadPoolExecutor(2) as threads:
            xs = range(10, 15)
            outcomes = threads.map(lambda x: _outcome(few.remote, x), xs)
            return {"few": dict(zip(xs, outcomes, strict=True))}

    def _mapped(self) -> dict[str, Outcomes]:
        often = self._function("often")
        xs = range(20, 30)
        return {"often": dict(zip(xs, often.map(xs, return_exceptions=True), strict=True))}

    def _at_once(self) -> dict[str, Outcomes]:
        async def calls() -> dict[str, Outcomes]:
            once, often = self._function("once"), self._function("often")
            xs = range(30, 36), range(40, 46)
            outcomes = await asyncio.gather(
                *(once.remote.aio(x) for x in xs[0]),
                *(often.remote.aio(x) for x in xs[1]),
                return_exceptions=True,
            )
            middle = len(xs[0])
            return {
                "once.aio": dict(zip(xs[0], outcomes[:middle], strict=True)),
                "often.aio": dict(zip(xs[1], outcomes[middle:], strict=True)),
            }

        return asyncio.run(calls())


def _outcome(call: Any, x: int) -> Any:
    try:
        return call(x)
    except TOLD as error:
        return error


def kill_moving(supervisors: Victims, producers: Victims, transport: str, at: int = 0) -> End:
    """Kill a producer at one of the points that it passes once its executor is dead."""
    supervisors.fork("executor", NAME, transport, "--restart")
    assert "ready" in supervisors.line()
    bystander = Bystander(NAME)
    bystander.waits()
    producers.fork("moved", NAME, at=at)
    end = producers.end()
    bystander.goes_on()
    bystander.has_all_slots()
    roles.hang_up(NAME)
    shmbatch.stop(NAME)
    assert supervisors.end(supervised=True).status == 0
    swept(NAME)
    return end
