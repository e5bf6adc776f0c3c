"""Whether a connection's calls have an executor, and who has them next.

Nobody watches in the background: who waits looks at the executor's life between sleeps. A
connection whose executor has died is *orphaned* as long as another one may come, and then goes
over to that one with the calls it has, see `succession`; else it is *dead*, and the next use of a
handle connects anew.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..contract.batching import OtherBatching
from ..contract.exceptions import pack_exception
from ..contract.signature import Signature
from ..contract.wire import ring_arguments, segment_layout
from ..errors import (
    ExecutorClosed,
    ExecutorGone,
    ExecutorNotFound,
    ProtocolError,
    ShmbatchError,
)
from ..protocol import names
from ..protocol._core import (
    CLOSED,
    EXPELLED,
    OPEN,
    PARKED,
    POLLING,
    READY,
    REPLACED,
    TAKEN,
    ProducerRing,
)
from ..protocol.clock import now_ns
from .logs import DEBUG, INFO, say
from .slots import Slots
from .succession import Succession

if TYPE_CHECKING:
    from .function import Function
    from .line import Line
    from .listener import Listener

# Who waits looks at the executor's life this often, so it hears of a death well within 100 ms, and
# the first call after a death fails at once. No shorter: to end a sleep before its next tick the
# kernel has to set an alarm, which on a virtual machine costs a tenth of the calls per second.
SLICE_NS = 25_000_000

# Executions of one call, where they may be repeated. A call that makes its executor die would
# else do so for ever.
_RUNS_MAX = 3


class Attended:
    """The ring of a connection, the line to its executor, and whom to tell when that changes.

    Attaches to what the executor's *welcome* offers.

    Args:
        name: under which the executor was found.
        line: taken over, unless this raises.
        finish: as of `ProducerRing`, once it is known what the function's result is.
    """

    def __init__(
        self,
        address: names.Address,
        name: str,
        line: Line,
        welcome: dict[str, Any],
        batching: OtherBatching,
        finish: Callable[[Signature], Callable[[Any], Any] | None],
    ) -> None:
        self.address = address
        self.name = name
        self.batching = batching
        self.line = line
        self.signature = Signature.from_message(welcome["signature"])
        self.max_batch_size: int = welcome["max_batch_size"]
        self.handles: weakref.WeakSet[Function] = weakref.WeakSet()  # that use it
        self.is_orphaned = False
        where = segment_layout(self.signature, welcome["capacity"])
        self.capacity = where.capacity
        self.nbytes = len(line.transport.memory)
        self._error_nbytes = where.error_nbytes
        self._is_idempotent: bool = welcome["idempotent"]
        transport = line.transport
        shared = ring_arguments(transport.memory, self.signature, where)
        self.ring = ProducerRing(
            *(*shared, transport.bell_memory, line.wake, finish(self.signature))
        )
        self._choose_sleep()
        self.slots = Slots(self.ring)
        self._refusal: str | None = None  # why the next executor could not take the calls
        self.listener: Listener | None = None  # tells event loops of finished calls
        self._listener_mutex = threading.Lock()
        self._succession = Succession()
        say(
            DEBUG,
            "connected to '%s' (process %d): %d slots, %d bytes of memory",
            address,
            line.executor_pid,
            self.capacity,
            where.nbytes,
        )

    @property
    def dead(self) -> bool:
        """Whether no call can be made over it any more; stays so."""
        return self.ring.dead

    def slice_ns(self, until_ns: int | None) -> int:
        """How long to sleep before looking at the executor's life again, nanoseconds."""
        return SLICE_NS if until_ns is None else min(SLICE_NS, until_ns - now_ns())

    def should_look(self) -> bool:
        """Say whether a slice has passed since the last look at the executor's life."""
        if self.dead or self.is_orphaned:
            return True
        at_ns = now_ns()
        if at_ns - self.ring.looked_ns < SLICE_NS:
            return False
        self.ring.looked_ns = at_ns
        return True

    def is_attended(self, ticket: int | None = None) -> bool:
        """Say whether an executor has the calls; False while another one may come for them.

        Raises:
            ExecutorGone, ExecutorClosed: none ever will, and the ticket's call has no outcome.
        """
        if not (self.dead or self.is_orphaned):
            line = self.line
            if not line.is_gone():
                return True
            self.lost(line)
        if not self.dead:
            return not self.is_orphaned  # it may have gone over meanwhile
        if ticket is None:
            raise self.gone(was_taken=False)
        state = self.ring.state(ticket)
        if state in (READY, TAKEN):
            raise self.gone(was_taken=state != READY)
        return True

    def is_usable(self) -> bool:
        """Say whether calls can be made over it; asks, rather than believe that it is so."""
        if self.dead or self.ring.forked or self.ring.status == REPLACED:
            return False
        line = self.line
        if not self.is_orphaned and line.is_gone():
            self.lost(line)
        return not self.dead

    def await_executor(self, deadline_ns: int | None) -> None:
        """Wait for whoever comes after an executor that has died; return if nobody will.

        Raises:
            ExecutorNotFound: nobody has come by *deadline_ns*.
        """
        while self.is_usable() and self.is_orphaned:
            timeout_ns = self.slice_ns(deadline_ns)
            if timeout_ns <= 0:
                raise ExecutorNotFound(
                    f"the executor of '{self.address}' (process {self.line.executor_pid}) died "
                    f"and the next one does not serve yet; wait longer with timeout="
                )
            self.help(timeout_ns)

    def lost(self, line: Line) -> None:
        """Note that the executor of *line* is gone. Idempotent."""
        if self.dead or self.is_orphaned or line is not self.line:
            return
        line.read()  # first: who finds it gone finds the cause, too
        if self.dead or self.is_orphaned or line is not self.line:
            return  # another thread was here meanwhile
        if line.supervisor is not None and self.ring.status in (OPEN, REPLACED):
            self.is_orphaned = True
            self.ring.looked_ns = 0  # nobody is to sleep in the core before somebody has come
            say(
                *(INFO, "the executor of '%s' (process %d) is gone%s; waiting for the next one"),
                *(self.address, line.executor_pid, _because(line.cause)),
            )
        else:
            self.give_up(line, None)

    def give_up(self, line: Line, refusal: str | None) -> None:
        """Note that nobody comes after the executor of *line*, or nobody who fits, and why not."""
        if self.dead or line is not self.line:
            return
        self._refusal = refusal
        self.ring.dead = True
        self.is_orphaned = False
        say(
            *(INFO, "the executor of '%s' (process %d) is gone%s"),
            *(self.address, self.line.executor_pid, _because(self.line.cause)),
        )
        self._look_all()

    def help(self, timeout_ns: int) -> None:
        """Help the successor of a dead executor to come; see `Succession.help`."""
        self._succession.help(self, timeout_ns)

    def move(self, before: Line, line: Line, max_batch_size: int, is_idempotent: bool) -> None:
        """Go over with all calls from *before*, whose executor is dead, to that of *line*.

        It offers memory of the same layout. Whatever a signal handler does or raises meanwhile,
        afterwards `line` is that of the executor which has the calls.

        Raises:
            EOFError: the connection has gone over, or is closed, already.
        """
        record = pack_exception(self.gone(was_taken=True), self._error_nbytes, trace=False)
        most_runs = _RUNS_MAX if self._is_idempotent else 1
        transport = line.transport
        there = (transport.memory, transport.bell_memory, line.wake, record, most_runs)
        moves = self.ring.moves
        # Signal handlers and other threads run after calls; up to the ring's move there is none.
        if self.dead or self.line is not before:
            raise EOFError  # hung up, or a signal handler's call was faster
        asleep = PARKED | POLLING  # for all that is known if a signal handler raises
        try:
            self.ring.park_ns = 0  # the other transport may be another one
            self.line, self.is_orphaned = line, False
            again, asleep = self.ring.move(*there)
        finally:
            if self.ring.moves == moves:
                self.line, self.is_orphaned = before, True
                self._choose_sleep()
            else:
                line.wake(asleep)
                self._moved(before, max_batch_size, is_idempotent)
        say(
            *(INFO, "'%s' is served by process %d now, %d calls were sent again"),
            *(self.address, line.executor_pid, again),
        )

    def _moved(self, before: Line, max_batch_size: int, is_idempotent: bool) -> None:
        self.max_batch_size = max_batch_size
        self._is_idempotent = is_idempotent
        self._choose_sleep()
        if self.listener is None:
            before.close_descriptors()
        else:
            self.listener.let_go(before)
        self._look_all()

    def _choose_sleep(self) -> None:
        """Have the core sleep by itself where it can."""
        self.ring.park_ns = SLICE_NS if self.line.transport.parks_in_core else 0

    def _look_all(self) -> None:
        """Have everybody look again who waits for something."""
        if self.listener is not None:
            self.listener.tell_all()
        self.slots.tell_all()

    def gone(self, *, was_taken: bool) -> ShmbatchError:
        line, status = self.line, self.ring.status
        who = f"executor of '{self.address}' (process {line.executor_pid})"
        ran = "calls that it had taken may or may not have run"
        if not was_taken:
            ran = "it had not taken this call"
        if self._refusal is not None:
            return ExecutorGone(f"{who} died, and calls cannot go to the next: {self._refusal}")
        if status == EXPELLED:
            return ProtocolError(
                f"{who} has disconnected this process, which broke the protocol or overwrote "
                f"the shared memory; {ran}"
            )
        if line.cause is not None:
            return ExecutorGone(f"{who} died: {line.cause}; {ran}")
        if status == CLOSED and not was_taken:
            return ExecutorClosed(f"{who} had stopped before it took this call")
        if status not in (OPEN, REPLACED) and not was_taken:
            return ExecutorClosed(f"{who} was stopped before it took this call")
        given_up = line.supervisor.cause() if self.dead and line.supervisor else None
        if given_up is not None:
            return ExecutorGone(f"{who} died, and {given_up}")
        return ExecutorGone(f"{who} died; {ran}")

    def say_goodbye(self) -> None:
        """Tell the executor that the end of this connection will be no accident."""
        self.line.say_goodbye()

    def close(self) -> None:
        """Hang up; calls still pending are dropped by the executor. Idempotent."""
        lost = self.dead
        if not lost:
            self.line.read()  # who asks for a call later is told why the executor died, if it has
        self.ring.dead = True
        self.is_orphaned = False
        line = self.line  # for good: a dead connection does not move
        self._succession.leave()
        for handle in list(self.handles):
            handle.forget(self)  # or the memory would stay mapped for as long as the handle is
        if self.ring.forked:
            line.close_descriptors()  # copies of the parent's
            return
        if not lost:
            say(DEBUG, "hung up on '%s' (process %d)", self.address, line.executor_pid)
        line.hang_up()
        if self.listener is None:
            line.close_descriptors()
        else:
            self.listener.let_go(line)
        self._look_all()

    # The default is found while modules still have their names.
    def __del__(self, interpreter_ends: Callable[[], bool] = sys.is_finalizing) -> None:
        # Not if it was never finished: then the line is not ours.
        if hasattr(self, "_succession") and not interpreter_ends():
            self.close()


def _because(cause: str | None) -> str:
    return "" if cause is None else f": {cause}"
