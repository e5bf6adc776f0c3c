"""The real control thread, loop and listener in this process, and producers that misbehave.

Whatever one of them does ends its own connection at most: each test looks whether others are
still served, and the fixture of all tests whether a descriptor is left.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmbatch
from shmbatch.executor import control as executor_control
from shmbatch.executor.connection import Connection
from shmbatch.executor.control import Control
from shmbatch.protocol import PROTOCOL_VERSION, control, layout, snapshot
from shmbatch.protocol._core import DRAINING, EXPELLED, PARKED, REPLACED, Bell, ExecutorRing
from shmbatch.protocol.access import Access
from shmbatch.protocol.transport import producer_transport
from tests import processes, rings
from tests.executor.talking import NAME, SLOTS, Executor, Raw, attach, serving, shut
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def nothing_logged_is_kept(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An error in a log record has a traceback, in whose frames everything lives on."""
    yield
    for when in ("setup", "call"):
        caplog.get_records(when).clear()


@pytest.fixture
def executor(nothing_logged_is_kept: None) -> Iterator[Executor]:
    with serving() as executor:
        yield executor


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What the executor has logged that is as important as *level*."""
    return [each.getMessage() for each in caplog.records if each.levelno >= level]


def scribble(memory: Any, bell_memory: Any, wake: Callable[[], None]) -> None:
    """Overwrite a word that the executor looks at, and have it look."""
    struct.pack_into("=I", memory, layout.TAIL, SLOTS + 1)
    if Bell(bell_memory).ring() & PARKED:
        wake()


def settled(executor: Executor) -> int:
    """Return how many descriptors this process has once only one producer, attached, is left."""
    executor.await_watched(2)
    # `wait_until` has a pipe of its own.
    return sum(not what.startswith("pipe:") for what in processes.descriptors().values())


# ---- who is refused --------------------------------------------------------------------------


def test_a_producer_of_another_user_is_refused(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor.serves()
    with monkeypatch.context() as patch:
        somebody = control.Credentials(os.getpid(), os.geteuid() + 1, os.getegid())
        patch.setattr(executor_control.control, "peer_credentials", lambda sock: somebody)
        with Raw() as stranger:
            reply, _ = stranger.hear()
            stranger.is_hung_up_on()
    assert reply["kind"] == "refused"
    assert f"--allow-uid {os.geteuid() + 1}" in reply["message"]
    assert f"refused a producer of uid {os.geteuid() + 1}, process {os.getpid()}" in caplog.text
    executor.serves()


def test_slots_are_lent_for_producers_of_the_same_user_only(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody = control.Credentials(os.getpid(), os.geteuid() + 1, os.getegid())
    monkeypatch.setattr(executor.control._entrance, "_access", Access(frozenset({somebody.uid})))
    lent: list[ExecutorRing] = []
    monkeypatch.setattr(executor.function, "lend", lambda ring, memory: lent.append(ring))
    for credentials, expected in ((control.peer_credentials, 1), (lambda sock: somebody, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(executor_control.control, "peer_credentials", credentials)
            with Raw() as producer:
                shut(producer.attach()[1])
        assert len(lent) == expected
    lent.clear()  # they keep memory


def test_a_producer_that_cannot_be_watched_is_refused(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        OSError(errno.EMFILE, "Too many open files"),
        EOFError("dead"),
        shmbatch.errors.HandshakeError("cannot be watched"),
    ):

        def fails(sock: socket.socket, error: Exception = error) -> int:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(executor_control.control, "peer_pidfd", fails)
            with Raw() as stranger:
                stranger.is_hung_up_on()
    executor.serves()


OTHER = rings.signature("int", "float").to_message()

REFUSED = {
    "another protocol": (
        attach(version=f"{PROTOCOL_VERSION + 1}.{layout.LAYOUT_VERSION}"),
        "VersionMismatch",
        f"version {PROTOCOL_VERSION}.* version {PROTOCOL_VERSION + 1}",
    ),
    "another layout": (
        attach(version=f"{PROTOCOL_VERSION}.{layout.LAYOUT_VERSION + 1}"),
        "VersionMismatch",
        rf"version \d+.{layout.LAYOUT_VERSION} .* version \d+.{layout.LAYOUT_VERSION + 1};",
    ),
    "no version": (
        {"kind": "attach", "function": "add"},
        "VersionMismatch",
        f"version {layout.VERSION} .* version None",
    ),
    "a version of 100 KB": (attach(version="9" * 100_000), "VersionMismatch", "version 9999"),
    "an unknown function": (attach(function="sub"), "UnknownFunction", r"no .* 'sub'; .* 'add'"),
    "no function": (attach(function=None), "UnknownFunction", "no function 'None'"),
    "a list as function": (attach(function=["add"]), "UnknownFunction", "no function"),
    "a function of 100 KB": (attach(function="f" * 100_000), "UnknownFunction", "'ffff"),
    "another signature": (
        attach(signature=OTHER),
        "SignatureMismatch",
        r"list\[int\]\) -> .* in the executor and .*list\[float\]\) -> ",
    ),
    "a malformed signature": (attach(signature={"parameters": 5}), "HandshakeError", "signature"),
    "a number as signature": (attach(signature=1), "HandshakeError", "signature"),
    "more in a batch": (attach(max_batch_size=5), "HandshakeError", "max_batch_size=4; use at "),
    "a text as batch size": (
        attach(max_batch_size="2"),
        "HandshakeError",
        "max_batch_size is '2'",
    ),
    "no batches": (attach(max_batch_size=0), "HandshakeError", "max_batch_size is 0"),
    "true as batch size": (attach(max_batch_size=True), "HandshakeError", "max_batch_size is Tr"),
    "a list as batch size": (attach(max_batch_size=[1] * 9999), "HandshakeError", "size is "),
    "a text as wait": (attach(wait_ns="1"), "HandshakeError", "wait_ns arrived as '1'"),
    "a fraction as wait": (attach(wait_ns=1.5), "HandshakeError", "wait_ns arrived as 1.5"),
    "true as wait": (attach(wait_ns=True), "HandshakeError", "wait_ns arrived as True"),
    "a map as wait": (attach(wait_ns={"a": ["b"] * 9999}), "HandshakeError", "wait_ns arrived"),
    "a negative wait": (attach(wait_ns=-1), "HandshakeError", "wait_ms is -1e-06"),
    "a wait of ages": (attach(wait_ns=(1 << 64) - 1), "HandshakeError", "from 0 to 600000"),
    "a kind of its own": ({"kind": "dance"}, "HandshakeError", "kind 'dance' makes no sense"),
    "a kind of 100 KB": ({"kind": "d" * 100_000}, "HandshakeError", "kind 'dddd"),
    "attached before attach": ({"kind": "attached"}, "HandshakeError", "kind 'attached'"),
    "an executor's message": ({"kind": "welcome"}, "HandshakeError", "kind 'welcome'"),
    "no kind": ({"version": 1}, "HandshakeError", "no text 'kind'"),
    "a number as kind": ({"kind": 1}, "HandshakeError", "no text 'kind'"),
    "no MessagePack": (b"\xc1garbage", "HandshakeError", "malformed"),
    "no map": (msgspec.msgpack.encode([1, 2]), "HandshakeError", "malformed"),
    "a map a thousand deep": (
        b"\x81\xa1k" * 1000 + b"\x80",
        "HandshakeError",
        "malformed|no text",
    ),
    "200 KB": (bytes(200_000), "HandshakeError", f"the {control.MESSAGE_LIMIT} bytes allowed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_message_that_makes_no_sense_is_refused_with_the_reason(
    executor: Executor, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    message, error, reason = REFUSED[what]
    with Raw() as raw:
        raw.send_bytes(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))
        reply, _ = raw.hear()
        assert (reply["kind"], reply["error"]) == ("refused", error)
        assert re.search(reason, reply["message"]), reply["message"]
        assert len(reply["message"]) < 5000
        raw.is_hung_up_on()
    assert said(caplog, logging.WARNING) == [f"refused process {os.getpid()}: {reply['message']}"]
    executor.serves()


@pytest.mark.parametrize("again", [attach(), {"kind": "welcome"}, b"\xc1"])
def test_nonsense_after_attaching_ends_the_connection_too(
    executor: Executor, again: dict[str, Any] | bytes
) -> None:
    executor.serves()
    with Raw() as raw:
        _, fds = raw.attach()
        raw.send({"kind": "attached"})
        raw.send({"kind": "attached"})  # harmless
        processes.wait_until(lambda: raw.producers() == 2, "the loop has attached it")
        raw.send_bytes(again if isinstance(again, bytes) else msgspec.msgpack.encode(again))
        assert raw.hear()[0]["kind"] == "refused"
        raw.is_hung_up_on()
        shut(fds)
    processes.wait_until(lambda: executor.function.inbox.count == 1, "it is detached")
    executor.serves()


def test_a_signature_of_100_kb_is_refused_with_a_short_reason(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = rings.ADD.to_message()
    theirs["parameters"][0]["name"] = "x" * 100_000
    with Raw() as raw:
        raw.send(attach(signature=theirs))
        reply, _ = raw.hear()
        assert reply["kind"] == "refused"
        assert len(reply["message"]) < 5000
        raw.is_hung_up_on()
    assert "Traceback" not in caplog.text
    executor.serves()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EMFILE])
def test_where_a_segment_has_no_room_the_producer_hears_the_numbers(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def create(nbytes: int, capacity: int) -> Any:
        raise OSError(number, os.strerror(number))

    executor.serves()
    processes.hang_up()
    with monkeypatch.context() as patch:
        patch.setattr(executor.transport, "create", create)
        with pytest.raises(shmbatch.errors.HandshakeError) as caught:
            shmbatch.connect(f"{NAME}.add", timeout=0)
    said = str(caught.value)
    for fact in (f"{SLOTS} slots", f"{executor.function.layout.nbytes} bytes"):
        assert fact in said
    for fact in ("'control.add'", os.strerror(number), "slots="):
        assert fact in said
    executor.serves()  # there is room again


# ---- who does not play along -----------------------------------------------------------------


def test_a_producer_that_does_not_read_is_disconnected_and_others_are_served(
    executor: Executor,
) -> None:
    executor.serves()
    asked = 0
    with Raw() as deaf:
        for _ in deaf.asks_until_hung_up_on():
            asked += 1
            if asked % 5 == 0:
                executor.serves()
        assert asked > 1
        reply, fds = deaf.hear(1)
        assert reply["kind"] == "statistics"  # what was said before is there
        shut(fds)
    executor.serves()


def test_an_attached_producer_that_does_not_read_is_detached(executor: Executor) -> None:
    executor.serves()
    with Raw() as deaf:
        _, fds = deaf.attach()
        deaf.send({"kind": "attached"})
        assert sum(1 for _ in deaf.asks_until_hung_up_on()) > 1
        shut(fds)
        processes.wait_until(lambda: executor.function.inbox.count == 1, "it is detached")
    executor.serves()


def test_a_producer_that_connects_and_never_speaks_is_in_nobodys_way(executor: Executor) -> None:
    silent = [Raw() for _ in range(20)]
    executor.serves()
    for raw in silent:
        raw.sock.close()
    executor.await_watched(2)
    executor.serves()


@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("when", ["before", "after"])
def test_descriptors_that_a_producer_sends_are_closed(
    executor: Executor, count: int, when: str
) -> None:
    out, into = os.pipe()
    with Raw() as raw:
        if when == "after":
            _, fds = raw.attach()
            shut(fds)
        raw.send(attach() if when == "before" else {"kind": "attached"}, (into,) * count)
        os.close(into)
        assert raw.hear()[0]["kind"] == "refused"
        raw.is_hung_up_on()
        # End of file is only where nobody has a copy of the other end.
        processes.readable(out, "every copy is closed")
        assert os.read(out, 1) == b""
    os.close(out)
    executor.serves()


@pytest.mark.parametrize("stage", ["connected", "asked", "welcomed", "attached"])
def test_a_producer_may_hang_up_at_any_moment_of_the_handshake(transport: str, stage: str) -> None:
    with serving() as executor:
        executor.serves()
        shared = processes.shared_memory()
        before = settled(executor)
        for _ in range(5):
            with Raw() as raw:
                if stage == "asked":
                    raw.send(attach())
                elif stage != "connected":
                    _, fds = raw.attach()
                    shut(fds)
                if stage == "attached":
                    raw.send({"kind": "attached"})
        executor.serves()  # after those five were accepted, since the queue has an order
        processes.wait_until(lambda: executor.function.inbox.count == 1, "they are detached")
        processes.wait_until(lambda: settled(executor) <= before, "descriptors are closed")
        processes.wait_until(lambda: processes.shared_memory() <= shared, "names are removed")


def test_a_producer_that_is_gone_before_its_welcome_leaves_nothing(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as executor:
        executor.serves()
        before = settled(executor)
        create = executor.transport.create
        created = threading.Event()
        raw = Raw()

        def creates(nbytes: int, capacity: int) -> Any:
            raw.sock.close()
            created.set()
            return create(nbytes, capacity)

        monkeypatch.setattr(executor.transport, "create", creates)
        raw.send(attach())
        assert created.wait(PATIENCE_S)
        monkeypatch.undo()
        executor.serves()
        processes.wait_until(lambda: settled(executor) <= before, "descriptors are closed")


def test_a_fault_of_the_control_thread_ends_one_connection_only(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Control, connection: Connection, message: dict[str, Any]) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Control, "_answer", broken)
        with Raw() as raw:
            raw.send({"kind": "statistics"})
            raw.is_hung_up_on()
    assert "RuntimeError: a bug" in caplog.text
    executor.serves()


def test_a_fault_in_what_the_loop_requests_ends_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Control, connection: Connection, why: str) -> None:
        raise RuntimeError("a bug")

    executor.serves()
    with monkeypatch.context() as patch:
        patch.setattr(Control, "_expel", broken)
        executor.control.disconnect(None)
        processes.wait_until(lambda: "RuntimeError: a bug" in caplog.text, "it is logged")
    executor.serves()


def test_a_fault_of_whoever_is_told_to_stop_ends_nothing(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(now: bool) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch, Raw() as raw:
        patch.setattr(executor.control, "_on_stop", broken)
        assert raw.ask({"kind": "stop"})["kind"] == "stopping"
        raw.is_hung_up_on()
    assert "RuntimeError: a bug" in caplog.text
    executor.serves()


# ---- who says nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["connected", "asked"])
def test_who_says_nothing_for_too_long_is_hung_up_on_with_the_reason(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    executor.serves()
    monkeypatch.setattr(executor_control, "SILENCE_NS", 20_000_000)
    with Raw() as raw:
        if stage == "asked":
            raw.producers()
        reply, _ = raw.hear()
        assert (reply["kind"], reply["error"]) == ("refused", "HandshakeError")
        assert reply["message"] == "said nothing for 0.02 seconds"
        raw.is_hung_up_on()
    executor.serves()


def test_who_does_not_take_its_welcome_is_let_go_and_not_blamed(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor.serves()
    caplog.set_level(logging.INFO, "shmbatch.executor")
    monkeypatch.setattr(executor_control, "SILENCE_NS", 20_000_000)
    with Raw() as raw:
        _, fds = raw.attach()
        raw.is_hung_up_on()
    shut(fds)
    processes.wait_until(lambda: executor.function.inbox.count == 1, "it is detached")
    admission = shmbatch.statistics(NAME)["admission"]
    assert (admission["refused"], admission["expelled"]) == (0, 0)
    assert said(caplog, logging.INFO)[-1] == (
        f"producer {os.getpid()} of control.add did not take its welcome for 0.02 s"
    )
    executor.serves()


def test_who_has_attached_may_be_silent_for_ever(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.serves()
    monkeypatch.setattr(executor_control, "SILENCE_NS", 1_000_000)
    for _ in range(3):  # each time somebody is hung up on, who was silent for less long
        with Raw() as raw:
            assert raw.hear()[0]["kind"] == "refused"
    monkeypatch.undo()
    executor.serves()
    executor.await_watched(2)
    assert executor.control._patience_s() is None


# ---- what is logged of a producer's life -----------------------------------------------------


def test_of_a_producers_life_a_line_an_event_is_logged(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    me = os.getpid()
    with caplog.at_level(logging.INFO, "shmbatch.executor"):
        executor.serves()
        processes.hang_up()
        executor.await_watched(0)
        with Raw() as raw:
            _, fds = raw.attach()
            shut(fds)
        executor.await_watched(0)
    assert said(caplog, logging.INFO) == [
        f"producer {me} attached to control.add: {SLOTS} slots, "
        f"{executor.function.layout.nbytes} bytes of memory",
        f"producer {me} of control.add left",
        f"producer {me} attached to control.add: {SLOTS} slots, "
        f"{executor.function.layout.nbytes} bytes of memory",
        f"producer {me} of control.add hung up without a goodbye",
    ]


def test_a_producer_that_is_killed_has_died(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import sys, shmbatch; add = shmbatch.connect('control.add'); "
        "print(add.remote(1, 2), flush=True); sys.stdin.read()"
    )
    with caplog.at_level(logging.INFO, "shmbatch.executor"), processes.Program(code) as program:
        assert program.line() == "3"
        # A child that holds the socket leaves only the pidfd to tell.
        (connection,) = set(executor.control._watched.values())
        with connection.sock.dup():
            program.kill()
            executor.await_watched(0)
    fates = ("died", "hung up without a goodbye")  # its socket may close before it is dead
    assert said(caplog, logging.INFO)[1:] in [
        [f"producer {program.pid} of control.add {fate}"] for fate in fates
    ]


def test_a_producer_that_ends_by_itself_says_goodbye(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import shmbatch; print(shmbatch.connect('control.add').remote(1, 2), flush=True)"
    with caplog.at_level(logging.INFO, "shmbatch.executor"), processes.Program(code) as program:
        assert program.line() == "3"
        assert program.wait() == 0
        executor.await_watched(0)
    assert said(caplog, logging.INFO)[1:] == [f"producer {program.pid} of control.add left"]


def test_the_goodbye_is_a_message_as_others_are() -> None:
    assert msgspec.msgpack.encode({"kind": "goodbye"}) == control.GOODBYE


def test_a_producer_logs_its_connection_and_its_end(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "shmbatch.client"):
        add = shmbatch.connect(f"{NAME}.add", timeout=0)
        connection = add.connect()
        scribble(
            connection.line.transport.memory,
            connection.line.transport.bell_memory,
            connection.line.transport.wake_executor,
        )
        processes.wait_until(
            lambda: control.is_gone(connection.line.sock, None), "it is hung up on"
        )
        with pytest.raises(shmbatch.errors.ProtocolError):
            add.remote(1, 2)
    messages = [each.getMessage() for each in caplog.records if each.name == "shmbatch.client"]
    assert messages == [
        f"connected to 'control.add' (process {os.getpid()}): {SLOTS} slots, "
        f"{executor.function.layout.nbytes} bytes of memory",
        f"the executor of 'control.add' (process {os.getpid()}) is gone",
    ]


# ---- what is asked ---------------------------------------------------------------------------


def test_statistics_tell_who_serves_and_what_was_called(
    executor: Executor, transport: str
) -> None:
    executor.serves()
    told = shmbatch.statistics(NAME)
    assert told["name"] == NAME
    assert told["pid"] == os.getpid()
    assert told["version"] == layout.VERSION
    assert (told["transport"], told["device"], told["state"]) == (transport, "cpu", "serving")
    assert told["uptime_s"] >= 0
    add = told["functions"]["add"]
    assert (add["max_batch_size"], add["wait_ms"]) == (4, 0)
    assert (add["slots"], add["segment_nbytes"]) == (SLOTS, executor.function.layout.nbytes)
    assert (add["producers"], add["calls_waiting"], add["calls_in_flight"]) == (1, 0, 0)
    assert add["failed"] == {}
    for phase in ("waiting", "staging", "running", "delivering"):
        latency = add["latency_us"][phase]
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
        assert latency["p99.9"] <= latency["max"]
        assert 0 <= latency["mean"] <= latency["max"]


def test_statistics_are_told_while_draining(executor: Executor) -> None:
    with Raw() as raw:
        assert raw.producers() == 0
        executor.call(executor.control.refuse)
        raw.send({"kind": "statistics"})
        _, fds = raw.hear(1)
        assert snapshot.load(fds[0])["state"] == "draining"
        shut(fds)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EMFILE])
def test_where_statistics_have_no_room_whoever_asks_hears_that(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def store(taken: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "store", store)
        with pytest.raises(shmbatch.errors.HandshakeError, match=os.strerror(number)):
            shmbatch.statistics(NAME)
    executor.serves()


def answered(executor: Executor, monkeypatch: pytest.MonkeyPatch, *answer: Any) -> None:
    """Have the executor answer whatever it is asked with these arguments of `_reply`."""

    def answers(self: Control, connection: Connection) -> None:
        self._reply(connection, *answer)

    monkeypatch.setattr(Control, "_tell_statistics", answers)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ({"kind": "statistics"}, "HandshakeError", "'statistics' and 0 descriptors"),
        ({"kind": "statistics", "functions": {}}, "HandshakeError", "0 descriptors"),
        ({"kind": "dance"}, "HandshakeError", "'dance'"),
        ({"kind": "refused"}, "HandshakeError", "None"),
        ({"kind": "refused", "error": 5, "message": "no"}, "HandshakeError", "no"),
        ({"kind": "refused", "error": "UnknownFunction", "message": "f"}, "UnknownFunction", "f"),
        ({"no": "kind"}, "ProtocolError", "no text 'kind'"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_ours(
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
    error: str,
    reason: str,
) -> None:
    with monkeypatch.context() as patch:
        answered(executor, patch, answer)
        with pytest.raises(getattr(shmbatch.errors, error), match=reason):
            shmbatch.statistics(NAME)
    executor.serves()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_answer_with_other_descriptors_is_an_error_of_ours(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    out, into = os.pipe()
    with monkeypatch.context() as patch:
        answered(executor, patch, {"kind": "statistics"}, [into] * count)
        with pytest.raises(shmbatch.errors.ProtocolError):
            shmbatch.statistics(NAME)
    os.close(into)
    processes.readable(out, "every copy is closed")
    assert os.read(out, 1) == b""
    os.close(out)
    executor.serves()


# ---- who violates the protocol ---------------------------------------------------------------


def test_who_is_disconnected_is_told_why_and_may_come_again(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    connection = add.connect()
    never = add.spawn(1, 2)
    assert never.get() == 3
    scribble(
        connection.line.transport.memory,
        connection.line.transport.bell_memory,
        connection.line.transport.wake_executor,
    )
    processes.wait_until(lambda: control.is_gone(connection.line.sock, None), "it is hung up on")
    assert connection.ring.status == EXPELLED
    for was_taken in (True, False):
        error = connection.gone(was_taken=was_taken)
        assert isinstance(error, shmbatch.errors.ProtocolError)
        assert "has disconnected this process, which broke the protocol" in str(error)
    with pytest.raises(shmbatch.errors.ProtocolError, match="broke the protocol"):
        add.remote(1, 2)
    assert add.remote(1, 2) == 3
    assert said(caplog, logging.ERROR) == [
        f"producer {os.getpid()} of control.add broke the protocol and is disconnected: "
        f"its ring holds what no producer writes"
    ]
    executor.serves()


def test_an_attached_producer_whose_messages_are_nonsense_finds_that_out_too(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    connection = add.connect()
    control.send(connection.line.sock, {"kind": "dance"})
    processes.wait_until(lambda: control.is_gone(connection.line.sock, None), "it is hung up on")
    with pytest.raises(shmbatch.errors.ProtocolError, match="broke the protocol"):
        add.remote(1, 2)
    (line,) = said(caplog, logging.ERROR)
    assert line.endswith("a message of kind 'dance' makes no sense here")
    executor.serves()


def watched_by_epoll(executor: Executor) -> set[int]:
    """The descriptors in the control thread's epoll, as the kernel knows them."""
    info = Path(f"/proc/self/fdinfo/{executor.control._poll.fileno()}").read_text()
    return {int(fd) for fd in re.findall(r"^tfd:\s*(\d+)", info, re.MULTILINE)}


