"""One pending input and its outcome, as a caller holds it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

from ..errors import CallCancelled, CallTimeout, ConfigError, DeadlineExceeded, ShmbatchError
from ..protocol._core import CANCELLED, PENDING, Call, Failure, GetVerb, Lent
from ..protocol.clock import deadline_ns as deadline_after
from ..protocol.clock import now_ns
from .attended import SLICE_NS
from .connection import Connection
from .lending import Borrowed, read_only, result_over
from .limits import UNLIMITED, Limits, earlier, exceeded
from .verbs import static_verb

_WAITING, _VALUE, _ERROR, _BORROWED = 0, 1, 2, 3


class FunctionCall(Call):
    """A call made by ``spawn``; `get` its result, or `cancel` it, from any thread.

    Dropping the last reference gives its slot back: not launched it never runs, launched its
    result is dropped.
    """

    __slots__ = ()
    _connection: Connection
    _limits: Limits

    @classmethod
    def _refused(cls, connection: Connection, error: Exception) -> FunctionCall:
        """Return a call that was never made, because of *error*; it is done."""
        call = cls(connection, -1, UNLIMITED)
        call._settle_as(_ERROR, error)
        return call

    def _settle_otherwise(self) -> bool:
        """Take the outcome if it is there; True once it is. What the core cannot do of `_settle`.

        A call whose time is over gets its outcome here. The core hands an outcome to one thread
        only; another one that asks for it meanwhile finds it here or in the connection's stash a
        moment later.
        """
        connection, ticket = self._connection, self._ticket
        try:
            try:
                outcome = connection.outcome(ticket, 0)
            except ValueError:
                outcome = connection.unstash(ticket)
            if type(outcome) is Failure:
                failed = outcome.error
                if failed is None:
                    failed = exceeded(connection.address, self._limits)
                self._outcome = failed
                self._state = _ERROR
            elif outcome is not PENDING:
                self._outcome = outcome
                self._state = _VALUE
        except BaseException as error:
            if connection.ring.forked:
                message = "this call belongs to the parent process; get it there"
                raise ConfigError(message) from None
            is_taken = not connection.is_live(ticket) and ticket not in connection.stash
            if is_taken and self._state == _WAITING:
                self._lost(error)
            raise  # a signal's, perhaps, before the outcome was taken: then the call goes on
        if self._state == _WAITING:
            return self._limits is not UNLIMITED and self._lapse()
        self._tell()
        return True

    def _lost(self, error: BaseException) -> None:
        """Settle a call whose outcome was lost on its way because of *error*."""
        lost = error if isinstance(error, Exception) else self._cancelled("interrupted")
        self._settle_as(_ERROR, lost)

    def done(self) -> bool:
        """Say whether `get` would return, or raise, at once.

        Looks at the executor's life no more than once in 25 ms; else it costs no system call.
        """
        connection = self._connection
        if not self._settle() and connection.should_look():
            try:
                if not connection.is_attended(self._ticket):
                    connection.help(0)
            except ValueError:
                pass  # another thread got the outcome just now
            except ShmbatchError as error:
                self._fail(error)
        return self._state != _WAITING

    async def _get_aio(self, timeout: float | None = None) -> Any:
        await self._wait_aio(deadline_after(timeout), timeout)
        try:
            return self._result()
        finally:
            del self  # as in `get`

    def _get(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what the call failed with.

        Raises:
            CallTimeout: *timeout* seconds passed; the call goes on, `get` may be called again.
                Or its handle's timeout did, and the call is over.
            DeadlineExceeded: its handle's deadline passed before it was launched; it never runs.
            CallCancelled: it was cancelled.
            ExecutorGone: the executor died before there was a result.
        """
        if not self._settle():
            self._wait(deadline_after(timeout), timeout)
        try:
            return self._result()
        finally:
            del self  # or the error, whose traceback has this frame, would keep itself alive

    get = GetVerb(_get, _get_aio)

    def borrow(self, timeout: float | None = None) -> Borrowed:
        """Return a context manager that gives the result where it stands, without a copy.

        Entering it waits and raises as `get`. An array of fixed shape is then in shared memory,
        in the call's slot: read-only, as a tensor not to be written to. The slot goes back when
        the ``with`` has ended and no array or tensor over it is left, and not before: so nothing
        dangles, even if the executor is gone by then. Any other result is what `get` returns.

        The result is given away with that: `get`, or `borrow`, raises ConfigError from then on. It
        is a copy instead, a read-only one that can be had again, where it had left its slot
        already, and where half of the connection's slots are reserved or borrowed, since calls
        have to have some.

        Args:
            timeout: as of `get`.
        """
        return Borrowed(self, timeout)

    def _borrow(self, timeout: float | None) -> Any:
        lent = self._wait_to_borrow(timeout)
        connection = self._connection
        try:
            if lent is not None:
                return result_over(connection, lent)
            result = self._result()
        finally:
            del self  # as in `get`
        return read_only(result) if connection.signature.result.kind == "array" else result

    def _wait_to_borrow(self, timeout: float | None) -> Lent | None:
        """Return the result in its slot; None once there is an outcome that is not to be lent."""
        until_ns = deadline_after(timeout)
        tell, spin_ns = self._connection.slots.tell, self._connection.spinning.spin_ns
        lent: Lent | None = None

        def settled() -> bool:
            nonlocal lent, spin_ns
            found = self._lend(spin_ns, tell)
            spin_ns = 0
            if found is PENDING:
                return self._limits is not UNLIMITED and self._lapse()
            if found is None:
                return self._settle()
            lent = found
            self._tell()
            return True

        if not settled():
            self._wait(until_ns, timeout, settled)
        return lent

    @staticmethod
    async def _gather_aio(
        *calls: FunctionCall, timeout: float | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        until_ns = _gathering(calls, timeout)
        results = []
        for call in calls:
            await call._wait_aio(until_ns, timeout)
            results.append(call._result(return_exceptions))
        return results

    @static_verb(_gather_aio)
    def gather(
        *calls: FunctionCall, timeout: float | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        """Return the results of *calls*, of one function or of several, in their order.

        Args:
            timeout: seconds for all of them together.
            return_exceptions: have exceptions stand in their places; else the first one, in
                the order of *calls*, is raised, and the other calls go on.

        Raises:
            CallTimeout: *timeout* seconds passed; the calls go on, all may be gathered again.
            ConfigError: an argument is not a call.
            Exception: what a call failed with, as `get` raises it, unless *return_exceptions*.
        """
        until_ns = _gathering(calls, timeout)
        results = []
        for call in calls:
            if not call._settle():
                call._wait(until_ns, timeout)
            results.append(call._result(return_exceptions))
        return results

    def _wait(
        self,
        until_ns: int | None = None,
        timeout: float | None = None,
        settled: Callable[[], bool] | None = None,
    ) -> None:
        """Return when the call, just seen not to be done, is; raise `CallTimeout` at *until_ns*.

        Args:
            timeout: how many seconds that is after the caller came, for the message.
            settled: takes the outcome if it is there, as `_settle`, which it is by default.
        """
        settled = settled or self._settle
        self._shared = True
        while True:
            if until_ns is not None and until_ns <= now_ns():
                raise self._late(timeout)
            try:
                self._connection.sleep(self._ticket, earlier(until_ns, self._limits.next_ns))
            except ValueError:
                time.sleep(0)  # another thread got the outcome and is about to say so
            except ShmbatchError as error:
                self._fail(error)
            if settled():
                return

    async def _wait_aio(self, until_ns: int | None = None, timeout: float | None = None) -> None:
        """As `_wait`, for an event loop; looks first."""
        import asyncio

        self._shared = True
        while not self._settle():
            if until_ns is not None and until_ns <= now_ns():
                raise self._late(timeout)
            at_ns = earlier(until_ns, self._limits.next_ns)
            try:
                await self._connection.listening().any_outcome([self._ticket], at_ns)
            except ValueError:
                await asyncio.sleep(0)  # as above
            except ShmbatchError as error:
                self._fail(error)

    def _wait_any(self, calls: Collection[FunctionCall]) -> None:
        """Return when one of *calls*, among them this one, may be done."""
        try:
            self._connection.wait_any(calls, self._ticket, _next_ns(calls))
        except ValueError:
            pass  # another thread got the outcome just now
        except ShmbatchError as error:
            self._fail(error)

    async def _wait_any_aio(self, calls: Collection[FunctionCall]) -> None:
        """As `_wait_any`, for an event loop."""
        if any(call.done() for call in calls):
            return
        for call in calls:
            call._shared = True
        connection, until_ns = self._connection, _next_ns(calls)
        tickets = [call._ticket for call in calls if call._connection is connection]
        if len(tickets) < len(calls):  # the others have to be looked at now and then
            until_ns = earlier(until_ns, now_ns() + SLICE_NS)
        try:
            await connection.listening().any_outcome(tickets, until_ns)
        except ValueError:
            pass  # another thread got one of the outcomes just now
        except ShmbatchError as error:
            self._fail(error)

    def cancel(self) -> bool:
        """Cancel the call; say whether it is now certain never to run.

        A call that is done already keeps its outcome. A launched one runs on with its
        batch-mates, and its result is dropped.
        """
        if self._settle():
            return False
        return self._withdraw(self._cancelled("cancelled"))

    def _late(self, timeout: float | None) -> CallTimeout:
        return CallTimeout(
            f"'{self._connection.address}' gave no result within {timeout:g} seconds; the call "
            f"goes on, get it again or give it more time with timeout="
        )

    def _cancelled(self, how: str) -> CallCancelled:
        return CallCancelled(f"the call of '{self._connection.address}' was {how}")

    def _result(self, return_exceptions: bool = False) -> Any:
        """Return or raise the outcome of a settled call."""
        if self._state == _ERROR and not return_exceptions:
            try:
                raise self._outcome
            finally:
                del self  # as in `get`
        if self._state == _BORROWED:
            raise ConfigError(
                f"the result of this call of '{self._connection.address}' was borrowed, which can "
                f"be done once; copy it inside the with, or get it instead"
            )
        return self._outcome

    def _lapse(self) -> bool:
        """End the call if its own timeout or deadline has passed; True if it is done."""
        next_ns = self._limits.next_ns
        if next_ns is None or now_ns() < next_ns:
            return False
        try:
            self._limits = self._connection.lapse(self._ticket, self._limits)
        except DeadlineExceeded as error:
            self._settle_as(_ERROR, error.with_traceback(None))
        except CallTimeout as error:
            self._withdraw(error)
        except ValueError:
            pass  # another thread got the outcome just now
        return self._state != _WAITING

    def _fail(self, error: ShmbatchError) -> None:
        """There will be no outcome, unless it came just before the executor died."""
        if not self._settle():
            self._withdraw(error)

    def _withdraw(self, error: ShmbatchError) -> bool:
        """Give the call up for *error*, unless it has an outcome; True if it never runs."""
        try:
            state = self._connection.withdraw(self._ticket)
        except ValueError:
            return False  # another thread got the outcome just now
        self._settle_as(_ERROR, error.with_traceback(None))  # the frames in there have the call
        return state == CANCELLED

    def _settle_as(self, state: int, outcome: Any) -> None:
        self._outcome = outcome
        self._state = state
        self._tell()

    def _tell(self) -> None:
        self._connection.tell(self._ticket, self._sleepers > 0)

    # The default is found while modules still have their names.
    def _dropped(self, interpreter_ends: Callable[[], bool] = sys.is_finalizing) -> None:
        """Give the call up: the last reference to it is gone, and it has no outcome."""
        if interpreter_ends():
            return  # in the end the executor drops what this process has
        try:
            self._connection.withdraw(self._ticket)
        except ValueError:
            self._connection.stash.pop(self._ticket, None)
        except RuntimeError:
            pass  # a copy in a forked child; the call is the parent's

    def __repr__(self) -> str:
        state = ("waiting", "done", "failed", "borrowed")[self._state]
        return f"<FunctionCall '{self._connection.address}' {state}>"


def _next_ns(calls: Collection[FunctionCall]) -> int | None:
    """When the next of *calls* may be done without having an outcome."""
    return reduce(earlier, (call._limits.next_ns for call in calls), None)


def _gathering(calls: tuple[FunctionCall, ...], timeout: float | None) -> int | None:
    for call in calls:
        if not isinstance(call, FunctionCall):
            raise ConfigError(
                f"gather got a {type(call).__name__}; give it calls as spawn returns them, "
                f"each as an argument of its own: gather(*calls)"
            )
    return deadline_after(timeout)
