"""Messages that make no sense, or almost: to an executor, and from one.

Whatever an executor is told ends in an answer, in a refusal with its reason, or in a connection
that is hung up; nothing of it is a fault of the thread that answers. Whatever a producer is told
instead of a welcome ends in one of this package's errors, and leaves nothing behind.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmbatch
from shmbatch import errors
from shmbatch.contract.signature import signature_of
from shmbatch.executor import greeting
from shmbatch.protocol import control, layout
from shmbatch.protocol.directory import directory, socket_path
from shmbatch.protocol.transport import executor_transport
from tests import processes, rings
from tests.executor.talking import NAME, Executor, Raw, serving
from tests.hostile import guided
from tests.hostile.kinds import KINDS, signature
from tests.processes import PATIENCE_S

PACKAGE = str(Path(shmbatch.__file__).parent)


@pytest.fixture(autouse=True)
def nothing_logged_is_kept(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for when in ("setup", "call"):
        caplog.get_records(when).clear()


@pytest.fixture(autouse=True)
def over_one_transport(monkeypatch: pytest.MonkeyPatch, transport: str | None) -> None:
    if transport is None:
        monkeypatch.setenv("SHMBATCH_TRANSPORT", "linux")


@pytest.fixture
def executor(transport: str) -> Iterator[Executor]:
    with serving() as executor:
        yield executor
        executor.serves()


# ---- to an executor ---------------------------------------------------------------------------


def attach(**fields: Any) -> dict[str, Any]:
    return {
        "kind": "attach",
        "version": layout.VERSION,
        "function": "add",
        "signature": None,
        "max_batch_size": None,
        "wait_ns": None,
    } | fields


def plain(x: int, note: str = "none") -> str:
    return note


SEEDS = [
    attach(),
    attach(max_batch_size=2, wait_ns=1000),
    *(attach(signature=signature(kind).to_message()) for kind in KINDS),
    attach(signature=signature_of(plain, "plain", plain=True).to_message()),
    {"kind": "statistics"},
    {"kind": "stop", "now": True},
    {"kind": "goodbye"},
    {"kind": "attached"},
]


def reads(executor: Executor, message: Any) -> None:
    """Do with a message what the control thread does with it before it answers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            data = msgspec.msgpack.encode(message)
        except (OverflowError, UnicodeEncodeError, TypeError):
            return  # a number that MessagePack does not have, after some additions
        ours.send(data)
        try:
            heard, fds = control.receive(theirs, wait=False)
            assert fds == []
            greeting.asked_for(heard, NAME, executor.control._functions)
        except errors.ShmbatchError as error:
            refusal = greeting.refusal(error)
        else:
            return
        finally:
            executor.function.queues.clear()
        assert len(refusal["message"]) < 5000
        assert issubclass(getattr(errors, refusal["error"]), errors.HandshakeError)
        control.send(theirs, refusal, wait=False)


def finds_nothing(runs: int, seed: int) -> int:
    with serving() as executor:
        return guided.search(
            lambda message: reads(executor, message), SEEDS, runs=runs, seed=seed, watched=PACKAGE
        )


