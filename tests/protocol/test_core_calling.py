"""What the core does of a call by itself, and what it leaves to Python: Verb, Call, GetVerb."""

from __future__ import annotations

import gc
import operator
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest

from shmbatch.protocol._core import FAILED, PENDING, WAITER, Call, Failure, GetVerb, Spinning, Verb
from shmbatch.protocol.clock import now_ns
from tests import processes
from tests.protocol.transport_peer import is_asleep
from tests.rings import Served, Wire

PUBLISHED = "what the slow verb returns"


class Connection:
    """What a verb follows: it notes what it is asked."""

    def __init__(self, wire: Wire, conclude: Callable[..., Any] | None = None) -> None:
        self.ring = wire.producer
        self.asked: list[tuple[Any, ...]] = []
        self._conclude = conclude or (lambda ticket, outcome: (ticket, outcome))

    def conclude(self, ticket: int, outcome: Any, timeout: float | None, since_ns: int) -> Any:
        self.asked.append(("conclude", ticket, outcome, timeout))
        return self._conclude(ticket, outcome)

    def abandon(self, ticket: int) -> None:
        self.asked.append(("abandon", ticket))

    def tell_queue(self) -> None:
        self.asked.append(("tell_queue",))


class Spawned(Call):
    """As the client's own: with what the core leaves."""

    __slots__ = ("__weakref__",)
    dropped: list[int] = []
    lost: list[BaseException] = []

    def _settle_otherwise(self) -> bool:
        return False

    def _lost(self, error: BaseException) -> None:
        self.lost.append(error)
        self._outcome, self._state = error, 2

    def _tell(self) -> None:
        self._connection.asked.append(("tell", self._ticket))

    def _dropped(self) -> None:
        self.dropped.append(self._ticket)

    def _get(self, timeout: float | None = None) -> Any:
        return ("slow", timeout, self._state)

    async def _get_aio(self) -> Any:
        return None

    get = GetVerb(_get, _get_aio)


@pytest.fixture(autouse=True)
def nobody_dropped() -> None:
    Spawned.dropped, Spawned.lost = [], []


def slow(*args: Any, **kwargs: Any) -> Any:
    """Do it in Python."""
    return (PUBLISHED, args, kwargs)


def remote(connection: Connection | None, timeout: float | None = None) -> Verb:
    verb = Verb(slow, slow)
    verb.follow(connection, timeout)
    return verb


def spawn(connection: Connection | None) -> Verb:
    verb = Verb(slow, slow, Spawned, "limits")
    verb.follow(connection)
    return verb


def answer(served: Served, *results: Any) -> None:
    served.take()
    served.answer(*results)


def got(call: Spawned) -> Any:
    """Return what `get` does; in an assertion it would be bound first, and then called."""
    return call.get()


@contextmanager
def answering(served: Served, add: Callable[[int, int], int]) -> Iterator[None]:
    """Answer one call, from another thread."""

    def answer_one() -> None:
        while not served.take():
            pass
        ((x,), (y,)) = served.inputs()
        served.answer(add(x, y))

    thread = threading.Thread(target=answer_one)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# ---- remote ----


def test_a_result_that_spinning_brings_is_returned_without_asking_python() -> None:
    wire = Wire()
    served = Served(wire)
    connection = Connection(wire)
    wire.producer.spinning = Spinning(60_000_000_000, False)

    with answering(served, operator.add):
        assert remote(connection)(1, 300) == 301

    assert connection.asked == []


def test_what_is_not_there_yet_python_waits_for() -> None:
    wire = Wire()
    connection = Connection(wire)

    ticket, outcome = remote(connection, 2.5)(1, 2)

    assert outcome is PENDING
    assert connection.asked == [("conclude", ticket, PENDING, 2.5)]


HOUR_NS = 3_600_000_000_000


def asleep(wire: Wire, ticket_of: int = 0) -> bool:
    """Say whether a thread has announced that it sleeps for the call in a slot."""
    return bool(wire.read(wire.state_offset(ticket_of)) & WAITER)


