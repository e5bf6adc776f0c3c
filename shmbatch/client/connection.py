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
from ..contract.packing import Arguments
from ..contract.signature import Signature
from ..contract.wire import ring_arguments, segment_layout
from ..errors import (
    CallCancelled,
    CallTimeout,
    DeadlineExceeded,
    ExecutorClosed,
    ExecutorGone,
    ProtocolError,
    RingFull,
)
from ..protocol import control, names
from ..protocol._core import (
    CANCELLED,
    CLOSED,
    DONE,
    EXPELLED,
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
    ProducerRing,
)
from ..protocol.clock import now_ns
from ..protocol.spinning import Spinning
from ..protocol.transport import ProducerTransport, producer_transport
from .limits import Limits
from .logs import DEBUG, INFO, say
from .results import finisher
from .slots import Slots, WaitingThread

if TYPE_CHECKING:
    from .call import FunctionCall
    from .function import Function
    from .listener import Listener

# Who waits looks at the executor's life this often, so it hears of a death well within 100 ms, and
# the first call after a death fails at once. No shorter: to end a sleep before its next tick the
# kernel has to set an alarm, which on a virtual machine costs a tenth of the calls per second.
SLICE_NS = 25_000_000

_CROWDED_NS = 1_000_000
_PACKETS_MAX = 1024  # more than a socket's buffer holds; somebody may send without an end
_SPIN_NS = 20_000  # of `auto`


