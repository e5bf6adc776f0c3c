"""How a person's batched function is held against I1 to I7, for any history of calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..app.extras import needed
from ..errors import BatchResultError, RingFull
from .alone import Alone, outcome_of
from .comparing import CLOSE, Tolerance, call_shown, difference, shown, tolerance_of
from .drawing import Strategy
from .invariants import Contract, broken
from .producer import Call
from .records import milliseconds
from .searching import search
from .simulation import Simulation
from .strategies import given_inputs
from .targets import Meant, Target, sole_meant

_MOVES_MAX = 12
_PRODUCERS_MAX = 3
_CROWD_MAX = 32  # calls made at once


def check_batching(
    target: Target,
    *,
    inputs: Strategy | None = None,
    tolerance: Tolerance | float = CLOSE,
    max_examples: int = 100,
    seed: int | None = 0,
    device: str = "cpu",
) -> None:
    """Check I1 to I7 on a function, for any history of calls, in virtual time.

    hypothesis chooses who calls when and with what, who cancels, who dies, and how long batches
    take. Each outcome is compared with that of the same input in a batch of its own, so the
    function must be deterministic, and keep nothing between batches.

    Args:
        target: one batched function.
        inputs: strategy for the arguments of a call, as tuples; by default `testing.inputs`.
        tolerance: how far floats may be from those of the batch of one.
        max_examples: histories that are tried.
        seed: of the histories; None for others each time.
        device: as of `Simulation`.

    Raises:
        AssertionError: a promise is broken; names it, and tells the shortest history found. Or
            no input has a result by itself.
        ConfigError: an argument is wrong, or hypothesis is not installed.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and the message
    st = needed("testing", "hypothesis.strategies")
    close = tolerance_of(tolerance)
    with sole_meant(target) as meant, quiet():
        given = given_inputs(meant, inputs)
        alone = Alone(meant, device)
        check = _Check(meant, close, device, alone)
        spins_ns = st.sampled_from([0, meant.definition.parameters.wait_ns // 2])
        histories = st.tuples(_moves(st, given, meant), _durations(st, meant), spins_ns)
        search(check, histories, max_examples=max_examples, seed=seed)
        alone.check_results()


@contextmanager
def quiet() -> Iterator[None]:
    """Have the executor log nothing: what goes wrong is in the check's own message."""
    log = logging.getLogger("shmbatch.executor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _moves(st: Any, given: Strategy, meant: Meant) -> Strategy:
    """Return a strategy for what happens, one thing after the other, and when."""
    wait_ns = meant.definition.parameters.wait_ns
    gap = st.sampled_from(sorted({0, wait_ns // 2, wait_ns, 3 * wait_ns}))
    who = st.integers(0, _PRODUCERS_MAX - 1)
    # Once or twice, and now and then enough for a batch to be full.
    most = min(meant.definition.parameters.max_batch_size, _CROWD_MAX)
    times = st.sampled_from([1, 1, 1, 2, most])
    call = st.tuples(gap, st.just("call"), who, st.tuples(given, times))
    other = st.tuples(gap, st.sampled_from(["cancel", "leave"]), who, st.integers(0, 7))
    strategy: Strategy = st.lists(st.one_of(call, call, call, other), max_size=_MOVES_MAX)
    return strategy


def _durations(st: Any, meant: Meant) -> Strategy:
    """Return a strategy for how long batches take, in turn."""
    wait_ns = max(meant.definition.parameters.wait_ns, 1_000_000)
    strategy: Strategy = st.lists(
        st.sampled_from([0, wait_ns // 2, 2 * wait_ns]), min_size=1, max_size=3
    )
    return strategy


class _Check:
    """Plays a history, and raises what it breaks."""

    def __init__(self, meant: Meant, tolerance: Tolerance, device: str, alone: Alone) -> None:
        self._meant = meant
        self._tolerance = tolerance
        self._device = device
        self._alone = alone

    def __call__(self, history: Any) -> None:
        moves, durations_ns, spin_ns = history
        contract = Contract()
        with Simulation.of(self._meant, watcher=contract, device=self._device) as simulation:
            contract.simulation = simulation
            simulation.poller.spin_ns = spin_ns
            simulation.duration = lambda record: (
                durations_ns[(len(simulation.batches) - 1) % len(durations_ns)] / 1e9
            )
            told = [self._play(simulation, moves)]
            try:
                simulation.run()
                simulation.drain()
                contract.check_end()
                self._check_outcomes(simulation)
            except AssertionError as error:
                raise AssertionError(f"{error}\n\n{self._trace(simulation, told[0])}") from None

    def _play(self, simulation: Simulation, moves: list[Any]) -> list[tuple[float, str]]:
        """Schedule what happens; return what a trace says of it, as it happens."""
        producers = [simulation.producer() for _ in range(_PRODUCERS_MAX)]
        told: list[tuple[float, str]] = []
        at_ns = 0

        def happen(kind: str, who: int, what: Any) -> None:
            producer = producers[who]
            if producer.gone:
                return
            if kind == "leave":
                told.append((simulation.now, f"{producer.name} dies"))
                producer.leave()
            elif kind == "call":
                values, times = what
                for _ in range(times):
                    try:
                        call = producer.call(*values)
                    except RingFull:
                        return
                    text = call_shown(self._meant.definition.name, call.values)
                    text = f"{producer.name} makes call {call.number}: {text}"
                    told.append((simulation.now, text))
            else:
                mine = [call for call in simulation.calls if call.producer is producer]
                mine = [call for call in mine if not call.cancelled and not call.done()]
                if mine:
                    call = mine[what % len(mine)]
                    told.append((simulation.now, f"{producer.name} cancels call {call.number}"))
                    call.cancel()

        for gap_ns, kind, who, what in moves:
            at_ns += gap_ns
            simulation.at(at_ns / 1e9, _bound(happen, kind, who, what))
        return told

    def _check_outcomes(self, simulation: Simulation) -> None:
        """Hold outcomes against those of batches of one: I2, I3 and I7."""
        for number, batch in enumerate(simulation.batches, 1):
            calls = [simulation.calls[each - 1] for each in batch.calls]
            # Those that ran again have the outcome of another batch.
            kept = [call for call in calls if call.batch is batch]
            kept = [call for call in kept if not call.cancelled and not call.producer.gone]
            for call in kept:
                error = call.error()
                if isinstance(error, BatchResultError):
                    broken("I2", f"batch {number} of {len(calls)} calls: {error}")
            alone = {call.number: self._alone.outcome(call.values) for call in calls}
            for call in kept:
                self._check_outcome(simulation, call, calls, alone, number)

    def _check_outcome(
        self,
        simulation: Simulation,
        call: Call,
        calls: list[Call],
        alone: dict[int, Any],
        number: int,
    ) -> None:
        found, expected = outcome_of(call), alone[call.number]
        fact = difference(found, expected, self._tolerance)
        if fact is None:
            return
        said = (
            f"call {call.number} in batch {number} got {shown(found)}, and its input in a batch "
            f"of its own gets {shown(expected)}"
        )
        mates = [each for each in calls if each is not call]
        if isinstance(found, Exception):
            bad = [each for each in mates if isinstance(alone[each.number], Exception)]
            if not bad:
                broken("I7", f"{said}, though nothing is wrong with its batch-mates")
            if simulation.batches[number - 1].raised:
                return  # which is every call's outcome, and has a reason
            broken("I7", f"{said}; call {bad[0].number} is the one that fails by itself")
        for mate in mates:
            if difference(found, alone[mate.number], self._tolerance) is None:
                broken("I3", f"{said}; it is what call {mate.number} gets")
        again = self._alone.outcome(call.values)
        if difference(again, expected, self._tolerance) is not None:
            broken(
                "I3",
                f"{said}, and then {shown(again)}: the function keeps something between batches, "
                "or is random",
            )
        broken("I3", f"{said} ({fact})")

    def _trace(self, simulation: Simulation, told: list[tuple[float, str]]) -> str:
        """Tell the history, a line for each thing that happened."""
        lines = [(at, 0, f"{text}") for at, text in told]
        for number, batch in enumerate(simulation.batches, 1):
            calls = ", ".join(map(str, batch.calls))
            noun = "call" if len(batch.calls) == 1 else "calls"
            why = "what failed, in parts" if batch.retried else batch.reason.value
            text = f"batch {number} launches ({why}): {noun} {calls}"
            if batch.size > len(batch.calls):
                text += f", padded to {batch.size}"
            lines.append((batch.start, 1, text))
            if batch.end is not None and batch.end > batch.start:
                lines.append((batch.end, 2, f"batch {number} ends"))
        lines.sort(key=lambda line: line[:2])
        width = max((len(milliseconds(at)) for at, _, _ in lines), default=0)
        return "\n".join(f"  {milliseconds(at):>{width}}  {text}" for at, _, text in lines)


def _bound(action: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: action(*arguments)
