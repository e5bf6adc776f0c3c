"""Every row of the table in delivery.py: who gets what from what a function gave back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.contract.columns import Column
from shmbatch.contract.exceptions import unpack_exception
from shmbatch.contract.packing import Arguments, packing
from shmbatch.contract.signature import Signature
from shmbatch.errors import BatchResultError, InputTypeError, ResultError
from shmbatch.executor.delivery import Delivery
from shmbatch.protocol._core import FAILED
from tests.rings import Served, Wire, array, scalar, signature

INT, FLOAT, BOOL = scalar("int"), scalar("float"), scalar("bool")
VECTOR = array("float32", 2)
TENSOR = array("float32", 2, library="torch")
BRAIN = array("bfloat16", 2, library="torch")


class Scene:
    """A batch of some calls whose function is about to return or raise."""

    def __init__(self, result: Column, calls: int) -> None:
        self.wire = Wire(signature("int", result=result), capacity=max(calls, 1))
        self.served = Served(self.wire, room=max(calls, 1))
        self.delivery = Delivery("sums.f", result, self.wire.where.error_nbytes)
        self.tickets = [self.wire.submit(i) for i in range(calls)]
        assert self.served.take() == calls

    def outcomes(self, deliver: Callable[[Delivery], int]) -> list[Any]:
        """Deliver, and return what each caller gets; errors as objects."""
        failed = deliver(self.delivery)
        self.served.batch.complete()
        got: list[Any] = []
        for ticket in self.tickets:
            outcome = self.wire.producer.poll(ticket, 0)
            if outcome is FAILED:
                outcome = unpack_exception(self.wire.producer.error(ticket))
            got.append(outcome)
        assert failed == sum(isinstance(each, Exception) for each in got)
        assert self.wire.producer.free_slots == len(self.tickets)
        return got


def returned(result: Column, calls: int, value: Any) -> list[Any]:
    scene = Scene(result, calls)
    return scene.outcomes(lambda delivery: delivery.returned(scene.served.batch, value))


def all_alike(outcomes: list[Any], error: type[Exception]) -> str:
    """The message that every caller got, each in an exception of its own."""
    assert {type(each) for each in outcomes} == {error}
    assert len({id(each) for each in outcomes}) == len(outcomes)
    (message,) = {str(each) for each in outcomes}
    return message


# ---- the function raised ----


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(2), KeyboardInterrupt()])
def test_what_the_function_raised_is_everybodys(error: BaseException) -> None:
    scene = Scene(INT, 3)

    outcomes = scene.outcomes(lambda delivery: delivery.raised(scene.served.batch, error))

    assert len({id(each) for each in outcomes}) == 3
    if isinstance(error, ValueError):
        assert all_alike(outcomes, ValueError) == "bad"
    else:
        assert type(error).__name__ in str(outcomes[0])


# ---- neither list nor stack, or of the wrong length ----


@pytest.mark.parametrize(
    ("result", "value", "got"),
    [
        (INT, None, "NoneType"),
        (INT, (1, 2, 3), "tuple"),
        (INT, {1: 2}, "dict"),
        (INT, "123", "str"),
        (INT, iter([1, 2, 3]), "list_iterator"),
        (INT, 7, "int"),
        (INT, np.arange(3), "ndarray of length 3"),
        (INT, torch.arange(3), "Tensor of length 3"),
        (INT, [], "list of length 0"),
        (INT, [1, 2], "list of length 2"),
        (INT, [1, 2, 3, 4], "list of length 4"),
        (VECTOR, [np.zeros(2, "float32")] * 2, "list of length 2"),
        (VECTOR, np.zeros((2, 2), "float32"), "ndarray of length 2"),
        (VECTOR, np.zeros((4, 2), "float32"), "ndarray of length 4"),
        (VECTOR, np.float32(1), "float32"),
        (VECTOR, np.zeros((), "float32"), "ndarray"),
        (VECTOR, (np.zeros(2, "float32"),) * 3, "tuple"),
        (TENSOR, torch.zeros(()), "Tensor"),
        (TENSOR, torch.zeros(2, 2), "Tensor of length 2"),
        (TENSOR, None, "NoneType"),
    ],
)
def test_what_is_no_list_or_stack_of_the_right_length_is_a_batch_result_error(
    result: Column, value: Any, got: str
) -> None:
    message = all_alike(returned(result, 3, value), BatchResultError)

    wanted = "list or stack" if result.kind == "array" else "list"
    assert message == (
        f"'sums.f' returned a {got} for 3 inputs; "
        f"it must return a {wanted} of length 3, one {result.kind} each"
    )


def test_a_coroutine_that_a_function_returned_is_closed_unawaited() -> None:
    """A sync function that calls an async one; no warning may say that it was never awaited."""

    async def forgotten() -> list[int]:
        return [1, 2, 3]

    assert "coroutine" in all_alike(returned(INT, 3, forgotten()), BatchResultError)


# ---- items of a list ----


def test_an_exception_in_the_list_is_its_callers_alone() -> None:
    outcomes = returned(INT, 4, [1, ValueError("two"), 3, ResultError("four")])

    assert outcomes[0] == 1
    assert repr(outcomes[1]) == "ValueError('two')"
    assert outcomes[2] == 3
    assert repr(outcomes[3]) == "ResultError('four')"


@pytest.mark.parametrize(
    "error",
    [InputTypeError("of a nested call"), ExceptionGroup("many", [ValueError(1)]), StopIteration()],
)
def test_an_exception_in_the_list_stays_what_it_is(error: Exception) -> None:
    outcomes = returned(INT, 2, [error, 2])

    assert isinstance(outcomes[0], Exception)
    assert type(error).__name__ in repr(outcomes[0])
    assert outcomes[1] == 2


def test_one_exception_object_for_several_callers_becomes_one_each() -> None:
    error = ValueError("same")

    outcomes = returned(INT, 3, [error, 2, error])

    assert outcomes[1] == 2
    assert outcomes[0] is not outcomes[2]
    assert str(outcomes[0]) == str(outcomes[2]) == "same"


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (INT, True),
        (INT, 1.0),
        (INT, "1"),
        (INT, None),
        (INT, 2**63),
        (INT, -(2**63) - 1),
        (INT, KeyboardInterrupt()),  # an object like any other; only Exceptions are errors
        (FLOAT, "1"),
        (FLOAT, True),
        (FLOAT, 10**400),
        (FLOAT, 1j),
        (BOOL, 1),
        (BOOL, None),
        (VECTOR, None),
        (VECTOR, [1.0, 2.0]),
        (VECTOR, np.zeros(3, "float32")),
        (VECTOR, np.zeros(2, "float64")),
        (VECTOR, np.zeros(2, ">f4")),
        (VECTOR, torch.zeros(2, dtype=torch.float64)),
        (TENSOR, torch.zeros(2, device="meta")),
        (TENSOR, torch.zeros(2).to_sparse()),
        (BRAIN, torch.zeros(2)),
        (BRAIN, np.zeros(2, "uint16")),
    ],
)
def test_an_item_that_does_not_fit_is_its_callers_result_error(result: Column, value: Any) -> None:
    fine: Any = {"int": 1, "float": 1.0, "bool": True}.get(result.kind)
    if fine is None:
        fine = torch.ones(2, dtype=getattr(torch, result.dtype))

    outcomes = returned(result, 3, [fine, value, fine])

    assert type(outcomes[1]) is ResultError
    assert str(outcomes[1]).startswith("result 1 of sums.f must ")
    assert not isinstance(outcomes[0], Exception)
    assert not isinstance(outcomes[2], Exception)


class Malicious(float):
    """A user's class that raises when it is looked at."""

    def __float__(self) -> float:
        raise LookupError("not today")