@contextmanager
def answered_asleep(wire: Wire, served: Served) -> Iterator[None]:
    """Answer one call when its caller sleeps, and wake it."""

    def answer_one() -> None:
        processes.wait_until(lambda: asleep(wire), "the caller sleeps")
        assert served.take() == 1
        for ring, _, threads, slots in served.answer(7):
            ring.wake(threads, slots)

    thread = threading.Thread(target=answer_one)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_the_core_sleeps_by_itself_where_it_may_and_learns_from_it() -> None:
    wire = Wire()
    served = Served(wire)
    connection = Connection(wire)
    wire.producer.park_ns = HOUR_NS
    wire.producer.looked_ns = now_ns()
    wire.producer.spinning = spinning = Spinning(1, True)

    with answered_asleep(wire, served):
        assert remote(connection)(1, 2) == 7
    assert spinning.spin_ns == 0  # that was in vain
    call = spawn(connection)(3, 4)
    with answered_asleep(wire, served):
        result = call.get()

    assert result == 7
    assert spinning.spin_ns == 1  # it is tried again
    assert connection.asked == []


def test_the_core_does_not_sleep_where_python_is_to_look_before() -> None:
    wire = Wire()
    connection = Connection(wire)
    wire.producer.park_ns = 1_000_000
    wire.producer.looked_ns = now_ns() - 2_000_000

    remote(connection)(1, 2)
    call = spawn(connection)(3, 4)

    assert [asked[0] for asked in connection.asked] == ["conclude"]
    assert got(call) == ("slow", None, 0)
    assert not asleep(wire, 0)
    assert not asleep(wire, 1)


def test_the_core_sleeps_once_and_then_python_looks() -> None:
    wire = Wire()
    connection = Connection(wire)
    wire.producer.park_ns = HOUR_NS
    wire.producer.looked_ns = now_ns()
    wire.producer.park_ns = 60_000_000

    _, outcome = remote(connection)(1, 2)

    assert outcome is PENDING
    assert asleep(wire)


def test_python_watches_every_limit() -> None:
    wire = Wire()
    connection = Connection(wire)
    wire.producer.park_ns = HOUR_NS
    wire.producer.looked_ns = now_ns()

    remote(connection, 2.5)(1, 2)
    limited = Spawned(connection, wire.submit(3, 4), "limits")
    unlimited = spawn(connection)(5, 6)

    assert connection.asked[0][-1] == 2.5
    assert got(limited) == ("slow", None, 0)
    assert unlimited.get(0.1) == ("slow", 0.1, 0)


class Alarm(Exception):
    """What a signal handler raises."""


@contextmanager
def handling(handle: Callable[[], object]) -> Iterator[None]:
    """Have *handle* called by the next signal, which then raises `Alarm`."""

    def handler(number: int, frame: object) -> None:
        handle()
        raise Alarm

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("settles", [False, True])
def test_a_sleep_that_is_interrupted_changes_nothing_of_the_call(settles: bool) -> None:
    wire = Wire()
    wire.producer.park_ns = HOUR_NS
    wire.producer.looked_ns = now_ns()
    call = spawn(Connection(wire))(1, 2)

    def settle() -> None:
        if settles:
            wire.producer.withdraw(call._ticket)
            call._outcome, call._state = 3, 1

    def interrupt() -> None:
        processes.wait_until(lambda: asleep(wire), "the caller is about to sleep")
        caller = threading.main_thread().native_id or 0
        processes.wait_until(lambda: is_asleep(os.getpid(), caller), "the caller sleeps")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    with handling(settle):
        thread.start()
        with pytest.raises(Alarm):
            call.get()
        thread.join()

    assert Spawned.lost == []
    assert (call._state, call._outcome) == ((1, 3) if settles else (0, None))
    assert call._sleepers == 0


def test_a_loop_that_never_leaves_the_core_hears_of_signals() -> None:
    wire = Wire(capacity=1)
    served = Served(wire)
    wire.producer.spinning = Spinning(HOUR_NS, False)
    connection = Connection(wire)
    answered = 0

    def answer_all() -> None:
        nonlocal answered
        while answered < 2000:
            if served.take():
                served.answer(1)
                answered += 1
                if answered == 10:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            elif stopped.is_set():
                break

    stopped = threading.Event()
    thread = threading.Thread(target=answer_all)
    with handling(lambda: None):
        thread.start()
        with pytest.raises(Alarm):
            deque(map(remote(connection), repeat(1, 2000), repeat(2)), 0)
        stopped.set()
        thread.join()

    assert 10 <= answered < 2000
    assert connection.asked == []


