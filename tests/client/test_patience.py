"""How long somebody waits for a name that nobody serves: as long as anybody may come."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from shmbatch import errors
from shmbatch.client import arriving
from shmbatch.client.arriving import connected
from shmbatch.client.handshake import answer_within
from shmbatch.client.limits import UNLIMITED, limits_from_now
from shmbatch.client.patience import Patience, check_loaded
from shmbatch.protocol import owners
from shmbatch.protocol.clock import now_ns
from shmbatch.protocol.names import Address
from shmbatch.protocol.ownership import DRAINING, LOADING, SERVING


class Name:
    """The name 'sums', and what its lock file says; None where nobody has it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.owner: owners.Owner | None = None
        patch.setattr(owners, "owner", lambda name: self.owner)

    def is_had(self, state: str, *, keeper: int | None = 1, since_ns: int | None = 1) -> None:
        self.owner = owners.Owner("sums", 2, state, since_ns, None, keeper)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Name:
    return Name(monkeypatch)


def test_it_lasts_while_a_supervisor_keeps_the_name(name: Name) -> None:
    patience = Patience("sums", None)
    name.is_had(LOADING)
    assert all(patience.is_left() for _ in range(3))
    name.owner = None
    assert not patience.is_left()
    name.is_had(LOADING, keeper=None)
    assert not patience.is_left()


def test_it_lasts_no_longer_than_it_is_to(name: Name) -> None:
    name.is_had(LOADING)
    assert not Patience("sums", now_ns()).is_left()


def test_nobody_comes_after_an_executor_that_drains(name: Name) -> None:
    name.is_had(DRAINING)
    assert not Patience("sums", None).is_left()


def test_one_that_serves_and_has_not_answered_twice_is_silent(name: Name) -> None:
    """Once, it may have begun to serve after it was asked."""
    patience = Patience("sums", None)
    name.is_had(SERVING)
    assert patience.is_left()
    assert not patience.is_left()


def test_one_that_loads_is_not_asked(name: Name) -> None:
    name.is_had(LOADING)
    with pytest.raises(errors.ExecutorNotFound, match=r"'sums' \(process 2\) is still loading"):
        check_loaded("sums")


@pytest.mark.parametrize("how", ["unkept", "other version", "serves", "foreign"])
def test_any_other_is(name: Name, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "foreign":

        def foreign(name: str) -> None:
            raise errors.ConfigError("not for us")

        monkeypatch.setattr(owners, "owner", foreign)
        assert not Patience("sums", None).is_left()
    elif how == "unkept":
        name.is_had(LOADING, keeper=None)
    elif how == "other version":
        name.is_had(LOADING, since_ns=None)
    else:
        name.is_had(SERVING)
    check_loaded("sums")


def test_an_executor_that_is_there_has_a_second_to_answer_however_late_it_is() -> None:
    assert answer_within(None) == 10
    assert answer_within(now_ns()) == 1
    assert 1 < answer_within(now_ns() + 60 * 10**9) <= 10


def test_of_many_tasks_that_nobody_answers_one_has_asked(name: Name) -> None:
    asked: list[str] = []

    class Handle:
        address = Address.parse("sums.add")

        def live(self) -> None:
            return None

        def connect(self, **options: Any) -> None:
            asked.append("sums")
            raise errors.ExecutorNotFound("nobody is there")

    async def calls() -> list[Any]:
        handle: Any = Handle()
        tasks = [connected(handle, UNLIMITED) for _ in range(50)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert {str(error) for error in asyncio.run(calls())} == {"nobody is there"}
    assert asked == ["sums"]
    assert arriving._turns == {}


def test_who_has_hardly_any_time_waits_for_the_task_that_connects(name: Name) -> None:
    late = threading.Event()

    class Handle:
        address = Address.parse("sums.add")
        connection: object = None

        def live(self) -> object:
            return self.connection

        def connect(self, **options: Any) -> object:
            late.wait()
            self.connection = self
            return self

    async def calls() -> tuple[Any, list[Any]]:
        handle: Any = Handle()
        tasks = [asyncio.create_task(connected(handle, limits_from_now(1e-6, None)))]
        await asyncio.sleep(0)
        for _ in range(9):
            tasks.append(asyncio.create_task(connected(handle, limits_from_now(1e-6, None))))
        await asyncio.wait(tasks, timeout=0.01)
        late.set()
        return handle, await asyncio.gather(*tasks)

    handle, connections = asyncio.run(calls())
    assert connections == [handle] * 10
