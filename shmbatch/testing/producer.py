"""Producers of a simulation, and the calls they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.exceptions import unpack_exception
from ..errors import (
    CallCancelled,
    CallTimeout,
    ConfigError,
    DeadlineExceeded,
    ExecutorClosed,
    RingFull,
)
from ..protocol._core import CANCELLED, DONE, FAILED, PENDING, SUBMIT_FULL
from .attachment import Attachment, slot_of
from .clock import START_NS
from .records import BatchRecord

if TYPE_CHECKING:
    from ..protocol._core import ExecutorRing
    from .simulation import Simulation


class Call:
    """One call that a simulated producer has made, as `FunctionCall` is a real one.

    Attributes:
        number: 1 for the first call of the simulation.
        values: its arguments, one a parameter.
        at: when it was made, virtual seconds.
        batch: the batch it ran in; None before that, and if it never ran.
    """

    def __init__(
        self, number: int, producer: Producer, values: tuple[Any, ...], at_ns: int, ticket: int
    ) -> None:
        self.number = number
        self.producer = producer
        self.values = values
        self.at = (at_ns - START_NS) / 1e9
        self.at_ns = at_ns
        self.batch: BatchRecord | None = None
        self.ticket = ticket
        self.cancelled = False
        self._outcome: Any = PENDING

    def done(self) -> bool:
        """Say whether the call has its outcome now."""
        self._look()
        return self._outcome is not PENDING

    def get(self) -> Any:
        """Return the result of the call, or raise its error.

        Raises:
            CallTimeout: it has none yet: advance the simulation.
            CallCancelled: it was cancelled.
            DeadlineExceeded: it was not launched in time.
            Exception: what the function raised for it.
        """
        outcome = self.outcome()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome

    def outcome(self) -> Any:
        """Return the result, or the error inside of a `_Raised`; raise if there is neither."""
        self._look()
        if self.cancelled:
            raise CallCancelled(f"{self!r} was cancelled")
        if self._outcome is PENDING:
            raise CallTimeout(
                f"{self!r} has no outcome at {self.producer.simulation.now:g} s; "
                "advance() the simulation, or drain() it"
            )
        return self._outcome

    def error(self) -> Exception | None:
        """Return the error that `get` would raise; None where it would return a result.

        Raises:
            CallTimeout, CallCancelled: as `get`.
        """
        outcome = self.outcome()
        return outcome.error if isinstance(outcome, _Raised) else None

    def cancel(self) -> bool:
        """Give the call up; say whether it is certain now never to run."""
        if self.done() or self.cancelled:
            return self.cancelled and self.batch is None
        self.cancelled = True
        withdrawn = self.producer.attachment.producer.withdraw(self.ticket)
        self.producer.forget(self)
        assert withdrawn != DONE, "it was looked at"
        return withdrawn == CANCELLED

    def _look(self) -> None:
        """Take the outcome out of its slot, if it is there."""
        if self._outcome is not PENDING or self.cancelled or self.producer.gone:
            return
        ring = self.producer.attachment.producer
        outcome = ring.poll(self.ticket, 0)
        if outcome is PENDING:
            return
        if outcome is FAILED:
            record = ring.error(self.ticket)
            if record is None:
                error: Exception = DeadlineExceeded(f"{self!r} was not launched by its deadline")
            else:
                error = unpack_exception(record)
            outcome = _Raised(error)
        self._outcome = outcome
        self.producer.forget(self)

    def __repr__(self) -> str:
        return f"call {self.number} of {self.producer.name}"


class _Raised:
    """An outcome that is an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Producer:
    """A simulated producer of one function; `Simulation.producer` makes it."""

    def __init__(
        self,
        simulation: Simulation,
        number: int,
        function_number: int,
        attachment: Attachment,
        deadline_ms: float | None,
    ) -> None:
        self.name = f"producer {number}"
        self.simulation = simulation
        self.function_number = function_number
        self.attachment = attachment
        self.gone = False
        self.waiting: list[Call] = []  # published and not launched
        self._outstanding: dict[int, Call] = {}  # without an outcome that was taken, by number
        self._slots: dict[int, Call] = {}  # who has been there last
        self._deadline_ms = deadline_ms

    def call(self, *args: Any, **kwargs: Any) -> Call:
        """Make a call now, with one input, as `Function.spawn` does.

        Raises:
            InputError: a value does not fit; nothing was sent.
            RingFull: every slot is in use; nobody waits for one here.
            ExecutorClosed: the simulation has been drained.
            ConfigError: the producer has left, or the simulation is closed.
        """
        self.simulation.check_open()
        if self.gone:
            raise ConfigError(f"{self.name} has left; make another producer")
        served = self.attachment.function
        values = served.definition.signature.bind(args, kwargs, served.address)
        coerced = self.attachment.arguments.coerce(values)
        clock = self.simulation.clock
        deadline_ns = 0
        if self._deadline_ms is not None:
            deadline_ns = clock.now_ns + round(self._deadline_ms * 1e6)
        ticket = self.attachment.submit(coerced, clock.now_ns, deadline_ns)
        if ticket == SUBMIT_FULL:
            self.collect()
            ticket = self.attachment.submit(coerced, clock.now_ns, deadline_ns)
        if ticket == SUBMIT_FULL:
            raise RingFull(
                f"{self.name} has all {served.capacity} slots of '{served.address}' in use; "
                "advance() the simulation, or raise slots= in @batched"
            )
        if ticket < 0:
            raise ExecutorClosed(f"the simulation of '{served.address}' has been drained")
        number = len(self.simulation.calls) + 1
        call = Call(number, self, values, clock.now_ns, ticket)
        self.simulation.calls.append(call)
        self.waiting.append(call)
        self._outstanding[number] = call
        self._slots[slot_of(ticket)] = call
        return call

    def leave(self) -> None:
        """Die: calls that wait never run, those that run do so for nobody.

        The executor hears of it when the simulation goes on.
        """
        if not self.gone:
            self.gone = True
            self.simulation.detach(self.attachment)

    def collect(self) -> None:
        """Take the outcomes that are there out of their slots."""
        for call in list(self._outstanding.values()):
            call.done()

    def forget(self, call: Call) -> None:
        """Let go of a call that is over, or was given up."""
        self._outstanding.pop(call.number, None)
        if call in self.waiting:
            self.waiting.remove(call)

    def launched(self, slot: int) -> Call:
        """Return the call whose slot has been taken; it waits no more."""
        call = self._slots[slot]
        self.waiting.remove(call)
        return call

    def relaunched(self, slot: int) -> Call:
        """Return the call whose slot it is, and which runs again."""
        return self._slots[slot]

    def __repr__(self) -> str:
        return f"<{self.name} of '{self.attachment.function.address}'>"


def rows_of(
    runs: list[tuple[ExecutorRing, int, int]],
    producers: dict[ExecutorRing, Producer],
    *,
    again: bool,
) -> list[Call]:
    """Return the calls of a batch in the order of their rows; they wait no more.

    Args:
        again: they have run before.
    """
    return [
        producers[ring].relaunched(slot) if again else producers[ring].launched(slot)
        for ring, first, count in runs
        for slot in range(first, first + count)
    ]