def test_a_sleeper_is_told_of_what_another_thread_does_to_its_call() -> None:
    wire = Wire()
    connection = Connection(wire)
    wire.producer.park_ns = HOUR_NS
    wire.producer.looked_ns = now_ns()
    call = spawn(connection)(1, 2)

    def give_up() -> None:
        processes.wait_until(lambda: asleep(wire), "the caller sleeps")
        assert call._sleepers == 1
        wire.producer.withdraw(call._ticket)
        call._outcome, call._state = "given up", 2
        wire.producer.wake_slot(call._ticket)

    thread = threading.Thread(target=give_up)
    thread.start()
    result = call.get()
    thread.join()

    assert result == ("slow", None, 2)
    assert call._sleepers == 0


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1,), {"ys": 2}), ((1,), {}), ((1, "two"), {}), ((1, 2, 3), {})]
)
@pytest.mark.parametrize("verb", [remote, spawn])
def test_arguments_that_are_not_exactly_the_columns_are_for_python(
    verb: Callable[..., Verb], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    wire = Wire()

    assert verb(Connection(wire))(*args, **kwargs) == (PUBLISHED, args, kwargs)

    assert wire.producer.free_slots == wire.where.capacity
    assert Spawned.dropped == []


@pytest.mark.parametrize("verb", [remote, spawn])
@pytest.mark.parametrize("why", ["unconnected", "dead", "queueing", "full", "closed"])
def test_what_is_in_the_way_is_for_python(verb: Callable[..., Verb], why: str) -> None:
    wire = Wire(capacity=1)
    connection = Connection(wire)
    if why == "dead":
        wire.producer.dead = True
    elif why == "queueing":
        wire.producer.queueing = True
    elif why == "full":
        wire.submit(1, 1)
    elif why == "closed":
        wire.executor.set_status(2)

    called = verb(None if why == "unconnected" else connection)(1, 2)

    assert called == (PUBLISHED, (1, 2), {})
    assert connection.asked == []
    assert wire.producer.free_slots == (0 if why == "full" else 1)


def test_a_verb_that_follows_nobody_any_more_holds_nothing_of_the_connection() -> None:
    wire = Wire()
    connection = Connection(wire)
    gone = weakref.ref(connection)
    verb = remote(connection)
    verb.follow(None)
    del connection
    assert gone() is None


def test_a_wait_that_raises_leaves_no_call_that_somebody_would_ask_for() -> None:
    def conclude(ticket: int, outcome: Any) -> Any:
        raise KeyboardInterrupt

    wire = Wire()
    connection = Connection(wire, conclude)

    with pytest.raises(KeyboardInterrupt):
        remote(connection)(1, 2)

    (_, ticket, *_), (kind, abandoned) = connection.asked
    assert (kind, abandoned) == ("abandon", ticket)


def test_a_handle_may_let_go_of_its_connection_while_it_waits() -> None:
    wire = Wire()

    def conclude(ticket: int, outcome: Any) -> Any:
        verb.follow(None)
        gc.collect()
        return "concluded"

    verb = remote(Connection(wire, conclude))
    del wire
    assert verb(1, 2) == "concluded"
    assert verb(1, 2) == (PUBLISHED, (1, 2), {})


def test_what_finishing_a_result_raises_is_raised() -> None:
    def finish(result: int) -> int:
        raise LookupError("no such result")

    wire = Wire(finish=finish)
    served = Served(wire)
    connection = Connection(wire)
    wire.producer.spinning = Spinning(60_000_000_000, False)

    with (
        answering(served, operator.add),
        pytest.raises(LookupError, match="no such result") as caught,
    ):
        remote(connection)(1, 2)

    assert caught.traceback[-1].name == "finish"
    assert connection.asked == []
    assert wire.producer.free_slots == wire.where.capacity


# ---- spawn and get ----


def test_a_spawned_call_gets_its_result() -> None:
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 300)

    assert type(call) is Spawned
    assert call._limits == "limits"
    assert not call._settle()
    assert got(call) == ("slow", None, 0)

    answer(served, 301)
    assert got(call) == 301
    assert got(call) == 301
    assert call._settle()
    assert wire.producer.free_slots == wire.where.capacity