def test_an_item_that_raises_when_looked_at_is_its_callers_error() -> None:
    outcomes = returned(FLOAT, 3, [1.0, Malicious(2.0), 3.0])

    assert outcomes[::2] == [1.0, 3.0]
    assert repr(outcomes[1]) == "LookupError('not today')"


# ---- what was declared ----


@pytest.mark.parametrize(
    ("result", "values"),
    [
        (INT, [0, 2**63 - 1, -(2**63)]),
        (INT, [np.int64(1), np.uint8(2), 3]),
        (FLOAT, [0.5, -0.0, 1]),
        (FLOAT, [math.inf, -math.inf, np.float32(0.5)]),
        (BOOL, [True, np.False_, False]),
    ],
)
def test_scalars_reach_their_callers(result: Column, values: list[Any]) -> None:
    outcomes = returned(result, 3, values)

    assert outcomes == values
    kinds: dict[str, type] = {"int": int, "float": float, "bool": bool}
    assert {type(each) for each in outcomes} == {kinds[result.kind]}


def test_nan_is_a_float() -> None:
    assert math.isnan(returned(FLOAT, 1, [math.nan])[0])


ROWS = np.array([[1, 2], [3, 4], [5, 6]], "float32")
TENSORS = torch.from_numpy(ROWS.copy())


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        np.asfortranarray(ROWS),
        np.repeat(ROWS, 2, axis=0)[::2],
        ROWS[::-1][::-1],
        ROWS.view(np.matrix).view(type("Sub", (np.ndarray,), {})),
        list(ROWS),
        [row[::-1][::-1] for row in ROWS],
        TENSORS,
        TENSORS.clone().requires_grad_(),
        TENSORS.clone().requires_grad_() * 1,
        TENSORS.t().contiguous().t(),
        torch.nn.Parameter(TENSORS.clone()),
        list(TENSORS),
        [*ROWS[:2], TENSORS[2]],
    ],
    ids=[
        *("stack", "Fortran stack", "strided stack", "reversed stack", "subclass"),
        *("list", "list of strided rows", "tensor", "leaf that requires a gradient"),
        *("gradient", "strided tensor", "parameter", "list of tensors", "mixed list"),
    ],
)
@pytest.mark.parametrize("result", [VECTOR, TENSOR], ids=["numpy", "torch"])
def test_lists_and_stacks_reach_their_callers(result: Column, value: Any) -> None:
    outcomes = returned(result, 3, value)

    for outcome, row in zip(outcomes, ROWS, strict=True):
        np.testing.assert_array_equal(outcome, row)


