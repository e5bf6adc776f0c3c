"""The executor's loop: look at the rings, launch what is due, complete what is done, wait.

One thread. Each turn::

    commands -> drain every inbox -> complete what must be -> launch the earliest due -> wake
                                                    nothing to do? wait for the bell

With a device that holds two batches, batch N+1 is launched before batch N is completed, and N's
callers are woken last. While one more batch could be launched, the loop does not sleep for the
device: it waits for the bell, which is rung when a batch has landed.

The loop takes the time as an argument of `turn`, so a test can drive it with a clock of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..protocol._core import (
    CLOSED,
    DRAINING,
    OPEN,
    REPLACED,
    WAKE_ASYNC,
    WAKE_VIOLATION,
    ExecutorRing,
)
from ..protocol.clock import now_ns
from ..protocol.transport import ExecutorSegment
from .batcher import NEVER_NS
from .poller import Poller
from .served import ServedFunction

if TYPE_CHECKING:
    from ..protocol._core import Wake
    from .staging.devices import Landing

# What `turn` returns instead of a time.
NOW_NS = 0
IDLE_NS = 1

_MANY = 1 << 20  # calls; more than fit into all the rings that matter


class Attached(Protocol):
    """A producer's connection, as the loop uses it."""

    ring: ExecutorRing
    segment: ExecutorSegment
    sock: socket.socket
    function: ServedFunction
    since_ns: int  # when it connected
    violated: bool  # it broke the protocol and is being disconnected

    def close(self) -> None: ...


