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
from shmbatch.client.limits import UNLIMITED, Limits, limits_from_now
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


class Handle:
    """Of a function of 'sums'; who is asked may be late, and answers with the handle itself."""

    address = Address.parse("sums.add")

    def __init__(self) -> None:
        self.connection: Any = None
        self.begun = threading.Semaphore(0)
        self.answers = threading.Semaphore(0)
        self.failures: list[Exception] = []
        self.asked = 0

    def live(self) -> Any:
        return self.connection

    def connect(self, **options: Any) -> Any:
        self.asked += 1
        self.begun.release()
        self.answers.acquire()
        if self.failures:
            raise self.failures.pop()
        self.connection = self
        return self

    def task(self, limits: Limits = UNLIMITED) -> asyncio.Task[Any]:
        handle: Any = self
        return asyncio.create_task(connected(handle, limits))

    async def task_that_asks(self) -> asyncio.Task[Any]:
        task = self.task()
        await asyncio.to_thread(self.begun.acquire)
        return task


def test_tasks_that_nobody_answers_ask_together(name: Name) -> None:
    async def calls() -> int:
        handle = Handle()
        handle.failures = [errors.ExecutorNotFound("nobody is there") for _ in range(50)]
        handle.answers.release(50)
        tasks = [handle.task() for _ in range(50)]
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(error) for error in failures} == {"nobody is there"}
        return handle.asked

    assert asyncio.run(calls()) <= 2, "of the first, and for those who came after it had asked"
    assert arriving._asking == {}


def test_an_answer_is_not_for_who_comes_after_the_question(name: Name) -> None:
    async def calls() -> None:
        handle = Handle()
        handle.failures = [errors.ExecutorNotFound("nobody was there")]
        early = await handle.task_that_asks()
        late = handle.task()
        await asyncio.sleep(0)
        handle.answers.release(2)
        assert await late is handle
        with pytest.raises(errors.ExecutorNotFound, match="nobody was there"):
            await early

    asyncio.run(calls())


def test_what_a_cancelled_task_has_asked_is_waited_for_by_the_next(name: Name) -> None:
    async def calls() -> None:
        handle = Handle()
        (await handle.task_that_asks()).cancel()
        for _ in range(20):
            task = handle.task()
            await asyncio.sleep(0)
            task.cancel()
        last = handle.task()
        await asyncio.sleep(0)
        handle.answers.release()
        assert await last is handle
        assert handle.asked == 1

    asyncio.run(calls())
    assert arriving._asking == {}


@pytest.mark.parametrize(
    ("timeout", "late_s"), [(1e-6, 0.01), pytest.param(30, 11, marks=pytest.mark.slow)]
)
def test_who_waits_for_another_task_has_a_second_and_as_long_as_its_call(
    name: Name, timeout: float, late_s: float
) -> None:
    async def calls() -> None:
        handle = Handle()
        first = await handle.task_that_asks()
        tasks = [handle.task(limits_from_now(timeout, None)) for _ in range(9)]
        await asyncio.wait(tasks, timeout=late_s)
        handle.answers.release()
        assert await asyncio.gather(first, *tasks) == [handle] * 10

    asyncio.run(calls())


def test_who_waits_for_a_name_that_is_kept_waits_no_longer_than_its_call(name: Name) -> None:
    name.is_had(LOADING)

    async def calls() -> None:
        handle = Handle()
        handle.failures = [errors.ExecutorNotFound("it loads") for _ in range(10_000)]
        handle.answers.release(10_000)
        unlimited = handle.task()
        with pytest.raises(errors.CallTimeout, match=r"had no executor within 0\.02 seconds"):
            await handle.task(limits_from_now(0.02, None))
        assert not unlimited.done()
        handle.failures = []
        assert await unlimited is handle

    asyncio.run(calls())
