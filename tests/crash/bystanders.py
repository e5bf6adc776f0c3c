"""Who is left when a producer or an executor was killed, and what must be true for them."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shmbatch
from shmbatch import errors
from tests import processes
from tests.crash import roles
from tests.processes import PATIENCE_S, Served

SHARED_MEMORY = Path("/dev/shm")
TOLD = (errors.ExecutorGone, errors.ExecutorClosed, errors.ExecutorNotFound)

_SHARED = ("/memfd:", "/dev/shm/")


def mapped(pid: int | str = "self") -> int:
    """How many segments and semaphores a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return sum(maps.count(path) for path in _SHARED)


def named(pid: int) -> set[str]:
    """What a process has in /dev/shm."""
    return {each.name for each in SHARED_MEMORY.iterdir() if f"shmbatch-{pid}-" in each.name}


def _is_idle(handle: shmbatch.Function) -> bool:
    connection = handle._connection
    assert connection is not None
    return connection.ring.free_slots == connection.capacity


def swept(name: str) -> None:
    """Nobody serves *name*, and asking removes what a killed executor has left of it."""
    with pytest.raises(errors.ExecutorNotFound):
        shmbatch.stop(name)
    assert not list(Path(os.environ["SHMBATCH_DIR"]).glob(f"{name}*"))


class Bystander:
    """A producer in this process, at the same executor as one that is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._double, self._triple, self._never = (
            shmbatch.connect(f"{name}.{each}") for each in ("double", "triple", "never")
        )
        self._pending: list[Any] = []

    def waits(self) -> None:
        """Have calls pending when the other one comes."""
        self._pending = [self._never.spawn(x) for x in (10, 11)]

    def goes_on(self) -> None:
        """The other one is gone, and our calls have their own results."""
        processes.wait_until(self._is_alone, "the dead producer is gone")
        more = [self._never.spawn(x) for x in range(20, 24)]  # a batch with or without the others
        assert [call.get(PATIENCE_S) for call in self._pending] == [20, 22]
        for x, call in zip(range(20, 24), more, strict=True):
            try:
                assert call.cancel() or call.get(PATIENCE_S) == 2 * x
            except errors.CallCancelled:
                pass  # it was running
        assert self._double.remote(3) == 6
        assert asyncio.run(self._triple.remote.aio(3)) == 9

    def has_all_slots(self) -> None:
        """Whatever has become of our calls, their slots are free."""
        for handle in (self._double, self._triple, self._never):
            processes.wait_until(partial(_is_idle, handle), "all slots are back")

    def _is_alone(self) -> bool:
        try:
            counted = shmbatch.statistics(self.name)["functions"].values()
        except errors.ExecutorNotFound:
            return False  # the next one is not there yet
        return all(each["producers"] <= 1 for each in counted)


class Attentive(Bystander):
    """A bystander that knows what its executor has open, mapped and named."""

    def __init__(self, executor: Served) -> None:
        super().__init__(executor.name)
        self._pid = executor.pid
        processes.wait_until(self._is_settled, "handshakes are over")
        self._before = self._left()

    def goes_on(self) -> None:
        """Also, all is freed that was the other one's."""
        super().goes_on()
        processes.wait_until(lambda: self._left() == self._before, "all of the dead one is freed")

    def _is_settled(self) -> bool:
        """Whether the executor has closed what it had open for handshakes, and for others."""
        kinds = Counter(processes.descriptors(self._pid).values())
        pidfds = kinds["anon_inode:[pidfd]"]
        shared = sum(count for kind, count in kinds.items() if kind.startswith(_SHARED))
        # Its own, and one for each of us; two of the bell, and what a mapping has for each of us.
        return pidfds == 1 + 3 and shared == 2 + 3

    def _left(self) -> tuple[int, int, set[str]]:
        return len(processes.descriptors(self._pid)), mapped(self._pid), named(self._pid)


class Orphans:
    """Producers in this process whose executor is killed while they wait in every way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._threads: list[threading.Thread] = []
        self._wrong: list[BaseException] = []

    def __enter__(self) -> Orphans:
        gc.collect()
        gc.freeze()  # or a collection after each death takes longer than all the rest
        self._before = self._left()
        return self

    def __exit__(self, *exc_info: object) -> None:
        gc.unfreeze()

    def call(self) -> None:
        """Make calls until the executor is gone, or has stopped because we asked it to."""
        try:
            self._calls()
        except TOLD:
            pass
        self._stop()

    def are_told(self) -> None:
        """Nobody waits any more, everybody was told or has his result, and nothing is left."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} waits for ever"
        self._threads.clear()
        for error in self._wrong:
            raise error
        roles.hang_up(self.name)
        if self._left() != self._before:
            gc.collect()  # errors, and the frames that they come from
        assert self._left() == self._before
        swept(self.name)

    def _left(self) -> tuple[dict[int, str], int]:
        return processes.descriptors(), mapped()

    def _calls(self) -> None:
        pending = [roles.handle(self.name, "never").spawn(x) for x in range(2)]
        stuck = roles.handle(self.name, "stuck")
        taken = [stuck.spawn(x) for x in range(2)]  # all slots that there are
        waiting: list[tuple[str, Callable[[], Any], Any]] = [
            ("get", pending[0].get, 0),
            ("get again", pending[0].get, 0),
            ("gather", lambda: shmbatch.FunctionCall.gather(*pending), [0, 2]),
            ("a slot", lambda: stuck.remote(5), 10),
            ("map", lambda: list(roles.handle(self.name, "never").map([7])), [14]),
        ]
        for what, call, result in waiting:
            self._start(what, call, result)
        self._start("event loop", lambda: asyncio.run(self._loop()), None)
        double = roles.handle(self.name, "double")
        assert double.remote(1) == 2
        assert list(double.map(range(5))) == [0, 2, 4, 6, 8]
        roles.values(self.name)
        leaving = roles.handle(self.name, "double", arrays="numpy")
        assert leaving.remote(2) == 4
        assert [call.cancel() for call in taken[1:]] in ([True], [False])
        connection = leaving._connection
        assert connection is not None
        connection.close()

    def _start(self, what: str, call: Callable[[], Any], result: Any) -> None:
        def run() -> None:
            try:
                assert call() == result
            except TOLD:
                pass
            except BaseException as error:
                self._wrong.append(error)

        thread = threading.Thread(target=run, name=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    async def _loop(self) -> None:
        triple = roles.handle(self.name, "triple")
        stuck = roles.handle(self.name, "stuck", arrays="numpy")
        never = roles.handle(self.name, "never")
        taken = [await stuck.spawn.aio(x) for x in range(2)]
        outcomes = await asyncio.gather(
            *(triple.remote.aio(x) for x in range(5)),
            never.remote.aio(6),
            stuck.remote.aio(7),
            taken[0].get.aio(),
            return_exceptions=True,
        )
        for outcome, result in zip(outcomes, [0, 3, 6, 9, 12, 12, 14, 0], strict=True):
            if isinstance(outcome, BaseException):
                if not isinstance(outcome, TOLD):
                    raise outcome
            else:
                assert outcome == result

    def _stop(self) -> None:
        try:
            shmbatch.stop(self.name)
        except errors.ExecutorNotFound:
            pass