@pytest.mark.parametrize("as_list", [False, True])
def test_what_numpy_lacks_reaches_its_callers_as_raw_bytes(as_list: bool) -> None:
    tensors = torch.tensor([[1.5, -2.0], [math.inf, math.nan]], dtype=torch.bfloat16)

    outcomes = returned(BRAIN, 2, list(tensors) if as_list else tensors)

    for outcome, row in zip(outcomes, tensors, strict=True):
        assert outcome.tobytes() == row.view(torch.uint16).numpy().tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3)])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("as_list", [False, True])
def test_scalars_of_arrays_and_zero_size_rows_reach_their_callers(
    shape: tuple[int, ...], library: Any, as_list: bool
) -> None:
    stack: Any = np.ones((2, *shape))
    if library == "torch":
        stack = torch.from_numpy(stack)

    outcomes = returned(
        array("float64", *shape, library=library), 2, list(stack) if as_list else stack
    )

    for outcome in outcomes:
        np.testing.assert_array_equal(outcome, np.ones(shape))


@pytest.mark.parametrize("stack", [torch.zeros(2, 0, dtype=torch.bfloat16)])
def test_zero_size_raw_rows_reach_their_callers(stack: Any) -> None:
    outcomes = returned(array("bfloat16", 0, library="torch"), 2, stack)

    assert [outcome.shape for outcome in outcomes] == [(0,), (0,)]


def test_values_of_every_bit_pattern_survive() -> None:
    values = np.array([[math.nan, math.inf], [-0.0, 5e-324]])

    outcomes = returned(array("float64", 2), 2, values)

    assert [outcome.tobytes() for outcome in outcomes] == [row.tobytes() for row in values]


@pytest.mark.parametrize(
    ("result", "stack", "fact"),
    [
        (VECTOR, np.zeros((3, 2)), "must have dtype float32, got float64"),
        (VECTOR, np.zeros((3, 2), "int32"), "must have dtype float32, got int32"),
        (VECTOR, np.zeros((3, 2), ">f4"), "must have native byte order"),
        (VECTOR, np.zeros((3, 3), "float32"), "must have shape (3, 2), got (3, 3)"),
        (VECTOR, np.zeros(3, "float32"), "must have shape (3, 2), got (3,)"),
        (VECTOR, np.zeros((3, 2, 1), "float32"), "must have shape (3, 2), got (3, 2, 1)"),
        (VECTOR, np.ma.zeros((3, 2), "float32"), "must be an array without a mask"),
        (TENSOR, torch.zeros(3, 2).double(), "must have dtype float32, got float64"),
        (TENSOR, torch.zeros(3, 3), "must have shape (3, 2), got (3, 3)"),
        (TENSOR, torch.zeros(3, 2, device="meta"), "must hold data"),
        (TENSOR, torch.zeros(3, 2).to_sparse(), "must be dense"),
        (BRAIN, torch.zeros(3, 2), "must have dtype bfloat16, got float32"),
        (BRAIN, np.zeros((3, 2), "uint16"), "must have dtype bfloat16, which numpy lacks"),
    ],
)
def test_a_stack_of_the_wrong_dtype_or_row_shape_is_everybodys_result_error(
    result: Column, stack: Any, fact: str
) -> None:
    message = all_alike(returned(result, 3, stack), ResultError)

    assert message.startswith(f"result stack of sums.f {fact}")