@pytest.mark.parametrize("how", ["violates", "leaves"])
def test_descriptors_leave_the_epoll_before_they_are_closed(
    transport: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A descriptor that a fork holds too would be heard of for ever, under a number of others."""
    closed: queue.Queue[tuple[set[int], set[int]]] = queue.Queue()
    close = Connection.close

    with serving() as executor:
        executor.serves()

        def closes(self: Connection) -> None:
            if self.segment is not None and self.sock.fileno() >= 0:
                closed.put(({self.sock.fileno(), self.pidfd}, watched_by_epoll(executor)))
            close(self)

        monkeypatch.setattr(Connection, "close", closes)
        with Raw() as raw:
            welcome, fds = raw.attach()
            producer = producer_transport(welcome["offer"], fds[2:])
            raw.send({"kind": "attached"})
            processes.wait_until(lambda: executor.function.inbox.count == 2, "it is attached")
            if how == "violates":
                scribble(producer.memory, producer.bell_memory, producer.wake_executor)
                raw.is_hung_up_on()
            shut(fds)
        mine, watched = closed.get(timeout=PATIENCE_S)
        assert not mine & watched
        assert {executor.listener.fileno()} <= watched  # so it was the right one to look at
        monkeypatch.undo()
        assert ("broke the protocol" in caplog.text) == (how == "violates")
        processes.wait_until(lambda: executor.function.inbox.count == 1, "it is detached")
        executor.serves()


# ---- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True])
def test_who_asks_for_a_stop_is_answered_and_heard(executor: Executor, now: bool) -> None:
    with Raw() as raw:
        assert raw.ask({"kind": "stop", "now": now}) == {"kind": "stopping", "pid": os.getpid()}
        assert executor.stops.get(timeout=PATIENCE_S) is now
        # Draining is the owner's business: until then it serves.
        assert raw.ask({"kind": "stop"})["kind"] == "stopping"
        assert executor.stops.get(timeout=PATIENCE_S) is False
    executor.serves()


def test_a_stop_is_heard_though_nobody_reads_the_answer(executor: Executor) -> None:
    with Raw() as raw:
        raw.send({"kind": "stop"})
    assert executor.stops.get(timeout=PATIENCE_S) is False


def test_when_the_supervisor_goes_a_drain_is_asked_for_once() -> None:
    out, into = os.pipe()
    with serving(supervisor_fd=out) as executor:
        executor.serves()
        assert executor.stops.empty()
        os.close(into)
        assert executor.stops.get(timeout=PATIENCE_S) is False
        executor.serves()
        assert executor.stops.empty()
    os.close(out)


def test_once_it_refuses_nobody_gets_in_and_who_is_in_stays(executor: Executor) -> None:
    executor.serves()
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    with Raw() as early:
        assert early.producers() == 1  # accepted, not attached
        executor.call(executor.control.refuse)
        early.send(attach())
        early.is_hung_up_on()
    # The thread closes it after it has heard everybody; who comes until then is hung up on.
    processes.wait_until(lambda: executor.control._entrance.fileno() < 0, "nobody can connect")
    with pytest.raises(ConnectionRefusedError):
        Raw()
    assert add.remote(1, 2) == 3


def test_one_that_is_replaced_says_so_also_when_it_is_told_to_drain_then(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = executor.transport.create

    def creates(nbytes: int, capacity: int) -> Any:
        executor.control.refuse(REPLACED)
        executor.control.refuse()
        return create(nbytes, capacity)

    monkeypatch.setattr(executor.transport, "create", creates)
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    assert connection.ring.status == REPLACED


# ---- what is said last -----------------------------------------------------------------------

WHY = "CUDA error: an illegal memory access was encountered (AcceleratorError) in control.add"
DIED = rf"died: {re.escape(WHY)}; it had not taken this call$"


def dies(executor: Executor) -> None:
    """Have it tell everybody the cause, as the loop's thread does."""
    executor.call(lambda: executor.control.hang_up(WHY))


def executors_end(executor: Executor) -> Connection:
    """The executor's end of the only connection that there is."""
    (connection,) = {each for each in executor.control._watched.values() if each.attached}
    return connection


def test_whoever_is_attached_is_told_the_cause_and_hung_up_on(executor: Executor) -> None:
    with Raw() as first, Raw() as second, Raw() as stranger:
        welcomes = [each.attach() for each in (first, second)]
        assert stranger.producers() == 2
        dies(executor)
        for raw, (_, fds) in zip((first, second), welcomes, strict=True):
            shut(fds)
            assert raw.hear() == ({"kind": "lost", "cause": WHY}, [])
            raw.is_hung_up_on()
    assert not executor.control._thread.is_alive()


def test_who_does_not_read_is_hung_up_on_and_not_waited_for(executor: Executor) -> None:
    with Raw() as deaf, Raw() as hearing:
        shut(deaf.attach()[1])
        end = executors_end(executor)
        shut(hearing.attach()[1])
        with suppress(BlockingIOError):
            while True:
                end.sock.send(b"!" * 1000)
        dies(executor)
        assert hearing.hear() == ({"kind": "lost", "cause": WHY}, [])
        assert control.is_gone(deaf.sock, None)


def test_who_attaches_just_then_is_told_too(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    makes, may_go_on = threading.Event(), threading.Event()
    create, tell = executor.transport.create, executor.control._tell_lost

    def creates(nbytes: int, capacity: int) -> Any:
        makes.set()
        assert may_go_on.wait(PATIENCE_S)
        return create(nbytes, capacity)

    def tells(cause: str) -> list[Connection]:
        told = tell(cause)
        may_go_on.set()
        return told

    monkeypatch.setattr(executor.transport, "create", creates)
    monkeypatch.setattr(executor.control, "_tell_lost", tells)
    with Raw() as raw:
        raw.send(attach())
        assert makes.wait(PATIENCE_S)
        dies(executor)
        assert executor.control._closing
        welcome, fds = raw.hear(4)
        shut(fds)
        assert welcome["kind"] == "welcome"
        assert raw.hear() == ({"kind": "lost", "cause": WHY}, [])
        raw.is_hung_up_on()


def test_a_handshake_that_it_ends_leaves_no_name(executor: Executor) -> None:
    before = processes.shared_memory()
    with Raw() as raw:
        shut(raw.attach()[1])
        dies(executor)
        assert processes.shared_memory() == before


def test_a_cause_survives_what_the_executor_has_not_read(executor: Executor) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    end = executors_end(executor)
    dies(executor)
    control.send(connection.line.sock, {"kind": "attached"})
    end.close()
    with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
        connection.is_attended()


def test_a_caller_hears_the_cause_and_so_do_later_ones(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    connection = add.connect()
    finished = add.spawn(1, 2)
    processes.wait_until(lambda: executor.function.statistics.batch_sizes(), "it has run")
    with caplog.at_level(logging.INFO, "shmbatch.client"):
        dies(executor)
        with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
            connection.is_attended()
    assert caplog.messages[-1] == (
        f"the executor of 'control.add' (process {os.getpid()}) is gone: {WHY}"
    )
    for was_taken in (True, False):
        error = connection.gone(was_taken=was_taken)
        assert isinstance(error, shmbatch.errors.ExecutorGone)
    assert finished.get() == 3


def test_a_call_that_a_draining_executor_had_not_taken_hears_the_cause(
    executor: Executor,
) -> None:
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    connection = add.connect()
    executor.call(lambda: executors_end(executor).ring.set_status(DRAINING))
    assert isinstance(connection.gone(was_taken=False), shmbatch.errors.ExecutorClosed)
    dies(executor)
    with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
        connection.is_attended()
    assert isinstance(connection.gone(was_taken=False), shmbatch.errors.ExecutorGone)


def test_a_call_that_is_asked_for_after_the_hang_up_hears_the_cause(executor: Executor) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    dies(executor)
    processes.hang_up()
    with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
        connection.is_attended()


def test_threads_that_look_at_once_all_hear_the_cause(executor: Executor) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    end = executors_end(executor)
    count = 8
    heard: list[Exception] = []

    def dies_again() -> None:
        connection.ring.dead, connection.line.cause = False, None
        end.sock.send(b"!")
        control.send(end.sock, control.lost(WHY), wait=False)

    barrier = threading.Barrier(count, action=dies_again)

    def looks() -> None:
        for _ in range(200):
            barrier.wait(PATIENCE_S)
            connection.lost(connection.line)
            heard.append(connection.gone(was_taken=True))

    with ThreadPoolExecutor(count) as threads:
        for each in [threads.submit(looks) for _ in range(count)]:
            each.result()
    assert len(heard) == count * 200
    assert all(WHY in str(error) for error in heard)


def test_a_fork_leaves_the_cause_to_its_parent(executor: Executor) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    dies(executor)
    child = os.fork()
    if child == 0:
        try:
            connection.lost(connection.line)
            connection.close()
        finally:
            os._exit(0 if connection.line.cause is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
        connection.is_attended()


def test_what_an_event_loop_reads_first_is_there_for_threads_too(executor: Executor) -> None:
    add = shmbatch.connect(f"{NAME}.add", timeout=0)
    connection = add.connect()
    end = executors_end(executor)

    async def reads() -> None:
        connection.listening()._listen()
        control.send(end.sock, control.lost(WHY), wait=False)
        while connection.line.cause is None:
            await asyncio.sleep(0)
        assert not connection.dead  # whatever it says, it lives
        assert await add.remote.aio(1, 2) == 3

    asyncio.run(reads())
    end.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(shmbatch.errors.ExecutorGone, match=DIED):
        connection.is_attended()


HOSTILE = {
    "nothing": [],
    "an empty packet": [b""],
    "nonsense": [b"\xc1\xff" * 1000],
    "no text": [msgspec.msgpack.encode({"kind": "lost", "cause": {"a": 1}})],
    "too much": [msgspec.msgpack.encode({"kind": "lost", "cause": "x" * 100_000})],
    "an endless list": [b"\x82\xa4kind\xa4lost\xa5cause\xdd\xff\xff\xff\xff"],
    "many wakes": [b"!"] * 200,
}


@pytest.mark.parametrize("in_loop", [False, True], ids=["thread", "event loop"])
@pytest.mark.parametrize("packets", HOSTILE.values(), ids=HOSTILE.keys())
def test_last_words_that_are_none_break_nobody(
    executor: Executor, packets: list[bytes], in_loop: bool
) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    end = executors_end(executor)

    def says() -> None:
        out, into = os.pipe()
        rights = struct.pack("2i", out, into)
        for packet in packets:
            end.sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        end.sock.shutdown(socket.SHUT_WR)
        shut([out, into])

    async def listens() -> None:
        connection.listening()._listen()
        says()
        while not connection.dead:
            await asyncio.sleep(0)

    if in_loop:
        asyncio.run(listens())
    else:
        says()
    with pytest.raises(
        shmbatch.errors.ExecutorGone,
        match=r"died; it had not taken this call$",
    ):
        connection.is_attended()


def test_last_words_are_printed_as_text(executor: Executor) -> None:
    connection = shmbatch.connect(f"{NAME}.add", timeout=0).connect()
    end = executors_end(executor)
    hostile = {"kind": "lost", "cause": "\x1b[2Jred\nalert\x00 \u202e" + "x" * 2500}
    end.sock.send(msgspec.msgpack.encode(hostile))
    end.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(shmbatch.errors.ExecutorGone) as caught:
        connection.is_attended()
    assert "died: ?[2Jred alert? ?xxx" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2300


def test_an_executor_that_dies_instead_of_a_welcome_is_not_found(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attaches(self: Control, connection: Connection, message: dict[str, Any]) -> None:
        self._reply(connection, control.lost(WHY))

    monkeypatch.setattr(Control, "_attach", attaches)
    with pytest.raises(shmbatch.errors.ExecutorNotFound, match="no executor serves 'control'"):
        shmbatch.connect(f"{NAME}.add", timeout=0)
    monkeypatch.undo()
    executor.serves()