def test_get_leaves_its_arguments_to_python() -> None:
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    answer(served, 3)

    positional = call.get(7)
    named = call.get(timeout=8)
    assert (positional, named) == (("slow", 7, 1), ("slow", 8, 1))
    with pytest.raises(TypeError):
        call.get(tomorrow=True)


def test_errors_are_for_python() -> None:
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    served.take()
    served.batch.fail(0, b"record")
    served.batch.complete()

    assert got(call) == ("slow", None, 0)
    assert wire.producer.poll(call._ticket, 0) is FAILED


def test_a_result_that_cannot_be_finished_is_an_error_of_the_call() -> None:
    def finish(result: int) -> int:
        raise LookupError

    wire = Wire(finish=finish)
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    answer(served, 3)

    assert call._settle()
    assert call._state == 2
    assert isinstance(call._outcome, LookupError)
    assert got(call) == ("slow", None, 2)


def test_a_result_that_is_lost_on_its_way_settles_the_call() -> None:
    def finish(result: int) -> int:
        raise KeyboardInterrupt

    wire = Wire(finish=finish)
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    answer(served, 3)

    with pytest.raises(KeyboardInterrupt):
        call.get()
    (lost,) = Spawned.lost
    assert isinstance(lost, KeyboardInterrupt)
    assert got(call) == ("slow", None, 2)


def test_whoever_else_waits_for_a_call_is_told() -> None:
    wire = Wire()
    served = Served(wire)
    connection = Connection(wire)
    call = spawn(connection)(1, 2)
    call._shared = True
    answer(served, 3)

    assert got(call) == 3
    assert connection.asked == [("tell", call._ticket)]


def test_a_call_nobody_asks_for_is_dropped_and_one_that_is_done_is_not() -> None:
    wire = Wire()
    served = Served(wire)
    verb = spawn(Connection(wire))
    done, dropped = verb(1, 2), verb(3, 4)
    ticket = dropped._ticket
    answer(served, 3, 7)
    assert got(done) == 3

    del done, dropped

    assert Spawned.dropped == [ticket]


def test_a_call_in_a_cycle_is_collected() -> None:
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    answer(served, 3)
    call._settle()
    call._outcome = [call]
    gone = weakref.ref(call)

    del call
    gc.collect()

    assert gone() is None


def test_while_somebody_queues_for_a_slot_outcomes_are_for_python() -> None:
    """It has to say whose the slot is that this one frees."""
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    answer(served, 3)
    wire.producer.queueing = True

    assert got(call) == ("slow", None, 0)


# ---- what they are ----


def test_a_verb_shows_what_it_does() -> None:
    verb = remote(None)
    assert verb.__doc__ == "Do it in Python."
    assert verb.__wrapped__ is slow
    assert "slow" in repr(verb)


def test_a_bound_get_has_a_twin() -> None:
    wire = Wire()
    served = Served(wire)
    call = spawn(Connection(wire))(1, 2)
    bound = call.get
    answer(served, 3)

    assert isinstance(bound, Verb)
    assert bound() == ("slow", None, 0)
    bound.aio().close()
    assert Spawned.get.__wrapped__ is Spawned._get


@pytest.mark.parametrize(
    "make",
    [
        lambda: Call(SimpleNamespace(ring=None), 1, None),
        lambda: Call(None, 1, None),
        lambda: Verb(slow, slow, int),
        lambda: Verb(slow, slow).follow(SimpleNamespace(ring=1, conclude=slow)),
        lambda: Verb(slow, slow).follow(SimpleNamespace()),
    ],
)
def test_what_no_connection_has_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        make()


def test_a_failure_says_its_error() -> None:
    error = ValueError("no")
    assert Failure(error).error is error