def test_the_same_delivery_serves_batches_of_every_size_and_outcome() -> None:
    wire = Wire(signature("int", result=VECTOR), capacity=4)
    served = Served(wire)
    delivery = Delivery("sums.f", VECTOR, wire.where.error_nbytes)

    for calls in (1, 4, 2, 3, 1, 4):
        for good in (True, False):
            tickets = [wire.submit(i) for i in range(calls)]
            served.take()
            stack = np.asfortranarray(ROWS.repeat(2, axis=0)[:calls])
            failed = delivery.returned(served.batch, stack if good else None)
            served.batch.complete()
            assert failed == (0 if good else calls)
            for ticket, row in zip(tickets, stack, strict=True):
                outcome = wire.producer.poll(ticket, 0)
                if good:
                    np.testing.assert_array_equal(outcome, row)
                else:
                    wire.producer.error(ticket)


odd_items = st.one_of(
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.builds(ValueError, st.text(max_size=3)),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 255).map(np.uint8),
)


@given(values=st.lists(odd_items, min_size=1, max_size=6))
def test_every_caller_gets_what_its_own_item_says(values: list[Any]) -> None:
    """One bad item changes nothing for the others, wherever it stands (I3, I7)."""
    outcomes = returned(INT, len(values), values)

    for value, outcome in zip(values, outcomes, strict=True):
        is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if is_int and -(2**63) <= value < 2**63:
            assert outcome == value
            assert type(outcome) is int
        elif isinstance(value, ValueError):
            assert type(outcome) is ValueError
        else:
            assert type(outcome) is ResultError


# values without one size


TEXT = Column("result", "str", "", "", (), max_bytes=5)
RAGGED = Column("result", "ragged", "numpy", "float32", (-3, 2), ("seq", ""))
PADDED = Column("result", "ragged", "torch", "float32", (-3, 2), ("seq", ""), True)
GRID = Column("result", "ragged", "numpy", "float32", (-3, -3), ("n", "m"), True)
PICKLE = Column("result", "pickle", "", "", (), max_bytes=1000)


def test_a_text_that_does_not_fit_is_its_callers_alone() -> None:
    good, long, wrong = returned(TEXT, 3, ["ab", "abcdef", 3])

    assert good == "ab"
    assert type(long) is type(wrong) is ResultError
    assert str(long).startswith("result 1 of sums.f must take at most 5 bytes, got 6 in UTF-8")
    assert str(wrong).startswith("result 2 of sums.f must be a str, got int 3")


def test_rows_of_variable_length_come_in_a_list_or_a_stack() -> None:
    rows = [np.ones((n, 2), np.float32) for n in (3, 0, 1)]

    assert [row.tolist() for row in returned(RAGGED, 3, rows)] == [row.tolist() for row in rows]
    stack = np.ones((2, 3, 2), np.float32)
    for each in (stack, torch.from_numpy(stack)):
        assert [row.tolist() for row in returned(RAGGED, 2, each)] == stack.tolist()
    assert type(returned(RAGGED, 1, np.ones((1, 4, 2), np.float32))[0]) is ResultError


@pytest.mark.parametrize("of", [list, np.array, torch.tensor])
def test_a_padded_stack_is_cut_to_its_lengths(of: Callable[[list[int]], Any]) -> None:
    rows = torch.arange(18, dtype=torch.float32).reshape(3, 3, 2)

    got = returned(PADDED, 3, (rows, of([2, 0, 3])))

    assert [row.tolist() for row in got] == [rows[0, :2].tolist(), [], rows[2].tolist()]


def test_several_axes_have_as_many_lengths_a_row() -> None:
    rows = np.ones((2, 3, 2), np.float32)

    got = returned(GRID, 2, (rows, np.array([[1, 2], [3, 0]])))

    assert [row.shape for row in got] == [(1, 2), (3, 0)]


def test_a_length_beyond_its_row_is_its_callers_alone() -> None:
    rows = np.ones((3, 2, 2), np.float32)

    good, long, negative = returned(PADDED, 3, (rows, [2, 3, -1]))

    assert good.tolist() == [[1, 1]] * 2
    assert type(long) is type(negative) is ResultError
    assert str(long) == (
        "result 1 of sums.f has lengths [3], but its row has [2]; "
        "lengths say how much of a row is there"
    )


