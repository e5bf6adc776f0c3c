"""One producer process's tie to one function of an executor: submitting, waiting, liveness.

A connection is shared by all threads and event loops of its process. It learns of the
executor's death from the control socket's end and from the executor's pidfd, whichever comes
first, and looks at both between sleeps; no thread watches in the background.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ..contract.exceptions import unpack_exception
from ..contract.signature import Signature
from ..contract.wire import ring_arguments, segment_layout
from ..errors import (
    CallTimeout,
    ExecutorClosed,
    ExecutorGone,
    ProtocolError,
    RingFull,
)
from ..protocol import control, names
from ..protocol._core import (
    CLOSED,
    FAILED,
    OPEN,
    PARKED,
    PENDING,
    POLLING,
    READY,
    SUBMIT_CLOSED,
    SUBMIT_FORKED,
    SUBMIT_FULL,
    SUBMIT_MISFIT,
    TAKEN,
    THREAD,
    WAITER,
    ProducerRing,
)
from ..protocol.clock import now_ns
from ..protocol.spinning import Spinning
from ..protocol.transport import ProducerTransport, producer_transport
from .results import finisher

if TYPE_CHECKING:
    from .call import FunctionCall
    from .function import Function
    from .listener import Listener

# A sleeper looks at the executor's life this often, so it hears of a death well within 100 ms.
SLICE_NS = 25_000_000
# The first look comes sooner, so that the first call after a death fails at once; not before the
# first park, where most calls would pay for it.
FIRST_SLICE_NS = 2_000_000

_CROWDED_NS = 1_000_000
_SPIN_NS = 20_000  # of `auto`


class Failure:
    """An error in the stash; values stand there as they are."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


class Forked(Exception):
    """This process is a fork of the one that connected; connect anew. Never leaves the client."""