class Loop:
    """Serves some functions until drained.

    Args:
        functions: in the order in which ties between them are broken. Others, to which producers
            attach, come behind them.
        poller: where to wait.
        events: the event loop of async functions, if there are any.
        disconnect: called with a connection whose producer violated the protocol.
        watch: has the poller woken when a landing is over; None where there is no device, or the
            loop is to sleep for it in any case.
        clock: tells the time, nanoseconds.
    """

    def __init__(
        self,
        functions: Sequence[ServedFunction],
        poller: Poller,
        events: asyncio.AbstractEventLoop | None,
        disconnect: Callable[[Attached], None],
        watch: Callable[[Landing], None] | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.functions = list(functions)
        self._attended: list[ServedFunction] = []  # those with producers, or still in flight
        self._alone: ServedFunction | None = None  # the only one of them, if it runs at once
        self._poller = poller
        self._events = events
        self._disconnect = disconnect
        self._watch = watch
        self._clock = clock
        self._commands: deque[Callable[[], None]] = deque()
        self._connections: dict[ExecutorRing, Attached] = {}
        self._draining = False
        self._status = OPEN
        self._stopping = False
        self._missing = 1  # calls until a batch may be due before the time `turn` returned

    # ---- called from other threads and from signal handlers --------------------------------

    def post(self, command: Callable[[], None]) -> None:
        """Have *command* called by the loop's thread, soon."""
        self._commands.append(command)
        self._poller.wake()

    # ---- commands ------------------------------------------------------------------------

    def attach(self, connection: Attached) -> None:
        if connection.function not in self.functions:
            self.functions.append(connection.function)
            if self._draining:
                connection.function.inbox.seal()
        self._connections[connection.ring] = connection
        connection.function.inbox.attach(connection.ring, connection.since_ns)
        self._attend()
        if self._draining:
            connection.ring.set_status(self._status)

    def detach(self, connection: Attached) -> None:
        """Drop a producer: its waiting calls never run, its launched ones run for nobody."""
        if self._connections.pop(connection.ring, None) is not None:
            connection.function.inbox.detach(connection.ring)
            self._attend()
        connection.close()

    def _attend(self) -> None:
        """A turn costs as much as there are functions to look at; look at no more than needed."""
        self._attended = [each for each in self.functions if each.inbox.count or each.is_busy]
        alone = self._attended[0] if len(self._attended) == 1 else None
        self._alone = alone if alone and alone.runs_at_once and alone.turns is None else None

    def drain(self, status: int = DRAINING) -> None:
        """Refuse new calls, run those that were published, then end `run`.

        Args:
            status: what rings say from now on: DRAINING, or REPLACED where another executor
                serves the name, to which producers turn.
        """
        if not self._draining:
            self._draining = True
            self._status = status
            self._tell(status)
            self._poller.bell.disarm()  # SYNC closing: between the status and the last drain
            # Once more, and never again: a producer that ignores what it was told must not keep
            # us from coming to an end.
            for function in self.functions:
                function.inbox.drain(self._clock())
                function.inbox.seal()

    def stop(self) -> None:
        """End `run` after the batch in progress; waiting calls are lost."""
        self.drain()
        self._stopping = True

    # ---- the loop ------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained or stopped."""
        poller = self._poller
        seen = poller.bell.look()  # SYNC bell: always before the rings are looked at
        spun = False
        while True:
            while self._commands:
                self._commands.popleft()()
            if self._stopping:
                break
            until_ns = self.turn(self._clock())
            if self._events is not None and self._in_flight():
                seen = poller.wait_in_loop(self._events, seen, until_ns, self._missing)
            elif until_ns == NOW_NS:
                seen = poller.bell.look()
            elif until_ns == IDLE_NS:
                # Whoever has just got a result may call again at once: before looking at the
                # rings for nothing, spin. If that is in vain, the next turn says how to park.
                word = poller.spin(seen, NEVER_NS, 1)
                spun = word == seen
                seen = word
            elif self._draining and until_ns == NEVER_NS and not self._in_flight():
                break
            else:
                word = seen if spun else poller.spin(seen, until_ns, self._missing)
                seen = word if word != seen else poller.park(seen, until_ns, self._missing)
                spun = False
        if self._status != REPLACED:  # else what has not been taken is for the other one
            self._tell(CLOSED)

    def turn(self, at_ns: int) -> int:
        """Do what can be done now; return when something will be due, `NEVER_NS` if nothing waits.

        Where something was done: `NOW_NS` if there may be more, `IDLE_NS` if no call is left.
        """
        alone = self._alone
        if alone is not None and alone.idle:
            return self._turn_of(alone, at_ns)
        chosen: ServedFunction | None = None
        retried: ServedFunction | None = None  # the chosen one, if it has a batch in parts
        due_ns = 0  # of the chosen one
        taking_turns: list[ServedFunction] = []
        until_ns = NEVER_NS
        total = 0
        missing = _MANY
        completed = in_flight = False
        for function in self._attended:  # first make room: until then batches keep filling
            if function.idle or not function.flights or not function.flights[0].done:
                continue
            if self._watch is None or not self._leaves(function):
                self._wake(function.complete() or ())
                completed = True
        if completed:
            at_ns = self._clock()  # a device may have kept us waiting
        for function in self._attended:
            inbox, batcher = function.inbox, function.batcher
            waiting = inbox.drain(at_ns)
            total += waiting
            batcher.observe(waiting, inbox.oldest_ns, at_ns, self._draining, inbox.absent)
            if inbox.attention:
                self._wake(inbox.pop_attention() or ())
            if not function.idle:  # what makes room is the end of a batch, not another call
                if function.retries.waiting:
                    in_flight = True
                    function.retries.due_ns = function.retries.due_ns or at_ns
                    if chosen is None or function.retries.due_ns < due_ns:
                        chosen = retried = function
                        due_ns = function.retries.due_ns
                continue
            if waiting:
                if batcher.reason is not None:
                    if function.turns is not None:
                        taking_turns.append(function)
                    elif chosen is None or batcher.due_ns < due_ns:
                        chosen = function
                        due_ns = batcher.due_ns
                    continue
                until_ns = min(until_ns, batcher.due_ns)
            elif (expected_ns := self._expected_ns(function, at_ns)) != NEVER_NS:
                until_ns = min(until_ns, expected_ns)
            else:
                missing = 1  # the first call starts a clock that we have to see
                continue
            missing = min(missing, batcher.missing)
        for function in taking_turns:  # not before all have been looked at
            earlier = chosen is None or function.batcher.due_ns < due_ns
            if earlier and function.turns is not None and function.turns.admit(function):
                chosen = function
                due_ns = function.batcher.due_ns
        self._missing = missing
        launched = 0
        if chosen is not None:
            if chosen is retried:
                chosen.relaunch()
            else:
                launched = chosen.launch(at_ns)
        for function in self._attended:
            flights = function.flights
            # A device with room for another batch keeps the one it has while batches are being
            # launched: the turn that finds no more to launch, or no more room, completes it.
            just = launched and function is chosen
            while flights and flights[0].done and not (just and function.idle):
                if self._watch is not None and self._leaves(function):
                    break
                self._wake(function.complete() or ())
                completed = True
            if flights or not function.idle:
                in_flight = True
        if chosen is None and not completed:
            return until_ns
        return IDLE_NS if launched == total and not in_flight else NOW_NS

    def _turn_of(self, function: ServedFunction, at_ns: int) -> int:
        """As `turn`, where only this function is attended: nobody has to be chosen, or waited for.

        A lone call is answered in half the time.
        """
        inbox, batcher = function.inbox, function.batcher
        waiting = inbox.drain(at_ns)
        batcher.observe(waiting, inbox.oldest_ns, at_ns, self._draining, inbox.absent)
        if inbox.attention:
            self._wake(inbox.pop_attention() or ())
        if not waiting:
            return self._wait_for(function, at_ns, batcher.missing)
        if batcher.reason is None:
            self._missing = batcher.missing
            return batcher.due_ns
        launched, wakes = function.serve(at_ns)
        if wakes:
            self._wake(wakes)
        if launched != waiting or function.is_busy or self._draining:
            return NOW_NS
        if batcher.lockstep:
            return IDLE_NS  # the next turn sees who is absent now
        # Whoever has called meanwhile rang the bell: nobody is to be found by looking once more.
        return self._wait_for(function, self._clock(), batcher.max_batch_size)

    def _wait_for(self, function: ServedFunction, at_ns: int, missing: int) -> int:
        """Return what `turn` does where no call waits, and so many more make a batch due."""
        expected_ns = self._expected_ns(function, at_ns)
        self._missing = 1 if expected_ns == NEVER_NS else missing
        return expected_ns

    def _expected_ns(self, function: ServedFunction, at_ns: int) -> int:
        """Return when to look for calls of a function of which none waits.

        Soon after a batch the next ones come by themselves. Looking again within wait_ms finds
        the first of them in time, so it need not wake us. `NEVER_NS`: it has to.
        """
        wait_ns = function.batcher.wait_ns
        if not function.expects_calls or not wait_ns or self._draining:
            return NEVER_NS
        function.expects_calls = False
        return at_ns + wait_ns

    def _leaves(self, function: ServedFunction) -> bool:
        """Leave a function's oldest flight under way, if something else may come meanwhile.

        If not, completing it, which sleeps for the device, is the best there is to do. Asked only
        where there is somebody to watch: on the CPU every look costs.
        """
        assert self._watch is not None
        if not function.idle and len(self._attended) == 1:
            return False
        if not function.is_under_way():
            return False
        run = function.flights[0]
        if run.landing is not None and not run.watched:
            run.watched = True
            self._watch(run.landing)
        return True

    def _in_flight(self) -> bool:
        return any(function.flights for function in self._attended)

    def _wake(self, wakes: Sequence[Wake]) -> None:
        for ring, flags, threads, slots in wakes:
            connection = self._connections.get(ring)
            if connection is None:
                continue  # its producer is dead already
            if threads or slots:
                connection.segment.wake(ring, threads, slots)
            if flags & WAKE_ASYNC:
                try:
                    connection.sock.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except OSError:
                    pass  # full: its event loop has been woken already; closed: it is gone
            if flags & WAKE_VIOLATION and not connection.violated:
                # The core ignores its ring from now on; control forgets it, then it is detached.
                connection.violated = True
                self._disconnect(connection)

    def _tell(self, status: int) -> None:
        for ring in self._connections:
            ring.set_status(status)
