"""One pending input and its outcome, as a caller holds it."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from ..errors import CallCancelled, CallTimeout, ConfigError, ShmbatchError
from ..protocol._core import CANCELLED, FAILED, PENDING
from ..protocol.clock import deadline_ns as deadline_after
from ..protocol.clock import now_ns
from .connection import Connection, Failure
from .verbs import verb

_WAITING, _VALUE, _ERROR = 0, 1, 2


class FunctionCall:
    """A call made by ``spawn``; `get` its result, or `cancel` it, from any thread.

    Dropping the last reference gives its slot back: not launched it never runs, launched its
    result is dropped.
    """

    __slots__ = ("_connection", "_deadline_ns", "_outcome", "_state", "_ticket")

    def __init__(self, connection: Connection, ticket: int, deadline_ns: int | None) -> None:
        self._connection = connection
        self._ticket = ticket
        self._deadline_ns = deadline_ns
        self._outcome: Any = None  # always set before `_state`
        self._state = _WAITING

    @classmethod
    def _refused(cls, connection: Connection, error: Exception) -> FunctionCall:
        """Return a call that was never made, because of *error*; it is done."""
        call = cls(connection, -1, None)
        call._settle_as(_ERROR, error)
        return call

    def _settle(self, spin_ns: int = 0) -> bool:
        """Take the outcome if it is there; True once it is. Does not block; frees the slot.

        The core hands an outcome to one thread only; another one that asks for it meanwhile
        finds it here or in the connection's stash a moment later.
        """
        if self._state != _WAITING:
            return True
        connection = self._connection
        try:
            outcome = connection.ring.poll(self._ticket, spin_ns)
            if outcome is FAILED:
                outcome = Failure(connection.error(self._ticket))
        except ValueError:
            outcome = connection.stash.pop(self._ticket, PENDING)
        except RuntimeError:
            raise ConfigError("this call belongs to the parent process; get it there") from None
        except BaseException as error:  # it came in between: the outcome is lost
            lost = error if isinstance(error, Exception) else CallCancelled("interrupted")
            self._settle_as(_ERROR, lost)
            raise
        if outcome is PENDING:
            return self._state != _WAITING
        if type(outcome) is Failure:
            self._settle_as(_ERROR, outcome.error)
        else:
            self._settle_as(_VALUE, outcome)
        return True

    def done(self) -> bool:
        """Say whether `get` would return, or raise, at once."""
        return self._settle()

    async def _get_aio(self, timeout: float | None = None) -> Any:
        import asyncio

        until_ns = self._earlier(deadline_after(timeout))
        while not self._settle():
            try:
                await self._connection.listening().any_outcome([self._ticket], until_ns)
            except ValueError:
                await asyncio.sleep(0)  # another thread got the outcome and is about to say so
            except CallTimeout:
                self._expire()
            except ShmbatchError as error:
                self._fail(error)
        return self._result()

    @verb(_get_aio)
    def get(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what the call failed with.

        Raises:
            CallTimeout: *timeout* seconds passed; the call goes on, `get` may be called again.
            CallCancelled: it was cancelled.
            ExecutorGone: the executor died before there was a result.
        """
        if not self._settle(self._connection.spinning.spin_ns):
            until_ns = self._earlier(None if timeout is None else deadline_after(timeout))
            while not self._settle():
                try:
                    self._connection.park(self._ticket, until_ns)
                except ValueError:
                    time.sleep(0)  # another thread got the outcome and is about to say so
                except CallTimeout:
                    self._expire()
                except ShmbatchError as error:
                    self._fail(error)
        if self._state == _ERROR:
            raise self._outcome
        return self._outcome

    def _wait_any(self, calls: Collection[FunctionCall]) -> bool:
        """Wait until one of *calls*, all of this call's connection, is done.

        Returns False where the oldest one's own timeout passed first.
        """
        try:
            self._connection.wait_any(calls, self._ticket, self._deadline_ns)
        except ValueError:
            pass  # another thread got the outcome just now
        except CallTimeout:
            return False
        except ShmbatchError as error:
            self._fail(error)
        return True

    async def _wait_any_aio(self, calls: Collection[FunctionCall]) -> bool:
        """As `_wait_any`, for an event loop."""
        tickets = [call._ticket for call in calls if not call.done()]
        if len(tickets) < len(calls):
            return True
        try:
            await self._connection.listening().any_outcome(tickets, self._deadline_ns)
        except ValueError:
            pass  # another thread got one of the outcomes just now
        except CallTimeout:
            return False
        except ShmbatchError as error:
            self._fail(error)
        return True

    def cancel(self) -> bool:
        """Cancel the call; say whether it is now certain never to run.

        A call that is done already keeps its outcome. A launched one runs on with its
        batch-mates, and its result is dropped.
        """
        if self._settle():
            return False
        return self._withdraw(CallCancelled("the call was cancelled"))

    def _result(self) -> Any:
        """Return or raise the outcome of a settled call."""
        if self._state == _ERROR:
            raise self._outcome
        return self._outcome

    def _earlier(self, until_ns: int | None) -> int | None:
        if self._deadline_ns is None or until_ns is None:
            return until_ns if self._deadline_ns is None else self._deadline_ns
        return min(self._deadline_ns, until_ns)

    def _expire(self) -> None:
        """After a timeout: abandon the call if its own timeout passed, then raise."""
        late = self._connection.late()
        if self._deadline_ns is not None and now_ns() >= self._deadline_ns:
            self._withdraw(late)
        if self._state == _WAITING:
            raise late

    def _fail(self, error: ShmbatchError) -> None:
        """There will be no outcome, unless it came just before the executor died."""
        if not self._settle():
            self._withdraw(error)

    def _withdraw(self, error: ShmbatchError) -> bool:
        """Give the call up for *error*, unless it has an outcome; True if it never runs."""
        try:
            state = self._connection.ring.withdraw(self._ticket)
        except ValueError:
            return False  # another thread got the outcome just now
        self._settle_as(_ERROR, error)
        return state == CANCELLED

    def _settle_as(self, state: int, outcome: Any) -> None:
        self._outcome = outcome
        self._state = state
        if self._connection.listener is not None:
            self._connection.listener.tell(self._ticket)

    def __del__(self) -> None:
        if self._state == _WAITING:
            try:
                self._connection.ring.withdraw(self._ticket)
            except ValueError:
                self._connection.stash.pop(self._ticket, None)
            except RuntimeError:
                pass  # a copy in a forked child; the call is the parent's

    def __repr__(self) -> str:
        state = ("waiting", "done", "failed")[self._state]
        return f"<FunctionCall '{self._connection.address}' {state}>"