class Connection:
    """A live connection; made by `handshake.connect`."""

    def __init__(
        self,
        address: names.Address,
        sock: socket.socket,
        welcome: dict[str, Any],
        fds: list[int],
        *,
        arrays: str,
        wait: str,
    ) -> None:
        """Attach to what the executor's *welcome* offers. Takes over *sock*, not *fds*."""
        self.address = address
        self.sock = sock
        self.signature = Signature.from_message(welcome["signature"])
        self.max_batch_size: int = welcome["max_batch_size"]
        self.executor_pid: int = welcome["pid"]
        self.handles: weakref.WeakSet[Function] = weakref.WeakSet()  # that use it
        self.dead = False  # the next use of a handle connects anew
        where = segment_layout(self.signature, welcome["capacity"])
        self.capacity = where.capacity
        finish = finisher(self.signature.result, arrays)
        self._transport: ProducerTransport = producer_transport(welcome["offer"], fds[2:])
        # From here on there is something to close; nothing below fails but for descriptors.
        self.pidfd = -1
        self._loop_socket = socket.socket(fileno=os.dup(fds[1]))
        self._loop_socket.setblocking(False)
        self.pidfd = os.dup(fds[0])
        shared = ring_arguments(self._transport.memory, self.signature, where)
        wake = _waker(self._transport, self._loop_socket)
        self.ring = ProducerRing(*(*shared, self._transport.bell_memory, wake, finish))
        self.spinning = Spinning(wait, _SPIN_NS)
        # Outcomes of spawned calls, by ticket, copied out before anybody asked, to make room.
        self.stash: dict[int, Any] = {}
        self.listener: Listener | None = None  # tells event loops of finished calls
        self._listener_mutex = threading.Lock()

    def listening(self) -> Listener:
        """Return the listener; made on first use, since it needs asyncio."""
        if self.listener is None:
            with self._listener_mutex:  # with two, each would hear of the other's calls
                if self.listener is None:
                    from .listener import Listener

                    self.listener = Listener(self)
        return self.listener

    # ---- submitting ----------------------------------------------------------------------

    def submit(self, values: tuple[Any, ...], flags: int, deadline_ns: int | None) -> int:
        """Publish one call and return its ticket.

        Blocks while the ring is full, until *deadline_ns*.

        Raises:
            InputError: a value does not fit its parameter.
            RingFull, ExecutorClosed, ExecutorGone, Forked.
        """
        while True:
            ticket = self.ring.submit(values, flags)
            if ticket >= 0:
                return ticket
            if ticket == SUBMIT_FULL:
                self._wait_for_slot(deadline_ns)
            else:
                values = self.refusal(ticket, values)

    def refusal(self, reason: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return coerced values where the core found a misfit; raise what else it refused."""
        if reason == SUBMIT_FORKED:
            raise Forked
        if reason == SUBMIT_CLOSED:
            self.dead = control.is_gone(self.sock, self.pidfd)
            raise ExecutorClosed(
                f"executor of '{self.address}' (process {self.executor_pid}) takes no more calls; "
                f"it is stopping"
            )
        assert reason == SUBMIT_MISFIT
        values = self.signature.bind(values, {}, str(self.address))
        coerced = tuple(
            column.coerce(value, f"parameter {column.name!r} of {self.address}")
            for column, value in zip(self.signature.parameters, values, strict=True)
        )
        if all(new is old for new, old in zip(coerced, values, strict=True)):
            raise ProtocolError(f"the core refuses coerced values for '{self.address}'")
        return coerced

    def reap(self) -> bool:
        """Copy outcomes of spawned calls out of their slots; True if a slot is free."""
        if self.ring.free_slots == 0:
            for ticket in self.ring.finished(True):
                try:
                    outcome = self.ring.poll(ticket, 0)
                    if outcome is FAILED:
                        outcome = Failure(self.error(ticket))
                except ValueError:
                    continue  # another thread got it first
                if outcome is not PENDING:
                    self.stash[ticket] = outcome
                    if self.listener is not None:
                        self.listener.tell(ticket)
        return self.ring.free_slots > 0

    def _wait_for_slot(self, deadline_ns: int | None) -> None:
        """Return when a slot may be free."""
        if self.reap():
            return
        timeout_ns = self.slice_ns(deadline_ns)
        if timeout_ns <= 0:
            raise self.full()
        self.check_alive()
        self._park_completions(self.reap, timeout_ns)

    def _park_completions(self, found: Callable[[], bool], timeout_ns: int) -> None:
        """Sleep until a batch with calls of this connection is done, unless *found*."""
        joined = self.ring.join_completions(THREAD)
        if joined < 0:  # 255 threads sleep here already
            time.sleep(min(timeout_ns, _CROWDED_NS) / 1e9)
            return
        try:
            if not found():
                self._transport.park_completions(self.ring, joined, timeout_ns)
        finally:
            self.ring.leave_completions(THREAD)

    def full(self) -> RingFull:
        return RingFull(
            f"all {self.capacity} slots for '{self.address}' are in use; "
            f"wait longer, or give the function more with slots="
        )

    # ---- waiting -------------------------------------------------------------------------

    def wait(self, ticket: int, outcome: Any, deadline_ns: int | None) -> Any:
        """Return the call's result; the ticket is over then, and where its error is raised.

        Args:
            outcome: what `ring.poll` has just returned, PENDING or FAILED.

        Raises:
            CallTimeout: *deadline_ns* passed; the call is still pending.
            ExecutorGone, ExecutorClosed: there will be no outcome.
        """
        while outcome is PENDING:
            self.park(ticket, deadline_ns)
            outcome = self.ring.poll(ticket, 0)
        if outcome is FAILED:
            raise self.error(ticket)
        return outcome

    def error(self, ticket: int) -> Exception:
        """Return what a call failed with that `ring.poll` said FAILED of."""
        return unpack_exception(self.ring.error(ticket))

    def park(self, ticket: int, deadline_ns: int | None) -> None:
        """Sleep until the call is done, a slice at a time, or raise as `wait` does."""
        slice_ns = FIRST_SLICE_NS
        while True:
            timeout_ns = slice_ns if deadline_ns is None else min(slice_ns, deadline_ns - now_ns())
            if timeout_ns <= 0:
                raise self.late()
            armed = self.ring.arm(ticket, WAITER)
            if armed < 0:
                return
            self._transport.park_slot(self.ring, ticket, armed, timeout_ns)
            if self.ring.arm(ticket, 0) < 0:
                self.spinning.parked(won=self.ring.spins_won, active=self.ring.active)
                return
            self.check_alive(ticket)
            slice_ns = SLICE_NS

    def wait_any(
        self, calls: Collection[FunctionCall], ticket: int, deadline_ns: int | None
    ) -> None:
        """Return when one of *calls*, *ticket*'s among them, is done; or raise as `wait` does."""

        def found() -> bool:
            return any(call.done() for call in calls)

        while not found():
            timeout_ns = self.slice_ns(deadline_ns)
            if timeout_ns <= 0:
                raise self.late()
            self.check_alive(ticket)
            self._park_completions(found, timeout_ns)

    def late(self) -> CallTimeout:
        return CallTimeout(f"'{self.address}' gave no result in time")

    def slice_ns(self, deadline_ns: int | None) -> int:
        """How long to sleep before looking at the executor's life again, nanoseconds."""
        return SLICE_NS if deadline_ns is None else min(SLICE_NS, deadline_ns - now_ns())

    # ---- liveness ------------------------------------------------------------------------

    def check_alive(self, ticket: int | None = None) -> None:
        """Raise if the executor is gone, unless the ticket's call is done all the same."""
        if not self.dead and not control.is_gone(self.sock, self.pidfd):
            return
        self.dead = True
        if ticket is None:
            raise self.gone(was_taken=True)
        state = self.ring.state(ticket)
        if state in (READY, TAKEN):
            raise self.gone(was_taken=state != READY)

    def gone(self, *, was_taken: bool) -> Exception:
        who = f"executor of '{self.address}' (process {self.executor_pid})"
        if self.ring.status == CLOSED and not was_taken:
            return ExecutorClosed(f"{who} had stopped before it took this call")
        if self.ring.status != OPEN and not was_taken:
            return ExecutorClosed(f"{who} was stopped before it took this call")
        return ExecutorGone(f"{who} died; calls that it had taken may or may not have run")

    def close(self) -> None:
        """Hang up; calls still pending are dropped by the executor. Idempotent."""
        self.dead = True
        for handle in list(self.handles):
            handle.forget(self)  # or the memory would stay mapped for as long as the handle is
        if self.ring.forked:
            self._close_descriptors()  # copies of the parent's
            return
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed before, or the executor is gone
        if self.listener is None:
            self._close_descriptors()
        else:
            self.listener.close(self._close_descriptors)

    def _close_descriptors(self) -> None:
        self.sock.close()
        self._loop_socket.close()
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __del__(self) -> None:
        if hasattr(self, "_listener_mutex"):
            self.close()
        elif hasattr(self, "_loop_socket"):  # it was never finished
            self._loop_socket.close()
            if self.pidfd >= 0:
                os.close(self.pidfd)


def _waker(transport: ProducerTransport, loop_socket: socket.socket) -> Callable[[int], None]:
    """Return what the ring calls when the bell says that the executor sleeps."""

    def wake(sleeping: int) -> None:
        if sleeping & PARKED:
            transport.wake_executor()
        if sleeping & POLLING:
            try:
                loop_socket.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # full: it has been woken already; or closed: it is going

    return wake