class Failure:
    """An error in the stash; values stand there as they are.

    It is None of a call that expired: only who made that knows by when it was to be launched.
    """

    __slots__ = ("error",)

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Unfinished(Exception):
    """A result came and cannot be made into the caller's; never leaves the client.

    It sets such an *error* apart from what the core raises of the ticket itself.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
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
        self._arguments = Arguments(self.signature, str(address))
        finish = _guarded(finisher(self.signature.result, arrays, str(address)))
        self._transport: ProducerTransport = producer_transport(welcome["offer"], fds[2:])
        # From here on there is something to close; nothing but these two is likely to fail.
        self.pidfd = os.dup(fds[0])
        try:
            self._loop_socket = socket.socket(fileno=os.dup(fds[1]))
        except BaseException:
            os.close(self.pidfd)
            raise
        self._loop_socket.setblocking(False)
        shared = ring_arguments(self._transport.memory, self.signature, where)
        wake = _waker(self._transport, self._loop_socket)
        self.ring = ProducerRing(*(*shared, self._transport.bell_memory, wake, finish))
        self.slots = Slots(self.ring)
        self.spinning = Spinning(wait, _SPIN_NS)
        # Outcomes of spawned calls, by ticket, copied out before anybody asked, to make room.
        # Each in a list, which is empty for the moment between leaving its slot and being here.
        self.stash: dict[int, list[Any]] = {}
        self._reaping = threading.RLock()
        self._looked_ns = 0
        # Held for moments; by the same thread twice if a signal handler makes a call.
        self._reading = threading.RLock()
        self._cause: str | None = None  # of the executor's death, if it could say so
        self.listener: Listener | None = None  # tells event loops of finished calls
        self.sleepers: list[int] = []  # the ticket of each thread in `sleep`
        self._listener_mutex = threading.Lock()
        say(
            DEBUG,
            "connected to '%s' (process %d): %d slots, %d bytes of memory",
            address,
            self.executor_pid,
            self.capacity,
            where.nbytes,
        )

    def listening(self) -> Listener:
        """Return the listener; made on first use, since it needs asyncio."""
        if self.listener is None:
            with self._listener_mutex:  # with two, each would hear of the other's calls
                if self.listener is None:
                    from .listener import Listener

                    self.listener = Listener(self)
        return self.listener

    # ---- submitting ----------------------------------------------------------------------

    def submit(self, values: tuple[Any, ...], flags: int, limits: Limits) -> int:
        """Publish one call and return its ticket.

        Blocks while the ring is full, until the earlier of *limits*.

        Raises:
            InputError: a value does not fit its parameter.
            RingFull, DeadlineExceeded, ExecutorClosed, ExecutorGone, Forked.
        """
        while True:
            ticket = self.slots.entrance.submit(values, flags, limits.deadline_ns)
            if ticket >= 0:
                return ticket
            if ticket == SUBMIT_FULL:
                return self._submit_in_turn(values, flags, limits)
            values = self.refusal(ticket, values)

    def _submit_in_turn(self, values: tuple[Any, ...], flags: int, limits: Limits) -> int:
        waiter = WaitingThread(self._transport, self.ring)

        def found() -> bool:
            return self.reap() and self.slots.is_next(waiter)

        since_ns = now_ns()
        self.slots.join(waiter)
        try:
            while True:
                overdue = now_ns() - since_ns >= SLICE_NS and self.slots.is_first(waiter)
                if found() or (overdue and self.reap()):
                    ticket = self.ring.submit(values, flags, limits.deadline_ns)
                    if ticket >= 0:
                        return ticket
                    if ticket != SUBMIT_FULL:
                        values = self.refusal(ticket, values)
                        continue
                if overdue:
                    since_ns = now_ns()
                timeout_ns = self.slice_ns(limits.next_ns)
                if timeout_ns <= 0:
                    raise self.no_slot(limits)
                self.check_alive()
                if self.slots.is_first(waiter):
                    waiter.on_completions = True
                    self._park_completions(found, timeout_ns)
                    waiter.on_completions = False
                elif limits.next_ns is None:
                    waiter.sleep(-1)
                else:
                    waiter.sleep(max(0, limits.next_ns - now_ns()) / 1e9)
        finally:
            self.slots.leave(waiter)

    def refusal(self, reason: int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return coerced values where the core found a misfit; raise what else it refused."""
        if reason == SUBMIT_FORKED:
            raise Forked
        if reason == SUBMIT_CLOSED:
            expelled = self.ring.status == EXPELLED
            if expelled or control.is_gone(self.sock, self.pidfd):
                self.lost()
            if expelled:
                raise self.gone(was_taken=False)
            raise ExecutorClosed(
                f"executor of '{self.address}' (process {self.executor_pid}) takes no more calls; "
                f"it is stopping"
            )
        assert reason == SUBMIT_MISFIT
        bound = self.signature.bind(values, {}, str(self.address))  # with defaults, if it has some
        coerced = self._arguments.coerce(bound)
        if bound is values and all(new is old for new, old in zip(coerced, values, strict=True)):
            raise ProtocolError(f"the core refuses coerced values for '{self.address}'")
        return coerced

    def reap(self) -> bool:
        """Copy outcomes of spawned calls out of their slots; True if a slot is free."""
        if self.ring.free_slots == 0:
            with self._reaping:
                for ticket in self.ring.finished(True):
                    self._put_away(ticket)
        return self.ring.free_slots > 0

    def _put_away(self, ticket: int) -> None:
        """Take an outcome into the stash.

        Its place there is made before it leaves the slot, so whoever drops the call in between
        finds something to remove, and no outcome is left that nobody will ask for.
        """
        place: list[Any] = []
        if self.stash.setdefault(ticket, place) is not place:
            return  # a signal handler's call in this thread was here before
        outcome: Any = PENDING
        try:
            outcome = self.outcome(ticket, 0)
        except ValueError:
            pass  # another thread got it first
        except BaseException:
            if not self.is_live(ticket):
                outcome = Failure(CallCancelled(f"a call of '{self.address}' was interrupted"))
            raise
        finally:
            if outcome is PENDING:
                self.stash.pop(ticket, None)
            else:
                place.append(outcome)
                self.tell(ticket)

    def unstash(self, ticket: int) -> Any:
        """Take an outcome out of the stash; PENDING if it is not there (yet)."""
        if not self.stash.get(ticket):
            return PENDING
        (outcome,) = self.stash.pop(ticket, (PENDING,))
        return outcome

    def is_live(self, ticket: int) -> bool:
        """Say whether the ticket's call still has its slot."""
        try:
            self.ring.state(ticket)
        except ValueError:
            return False
        return True

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

    def no_slot(self, limits: Limits) -> Exception:
        """Return what ends the wait for a slot at the earlier of *limits*."""
        if limits.next_ns == limits.deadline_ns:
            return self.exceeded(limits)
        return RingFull(
            f"all {self.capacity} slots for '{self.address}' are in use; "
            f"wait longer, or give the function more with slots="
        )

    # ---- waiting -------------------------------------------------------------------------

    def wait(self, ticket: int, outcome: Any, limits: Limits) -> Any:
        """Return the call's result; the ticket is over then, and where its error is raised.

        Args:
            outcome: what `ring.poll` has just returned, PENDING or FAILED.

        Raises:
            CallTimeout: its caller gives it up now; the call is still pending.
            DeadlineExceeded: it was not launched in time and never runs.
            ExecutorGone, ExecutorClosed: there will be no outcome.
        """
        while outcome is PENDING:
            if not self.park(ticket, limits.next_ns):
                limits = self.lapse(ticket, limits)
            outcome = self.slots.entrance.poll(ticket, 0)
        if outcome is FAILED:
            raise self.error(ticket, limits)
        return outcome

    def outcome(self, ticket: int, spin_ns: int) -> Any:
        """Take a call's outcome: its result, a `Failure`, or PENDING.

        Raises:
            ValueError: the ticket is over. RuntimeError: this process is a fork.
        """
        try:
            outcome = self.slots.entrance.poll(ticket, spin_ns)
        except Unfinished as failed:
            return Failure(failed.error)
        return self.failure(ticket) if outcome is FAILED else outcome

    def failure(self, ticket: int) -> Failure:
        """Take the error of a call of which the core said FAILED; frees its slot."""
        return Failure(self._error(ticket))

    def error(self, ticket: int, limits: Limits) -> Exception:
        """Return what a call failed with that the core said FAILED of; frees its slot."""
        error = self._error(ticket)
        return self.exceeded(limits) if error is None else error

    def _error(self, ticket: int) -> Exception | None:
        """As `error`; None of a call that expired."""
        record = self.ring.error(ticket)
        self.slots.tell()
        return None if record is None else unpack_exception(record)

    def withdraw(self, ticket: int) -> int:
        """Give a call up; see `ProducerRing.withdraw`."""
        state = self.ring.withdraw(ticket)
        if state == DONE:
            self.slots.tell()
        return state

    def lapse(self, ticket: int, limits: Limits) -> Limits:
        """The earlier of a pending call's *limits* has passed: return what remains of them.

        Raises:
            CallTimeout: nothing remains, its caller gives it up; it is still pending.
            DeadlineExceeded: it was not launched and never runs; the ticket is over.
            ValueError: the ticket is over already.
        """
        if limits.next_ns == limits.deadline_ns:
            if self.ring.expire(ticket) == CANCELLED:
                raise self.exceeded(limits)
            limits = limits._replace(deadline_ns=0)  # launched in time, or done
        if limits.until_ns is not None and limits.until_ns <= now_ns():
            raise CallTimeout(
                f"'{self.address}' gave no result within {limits.timeout:g} seconds and the call "
                f"is given up; give it more time with timeout="
            )
        return limits

    def park(self, ticket: int, until_ns: int | None) -> bool:
        """Sleep until the call is done, a slice at a time; False if *until_ns* passed first.

        Raises:
            ExecutorGone, ExecutorClosed: there will be no outcome.
            ValueError: the ticket is over.
        """
        ring = self.ring
        while True:
            timeout_ns = SLICE_NS if until_ns is None else min(SLICE_NS, until_ns - now_ns())
            if timeout_ns <= 0:
                return False
            if self.should_look():
                self.check_alive(ticket)
            if self._transport.park_slot(ring, ticket, timeout_ns):
                self.spinning.parked(won=ring.spins_won, active=ring.active)
                return True

    def sleep(self, ticket: int, until_ns: int | None) -> bool:
        """As `park`, for a call that other threads may wait for: `tell` ends it, too."""
        self.sleepers.append(ticket)
        try:
            return self.park(ticket, until_ns)
        finally:
            self.sleepers.remove(ticket)

    def tell(self, ticket: int) -> None:
        """Wake who else waits for this call, which this thread has found, or made, to be over.

        The executor wakes nobody for a call that was given up.
        """
        if ticket in self.sleepers:
            self._transport.wake_slot(self.ring, ticket)
        if self.listener is not None:
            self.listener.tell(ticket)

    def wait_any(self, calls: Collection[FunctionCall], ticket: int, until_ns: int | None) -> None:
        """Return when one of *calls*, *ticket*'s among them, is done, or at *until_ns*.

        Raises:
            ExecutorGone, ExecutorClosed, ValueError: as `park`, of *ticket*'s call.
        """

        def found() -> bool:
            return any(call.done() for call in calls)

        while not found():
            timeout_ns = self.slice_ns(until_ns)
            if timeout_ns <= 0:
                return
            self.check_alive(ticket)
            self._park_completions(found, timeout_ns)

    def exceeded(self, limits: Limits) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"'{self.address}' did not launch this call within {limits.deadline_ms:g} ms, so it "
            f"never runs; give it more time with deadline_ms="
        )

    def slice_ns(self, until_ns: int | None) -> int:
        """How long to sleep before looking at the executor's life again, nanoseconds."""
        return SLICE_NS if until_ns is None else min(SLICE_NS, until_ns - now_ns())

    # ---- liveness ------------------------------------------------------------------------

    def should_look(self) -> bool:
        """Say whether a slice has passed since the last look at the executor's life."""
        at_ns = now_ns()
        if at_ns - self._looked_ns < SLICE_NS and not self.dead:
            return False
        self._looked_ns = at_ns
        return True

    def check_alive(self, ticket: int | None = None) -> None:
        """Raise if the executor is gone, unless the ticket's call is done all the same."""
        if not self.dead and not control.is_gone(self.sock, self.pidfd):
            return
        self.lost()
        if ticket is None:
            raise self.gone(was_taken=True)
        state = self.ring.state(ticket)
        if state in (READY, TAKEN):
            raise self.gone(was_taken=state != READY)

    def read(self) -> bool:
        """Take in what the executor has sent, without waiting; False if nothing will follow.

        For whoever looks, from any thread: who reads a cause has noted it before another one
        finds nothing left to read. Not in a forked child, where all that is the parent's.
        """
        if self.ring.forked:
            return True
        with self._reading:
            for _ in range(_PACKETS_MAX):
                try:
                    packet = self.sock.recv(control.LOST_NBYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return True
                except ConnectionResetError:
                    continue  # said once, ahead of what it had sent before; see `control.receive`
                except OSError:
                    return False
                if not packet:
                    return False
                if len(packet) > 1:  # else it only wakes event loops
                    self._cause = control.cause_in(packet) or self._cause
        return True

    def lost(self) -> None:
        """Note that the executor is gone. Idempotent."""
        if not self.dead:
            self.read()  # first: who finds it dead finds the cause, too
            self.dead = True
            why = "" if self._cause is None else f": {self._cause}"
            say(
                *(INFO, "the executor of '%s' (process %d) is gone%s"),
                *(self.address, self.executor_pid, why),
            )

    def gone(self, *, was_taken: bool) -> Exception:
        who = f"executor of '{self.address}' (process {self.executor_pid})"
        if self.ring.status == EXPELLED:
            return ProtocolError(
                f"{who} has disconnected this process, which broke the protocol or overwrote "
                f"the shared memory; calls that it had taken may or may not have run"
            )
        if self._cause is not None:
            return ExecutorGone(
                f"{who} died: {self._cause}; calls that it had taken may or may not have run"
            )
        if self.ring.status == CLOSED and not was_taken:
            return ExecutorClosed(f"{who} had stopped before it took this call")
        if self.ring.status != OPEN and not was_taken:
            return ExecutorClosed(f"{who} was stopped before it took this call")
        return ExecutorGone(f"{who} died; calls that it had taken may or may not have run")

    def say_goodbye(self) -> None:
        """Tell the executor that the end of this connection will be no accident."""
        try:
            self.sock.send(control.GOODBYE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone, or far too busy

    def close(self) -> None:
        """Hang up; calls still pending are dropped by the executor. Idempotent."""
        lost = self.dead
        if not lost:
            self.read()  # who asks for a call later is told why the executor died, if it has
        self.dead = True
        for handle in list(self.handles):
            handle.forget(self)  # or the memory would stay mapped for as long as the handle is
        if self.ring.forked:
            self._close_descriptors()  # copies of the parent's
            return
        if not lost:
            say(DEBUG, "hung up on '%s' (process %d)", self.address, self.executor_pid)
        self.say_goodbye()
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


def _guarded(finish: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """Return *finish*, whatever it raises made an `Unfinished`."""
    if finish is None:
        return None

    def guarded(result: Any) -> Any:
        try:
            return finish(result)
        except Exception as error:
            raise Unfinished(error) from error

    return guarded
