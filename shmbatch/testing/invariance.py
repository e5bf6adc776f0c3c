"""Whether an input's result depends on the batch that it runs in, and on what of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ..app.extras import needed
from ..contract.columns import Column
from .alone import Alone, outcome_of
from .checking import quiet
from .comparing import CLOSE, Tolerance, call_shown, difference, shown, tolerance_of
from .composing import Composed, composed
from .drawing import Strategy
from .searching import search
from .strategies import given_inputs
from .targets import Meant, Target, sole_meant

_COMPANY_MAX = 8
_COPIES_MAX = 32

_Values = tuple[Any, ...]


def check_batch_invariance(
    target: Target,
    strategy: Strategy | None = None,
    *,
    tolerance: Tolerance | float = CLOSE,
    max_examples: int = 100,
    seed: int | None = 0,
    device: str = "cpu",
) -> None:
    """Check that an input's result is the same in whatever batch it runs.

    hypothesis chooses the inputs of a batch. The result of each is compared with that of the
    input alone; and that of the first also with more padding, where there are ``batch_sizes``,
    and among copies of itself, in every row. Errors are taken for the same as other errors, and
    one bad input may fail its whole batch.

    Args:
        target: one batched function.
        strategy: for the arguments of a call, as tuples; by default `testing.inputs`.
        tolerance: how far floats may be apart; everything else has to be equal.
        max_examples: inputs that are tried.
        seed: of the examples; None for others each time.
        device: as of `Simulation`.

    Raises:
        AssertionError: a result differs, or is one where the input alone fails; tells the
            simplest case found, and what it depends on. Or no input has a result by itself.
        ConfigError: an argument is wrong, or hypothesis is not installed.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and the message
    st = needed("testing", "hypothesis.strategies")
    close = tolerance_of(tolerance)
    with sole_meant(target) as meant, quiet():
        given = given_inputs(meant, strategy)
        most = meant.definition.parameters.max_batch_size
        batches = st.lists(given, min_size=1, max_size=min(most, _COMPANY_MAX))
        copies = st.integers(1, min(most, _COPIES_MAX))
        alone = Alone(meant, device)
        check = _Check(meant, close, device, alone)
        search(check, st.tuples(batches, copies), max_examples=max_examples, seed=seed)
        alone.check_results()


class _Check:
    """Runs inputs in several batches, and raises where a result differs."""

    def __init__(self, meant: Meant, tolerance: Tolerance, device: str, alone: Alone) -> None:
        self._meant = meant
        self._tolerance = tolerance
        self._device = device
        self._alone = alone
        self._name = meant.definition.name

    def __call__(self, example: tuple[list[_Values], int]) -> None:
        inputs, copies = example
        alone = [self._alone.outcome(values) for values in inputs]
        self._check_padding(inputs[0], alone[0])
        self._check_copies(inputs[0], alone[0], copies)
        self._check_company(inputs, alone)

    def _check_padding(self, subject: _Values, alone: Any) -> None:
        for size in (self._meant.definition.batch_sizes or ())[1:]:
            padded = self._run([subject], size=size)
            found = outcome_of(padded.calls[0])
            if self._differs(found, alone):
                where = f"row 0, padded to {size} rows by repeating it"
                self._fail("padding", subject, alone, found, where)

    def _check_copies(self, subject: _Values, alone: Any, copies: int) -> None:
        outcomes = [outcome_of(call) for call in self._run([subject] * copies).calls]
        apart = [row for row, found in enumerate(outcomes) if self._differs(found, alone)]
        if apart:
            cause = "the size of its batch" if len(apart) == copies else "its position"
            where = f"row {apart[0]} of {copies}, among copies of itself"
            self._fail(cause, subject, alone, outcomes[apart[0]], where)

    def _check_company(self, inputs: list[_Values], alone: list[Any]) -> None:
        if len(inputs) == 1:
            return
        run = self._run(inputs)
        if run.batch.raised and any(isinstance(outcome, Exception) for outcome in alone):
            return  # one of them is bad, and a function that raises does so for all
        for row, call in enumerate(run.calls):
            if self._differs(outcome_of(call), alone[row]):
                self._fail_in_company(inputs, row, alone[row], outcome_of(call))

    def _fail_in_company(
        self, inputs: list[_Values], row: int, alone: Any, found: Any
    ) -> NoReturn:
        subject, mates = inputs[row], [*inputs[:row], *inputs[row + 1 :]]
        self._check_copies(subject, alone, len(inputs))  # perhaps it is not who they are
        cause = "its batch-mates"
        columns = self._meant.definition.signature.parameters
        if any(_shape(mate) != _shape(subject) for mate in mates):
            cut = [_cut(columns, mate, subject) for mate in mates]
            again = self._run([*cut[:row], subject, *cut[row:]])
            if not self._differs(outcome_of(again.calls[row]), alone):
                cause = "padding: with batch-mates of its own lengths it gets what it gets alone"
        where = f"row {row} of {len(inputs)}"
        self._fail(cause, subject, alone, found, where, mates)

    def _differs(self, found: Any, alone: Any) -> bool:
        if isinstance(found, Exception) and isinstance(alone, Exception):
            return False  # it fails either way; the error may speak of the batch
        return difference(found, alone, self._tolerance) is not None

    def _run(self, calls: Sequence[_Values], size: int | None = None) -> Composed:
        return composed(self._meant, calls, size=size, device=self._device)

    def _fail(
        self,
        cause: str,
        subject: _Values,
        alone: Any,
        found: Any,
        where: str,
        mates: Sequence[_Values] = (),
    ) -> NoReturn:
        again = self._alone.outcome(subject)
        if self._differs(again, alone):
            cause = "chance, or on what ran before: alone once more it gets " + shown(again)
        fact = difference(found, alone, self._tolerance)
        rtol, atol = self._tolerance
        lines = [
            f"the result of an input of '{self._meant.address}' depends on {cause}",
            "",
            f"  input        {call_shown(self._name, subject)}",
            f"  alone        {shown(alone)}",
            f"  in company   {shown(found)} ({where})",
            f"  difference   {fact} (tolerance rtol={rtol:g}, atol={atol:g})",
        ]
        for number, mate in enumerate(mates):
            label = "" if number else "batch-mates"
            lines.append(f"  {label:11}  {call_shown(self._name, mate)}")
        raise AssertionError("\n".join(lines))


def _shape(values: _Values) -> list[Any]:
    return [tuple(getattr(value, "shape", ())) for value in values]


def _cut(columns: Sequence[Column], mate: _Values, subject: _Values) -> _Values:
    """Return a batch-mate with the lengths of *subject*, and its own values as far as they go."""
    return tuple(
        _resized(theirs, ours) if column.kind == "ragged" else theirs
        for column, theirs, ours in zip(columns, mate, subject, strict=True)
    )


def _resized(value: Any, like: Any) -> Any:
    made = like.clone() if hasattr(like, "clone") else like.copy()
    common = tuple(
        slice(min(ours, theirs)) for ours, theirs in zip(like.shape, value.shape, strict=True)
    )
    made[common] = value[common]
    return made