@pytest.mark.no_transport
@pytest.mark.parametrize("runs", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_no_message_breaks_who_reads_it(runs: int) -> None:
    assert finds_nothing(runs, seed=1) > 250, "it has not got far"


@pytest.mark.no_transport
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nor_does_one_that_nobody_has_tried_before() -> None:
    finds_nothing(200_000, secrets.randbelow(1 << 32))


@pytest.mark.no_transport
@pytest.mark.slow
def test_control_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is behind a version, a name and a whole signature that fit."""

    def batching(message: dict[str, Any], function: Any) -> Any:
        if message.get("signature") is not None:
            assert message.get("wait_ns") in (None, 1000), "planted"
        return function.definition.parameters

    monkeypatch.setattr(greeting, "_batching", batching)
    fitting = attach(signature=rings.ADD.to_message())
    with serving() as executor, pytest.raises(AssertionError, match="planted"):
        guided.search(
            lambda message: reads(executor, message),
            [*SEEDS, fitting],
            runs=15_000,
            seed=1,
            watched=PACKAGE,
        )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(["attach", "attached", "statistics", "goodbye", "welcome", "add", "lost"]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = ("kind", "version", "function", "signature", "max_batch_size", "wait_ns", "now", "x")
MESSAGES = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), TREES, max_size=6),
    st.dictionaries(st.sampled_from(KEYS[1:]), TREES, max_size=2).map(
        lambda changes: attach(**changes)
    ),
    st.sampled_from([each for each in SEEDS if each["kind"] != "stop"]),
).map(msgspec.msgpack.encode)
PACKETS = st.lists(
    st.tuples(st.one_of(MESSAGES, st.binary(max_size=60)), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)


def says(packets: list[tuple[bytes, int]]) -> None:
    """Say all that, and hear whatever comes, until the executor hangs up or has nothing to say."""
    out, into = os.pipe()
    with Raw() as raw:
        try:
            for data, count in packets:
                raw.send_bytes(data, (into,) * count)
        except ConnectionError:
            pass
        os.close(into)
        raw.sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                message, fds = control.receive(raw.sock, 8)
            except (EOFError, ConnectionError):
                break
            for fd in fds:
                os.close(fd)
            assert message["kind"] in ("welcome", "refused", "statistics", "stopping")
            assert len(str(message.get("message"))) < 5000
    os.close(out)


@settings(
    max_examples=5,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(conversations=st.lists(PACKETS, min_size=1, max_size=4))
def test_who_talks_nonsense_is_answered_or_hung_up_on(
    executor: Executor,
    caplog: pytest.LogCaptureFixture,
    conversations: list[list[tuple[bytes, int]]],
) -> None:
    for packets in conversations:
        says(packets)
    faults = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert not [each.getMessage() for each in faults if each.exc_info], "a fault of ours"


# ---- from an executor -------------------------------------------------------------------------


class Impostor:
    """Listens as an executor of `add` would, and answers with what it is given."""

    def __init__(self, name: str) -> None:
        directory(create=True)
        self._path = socket_path(name)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._transport = executor_transport("linux")
        contract = signature("int")
        where = layout.layout(4, [8, 8])
        self._segment = self._transport.create(where.nbytes, 4)
        offer, self._fds = self._segment.offer()
        self.welcome = {
            "kind": "welcome",
            "pid": os.getpid(),
            "signature": contract.to_message(),
            "max_batch_size": 4,
            "capacity": 4,
            "offer": offer,
            "idempotent": False,
            "supervised": False,
        }
        self._pidfd = os.pidfd_open(os.getpid())
        self._ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.fds = [self._pidfd, self._ends[0].fileno(), *self._fds]

    def answer(self, message: Any, fds: list[int]) -> None:
        sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(PATIENCE_S)
            control.receive(sock)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            sock.sendmsg([msgspec.msgpack.encode(message)], rights if fds else [])
            try:
                control.receive(sock)  # attached, or the end
            except (EOFError, OSError):
                pass

    def close(self) -> None:
        self._listener.close()
        self._path.unlink()
        for end in self._ends:
            end.close()
        os.close(self._pidfd)
        self._segment.handed_over()
        self._transport.close()


def answers(impostor: Impostor, message: Any, fds: list[int]) -> None:
    try:
        msgspec.msgpack.encode(message)
    except (OverflowError, UnicodeEncodeError, TypeError):
        return
    thread = threading.Thread(target=impostor.answer, args=(message, fds), daemon=True)
    thread.start()
    with suppress(errors.ShmbatchError):
        shmbatch.connect("impostor.add", timeout=0)
    processes.hang_up()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "nobody has connected to it, or it was not hung up on"


@pytest.mark.no_transport
@pytest.mark.parametrize("runs", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_a_welcome_that_is_none_is_an_error_of_ours(runs: int) -> None:
    impostor = Impostor("impostor")
    try:
        counts = iter(range(10 * runs))

        def answered(message: Any) -> None:
            # Most often what belongs to it, else too few or too many.
            supervised = isinstance(message, dict) and bool(message.get("supervised"))
            fds = impostor.fds[:2] + [impostor.fds[0], impostor.fds[3]] * supervised
            fds += impostor.fds[2:]
            number = next(counts)
            if number % 4 == 3:
                fds = (fds + fds[:1])[: number % 8]
            answers(impostor, message, fds)

        seeds = [impostor.welcome, {"kind": "refused", "error": "NameTaken", "message": "no"}]
        seeds += [{"kind": "lost", "cause": "it"}, impostor.welcome | {"supervised": True}]
        assert guided.search(answered, seeds, runs=runs, seed=2, watched=PACKAGE) > 80
    finally:
        impostor.close()
