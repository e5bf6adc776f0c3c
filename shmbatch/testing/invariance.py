"""Whether an input's result depends on the batch that it runs in, and on what of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ..app.extras import needed
from ..contract.columns import Column
from .checking import outcome_of, quiet
from .comparing import CLOSE, Tolerance, call_shown, difference, shown, tolerance_of
from .composing import Composed, composed
from .drawing import Bounds, Strategy
from .searching import search
from .strategies import inputs_of
from .targets import Meant, Target, sole_meant

_MATES_MAX = 7
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

    hypothesis chooses an input, its batch-mates and its row. The result is compared with that of
    the input alone: with more padding, where there are ``batch_sizes``; among copies of itself,
    in every row; and among its batch-mates.

    Args:
        target: one batched function.
        strategy: for the arguments of a call, as tuples; by default `testing.inputs`.
        tolerance: how far floats may be apart; everything else has to be equal.
        max_examples: inputs that are tried.
        seed: of the examples; None for others each time.
        device: as of `Simulation`.

    Raises:
        AssertionError: a result differs; tells the simplest case found, and what it depends on.
        ConfigError: an argument is wrong, or hypothesis is not installed.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, and the message
    st = needed("testing", "hypothesis.strategies")
    close = tolerance_of(tolerance)
    with sole_meant(target) as meant, quiet():
        given = inputs_of(meant, {}, {}, Bounds()) if strategy is None else strategy
        most = meant.definition.parameters.max_batch_size
        mates = st.lists(given, max_size=min(most - 1, _MATES_MAX))
        copies = st.integers(1, min(most, _COPIES_MAX))
        row = st.integers(0, _MATES_MAX)
        check = _Check(meant, close, device)
        search(check, st.tuples(given, mates, row, copies), max_examples=max_examples, seed=seed)


class _Check:
    """Runs one input in several batches, and raises where its result differs."""

    def __init__(self, meant: Meant, tolerance: Tolerance, device: str) -> None:
        self._meant = meant
        self._tolerance = tolerance
        self._device = device
        self._name = meant.definition.name

    def __call__(self, example: tuple[_Values, list[_Values], int, int]) -> None:
        subject, mates, row, copies = example
        alone = self._alone(subject)
        if isinstance(alone, Exception):
            return  # what comes of bad inputs is not a matter of company
        self._check_padding(subject, alone)
        self._check_copies(subject, alone, copies)
        self._check_mates(subject, alone, mates, row % (len(mates) + 1))

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

    def _check_mates(self, subject: _Values, alone: Any, mates: list[_Values], row: int) -> None:
        if not mates:
            return
        run = self._run([*mates[:row], subject, *mates[row:]])
        found = outcome_of(run.calls[row])
        if not self._differs(found, alone):
            return
        if run.batch.raised and any(isinstance(self._alone(mate), Exception) for mate in mates):
            return  # one of them is bad, and a function that raises does so for all
        cause = "its batch-mates"
        columns = self._meant.definition.signature.parameters
        if any(_shape(mate) != _shape(subject) for mate in mates):
            cut = [_cut(columns, mate, subject) for mate in mates]
            again = self._run([*cut[:row], subject, *cut[row:]])
            if not self._differs(outcome_of(again.calls[row]), alone):
                cause = "padding: with batch-mates of its own lengths it gets what it gets alone"
        where = f"row {row} of {len(mates) + 1}"
        self._fail(cause, subject, alone, found, where, mates)

    def _differs(self, found: Any, alone: Any) -> bool:
        return difference(found, alone, self._tolerance) is not None

    def _alone(self, values: _Values) -> Any:
        return outcome_of(self._run([values]).calls[0])

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
        again = self._alone(subject)
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