@pytest.mark.parametrize(
    ("pair", "fact"),
    [
        (
            (np.ones((2, 3, 2), np.float32), [1, 2, 3]),
            "lengths of shape (3,) and dtype int64",
        ),
        ((np.ones((2, 3, 2), np.float32), [1.0, 2.0]), "lengths must be integers of shape (2,)"),
        ((np.ones((3, 3, 2), np.float32), [1, 2, 3]), "returned a ndarray of length 3 for 2 inp"),
        (
            ([1, 2], [1, 2]),
            "returned a list of length 2 for 2 inputs; it must return a list,",
        ),
    ],
)
def test_a_pair_that_is_no_padded_stack_fails_all(pair: Any, fact: str) -> None:
    assert fact in all_alike(returned(PADDED, 2, pair), BatchResultError)


def test_a_pair_is_no_result_where_nothing_is_padded() -> None:
    pair = (np.ones((2, 3, 2), np.float32), [1, 2])

    assert "returned a tuple for 2 inputs" in all_alike(
        returned(RAGGED, 2, pair), BatchResultError
    )


def test_results_are_pickled_one_by_one() -> None:
    scene = Scene(PICKLE, 3)
    packed = packing(PICKLE, "result")
    assert packed is not None

    outcomes = scene.outcomes(
        lambda delivery: delivery.returned(scene.served.batch, [{"a": 1}, lambda: 3, (b"x",)])
    )

    assert packed.unpack(outcomes[0], "result") == {"a": 1}
    assert type(outcomes[1]) is ResultError
    assert str(outcomes[1]).startswith("result 1 of sums.f cannot be pickled, got function")
    assert packed.unpack(outcomes[2], "result") == (b"x",)


class Exits:
    """Its pickling ends the process that does it, if that lets it."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


def test_a_result_that_exits_when_looked_at_is_its_callers_alone() -> None:
    scene = Scene(PICKLE, 2)

    good, bad = scene.outcomes(
        lambda delivery: delivery.returned(scene.served.batch, [1, Exits()])
    )

    packed = packing(PICKLE, "result")
    assert packed is not None
    assert packed.unpack(good, "result") == 1
    assert "SystemExit" in f"{type(bad).__name__}: {bad}"


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_result_may_name_an_axis_that_parameters_share(library: Any) -> None:
    rows, marks = (
        Column(name, "ragged", library, dtype, (-3,), ("seq",))
        for name, dtype in (("rows", "float32"), ("marks", "int64"))
    )
    contract = Signature((rows, marks), replace(rows, name="result"))
    wire = Wire(contract, capacity=2)
    served = Served(wire, room=2)
    for length in (2, 0):
        values = np.ones(length, np.float32), np.ones(length, np.int64)
        wire.submit(*Arguments(contract, "sums.f").coerce(values))
    served.take()
    delivery = Delivery("sums.f", contract.result, wire.where.error_nbytes)

    assert delivery.returned(served.batch, [np.ones(2, np.float32), np.ones(0, np.float32)]) == 0


# ---- results of padding rows ----


@pytest.mark.parametrize(
    ("result", "value", "kept"),
    [
        (scalar("int"), [1, 2, 3, 4], [1, 2]),
        (array("float32"), np.arange(4, dtype="float32"), [0, 1]),
        (array("float32", library="torch"), torch.arange(4.0), [0, 1]),
    ],
)
def test_results_of_padding_rows_are_dropped(result: Column, value: Any, kept: list[Any]) -> None:
    delivery = Delivery("sums.f", result, 512)
    assert list(delivery.without_padding(value, 2, 4)) == kept
    assert delivery.without_padding(value, 4, 4) is value


def test_of_a_padded_stack_the_lengths_are_cut_too() -> None:
    result = Column("result", "ragged", "numpy", "float32", (-3,), ("n",), True)
    rows, lengths = Delivery("sums.f", result, 512).without_padding(
        (np.ones((4, 3)), np.arange(4)), 2, 4
    )
    assert rows.shape == (2, 3)
    assert lengths.tolist() == [0, 1]


@pytest.mark.parametrize("value", [[1, 2], [1] * 5, None, (1, 2, 3, 4), np.float32(1)])
def test_a_function_that_drops_padding_itself_is_told_how_many_it_was_given(value: Any) -> None:
    with pytest.raises(BatchResultError, match=r"'sums.f' returned a .* for 4 inputs"):
        Delivery("sums.f", scalar("int"), 512).without_padding(value, 2, 4)
