"""One producer process's tie to one function: how calls are submitted, and waited for.

A connection is shared by all threads and event loops of its process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from ..contract.batching import OtherBatching
from ..contract.exceptions import unpack_exception
from ..contract.packing import Arguments
from ..contract.signature import Signature
from ..errors import (
    CallCancelled,
    CallTimeout,
    ExecutorClosed,
    ProtocolError,
    RingFull,
)
from ..protocol import names
from ..protocol._core import (
    CANCELLED,
    DONE,
    EXPELLED,
    FAILED,
    OPEN,
    PENDING,
    REPLACED,
    SUBMIT_CLOSED,
    SUBMIT_FORKED,
    SUBMIT_FULL,
    SUBMIT_MISFIT,
    THREAD,
    Failure,
)
from ..protocol.clock import now_ns
from ..protocol.spinning import spinning_for
from .attended import SLICE_NS, Attended
from .limits import UNLIMITED, Limits, exceeded, limits_from_now
from .results import finisher
from .slots import WaitingThread

if TYPE_CHECKING:
    from .call import FunctionCall
    from .line import Line
    from .listener import Listener


_CROWDED_NS = 1_000_000
_SPIN_NS = 20_000  # of `auto`


_Got = TypeVar("_Got")


class Forked(Exception):
    """This process is a fork of the one that connected; connect anew. Never leaves the client."""


class Replaced(Exception):
    """Another executor takes calls instead of this one; connect anew. Never leaves the client."""


class Connection(Attended):
    """A live connection; made by `handshake.connect`. Arguments as of `Attended`."""

    def __init__(
        self,
        address: names.Address,
        name: str,
        line: Line,
        welcome: dict[str, Any],
        *,
        arrays: str,
        wait: str,
        batching: OtherBatching,
    ) -> None:
        def finish(signature: Signature) -> Callable[[Any], Any] | None:
            self._arguments = Arguments(signature, str(address))  # first: it may refuse them
            self.finish = finisher(signature.result, arrays, str(address))
            return self.finish

        self.arrays = arrays
        self.spinning = spinning_for(wait, _SPIN_NS)
        # Outcomes of spawned calls, by ticket, copied out before anybody asked, to make room.
        # Each in a list, which is empty for the moment between leaving its slot and being here.
        self.stash: dict[int, list[Any]] = {}
        self._reaping = threading.RLock()
        self.sleepers: list[int] = []  # the ticket of each thread in `sleep`
        super().__init__(address, name, line, welcome, batching, finish)
        self.ring.spinning = self.spinning

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
            RingFull, DeadlineExceeded, ExecutorClosed, ExecutorGone, Forked, Replaced.
        """
        while True:
            ticket = self.slots.entrance.submit(values, flags, limits.deadline_ns)
            if ticket >= 0:
                return ticket
            if ticket == SUBMIT_FULL:
                return self._submit_in_turn(values, flags, limits)
            values = self.refusal(ticket, values)

    def _submit_in_turn(self, values: tuple[Any, ...], flags: int, limits: Limits) -> int:
        def submit() -> int:
            nonlocal values
            while True:
                ticket = self.ring.submit(values, flags, limits.deadline_ns)
                if ticket >= 0 or ticket == SUBMIT_FULL:
                    return ticket
                values = self.refusal(ticket, values)

        return self.in_turn(submit, limits)

    def in_turn(self, attempt: Callable[[], _Got], limits: Limits) -> _Got:
        """Queue for a slot; return what *attempt* does, once that is not SUBMIT_FULL."""
        waiter = WaitingThread(self._wake_completions)

        def found() -> bool:
            return self.reap() and self.slots.is_next(waiter)

        since_ns = now_ns()
        try:
            self.slots.join(waiter)
            while True:
                overdue = now_ns() - since_ns >= SLICE_NS and self.slots.is_first(waiter)
                if found() or (overdue and self.reap()):
                    got = attempt()
                    if got != SUBMIT_FULL:
                        return got
                if overdue:
                    since_ns = now_ns()
                timeout_ns = self.slice_ns(limits.next_ns)
                if timeout_ns <= 0:
                    raise self.no_slot(limits)
                if not self.is_attended():
                    self.help(timeout_ns)
                elif self.slots.is_first(waiter):
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
            status = self.ring.status
            if status == OPEN:  # the ring has just gone over to another executor
                return values
            if status == REPLACED:
                raise Replaced
            line = self.line
            if status == EXPELLED or line.is_gone():
                self.lost(line)
            if status == EXPELLED:
                raise self.gone(was_taken=False)
            raise ExecutorClosed(
                f"executor of '{self.address}' (process {self.line.executor_pid}) takes no more "
                f"calls; it is stopping"
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
                self.line.transport.park_completions(self.ring, joined, timeout_ns)
        finally:
            self.ring.leave_completions(THREAD)

    def _wake_completions(self) -> None:
        self.line.transport.wake_completions(self.ring)

    def no_slot(self, limits: Limits) -> Exception:
        """Return what ends the wait for a slot at the earlier of *limits*."""
        if limits.next_ns == limits.deadline_ns:
            return exceeded(self.address, limits)
        return RingFull(
            f"all {self.capacity} slots for '{self.address}' are in use; "
            f"wait longer, or give the function more with slots="
        )

    # ---- waiting -------------------------------------------------------------------------

    def wait(self, ticket: int, outcome: Any, limits: Limits) -> Any:
        """Return the call's result; the ticket is over then, and where its error is raised.

        Args:
            outcome: what `ring.poll` has just returned.

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
        if type(outcome) is Failure:
            try:
                raise outcome.error
            finally:
                del outcome  # else the error holds this frame, which holds the error
        return outcome

    def conclude(self, ticket: int, outcome: Any, timeout: float | None, since_ns: int) -> Any:
        """As `wait`, *timeout* seconds from *since_ns* on: what the core leaves of `remote`."""
        limits = UNLIMITED if timeout is None else limits_from_now(timeout, None)
        if limits.until_ns is not None:
            limits = limits._replace(until_ns=limits.until_ns - (now_ns() - since_ns))
        return self.wait(ticket, outcome, limits)

    def tell_queue(self) -> None:
        """Tell who waits for a slot that one was freed."""
        self.slots.tell()

    def abandon(self, ticket: int) -> None:
        """Give a call up, unless it is over."""
        try:
            self.withdraw(ticket)
        except ValueError:
            pass

    def outcome(self, ticket: int, spin_ns: int) -> Any:
        """Take a call's outcome: its result, a `Failure`, or PENDING.

        Raises:
            ValueError: the ticket is over. RuntimeError: this process is a fork.
        """
        outcome = self.slots.entrance.poll(ticket, spin_ns)
        return Failure(self._error(ticket)) if outcome is FAILED else outcome

    def error(self, ticket: int, limits: Limits) -> Exception:
        """Return what a call failed with that the core said FAILED of; frees its slot."""
        error = self._error(ticket)
        return exceeded(self.address, limits) if error is None else error

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
                raise exceeded(self.address, limits)
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
            if self.should_look() and not self.is_attended(ticket):
                if ring.state(ticket) == DONE:
                    return True
                self.help(timeout_ns)
                continue
            if self.line.transport.park_slot(ring, ticket, timeout_ns):
                self.spinning.slept()
                return True

    def sleep(self, ticket: int, until_ns: int | None) -> bool:
        """As `park`, for a call that other threads may wait for: `tell` ends it, too."""
        self.sleepers.append(ticket)
        try:
            return self.park(ticket, until_ns)
        finally:
            self.sleepers.remove(ticket)

    def tell(self, ticket: int, sleeps: bool = False) -> None:
        """Wake who else waits for this call, which this thread has found, or made, to be over.

        The executor wakes nobody for a call that was given up.

        Args:
            sleeps: a thread is known to sleep for it.
        """
        if sleeps or ticket in self.sleepers:
            self.line.transport.wake_slot(self.ring, ticket)
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
            if self.is_attended(ticket):
                self._park_completions(found, timeout_ns)
            elif not found():
                self.help(timeout_ns)
