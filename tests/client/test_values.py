"""Any value of any annotation comes back equal; any other is refused, and hurts nobody else."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import gc
import math
import os
import pickle
import string
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import shmbatch
from shmbatch import errors
from shmbatch.client.limits import UNLIMITED
from shmbatch.contract.pieces import Pieces
from tests import processes
from tests.processes import Program, Served

fewer = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def values(transport: str) -> Iterator[Served]:
    with processes.served("values.py", "values") as executor:
        yield executor


def refused(function: shmbatch.Function, kind: type[Exception], *args: Any) -> str:
    """Return the message with which a call is refused before anything is sent."""
    ring = function.connect().ring
    free = ring.free_slots
    with pytest.raises(kind) as caught:
        function.remote(*args)
    assert type(caught.value) is kind
    assert ring.free_slots == free
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what comes back --------------------------------------------------------------------------


def equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def same_arrays(one: Any, other: Any) -> bool:
    """Equal bit by bit, NaNs too; dtypes and shapes as well."""
    return (
        type(one) is type(other) is np.ndarray
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == other.tobytes()
    )


def same_tensors(one: Any, other: Any) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    raw = {1: torch.uint8, 2: torch.int16, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.view(raw).numpy().tobytes()


def arrays_of(dtype: str, *axes: int) -> st.SearchStrategy[Any]:
    """Arrays with axes of those lengths, negative ones of any length up to that."""
    shapes_of = st.tuples(*(st.integers(0, -n) if n < 0 else st.just(n) for n in axes))
    return shapes_of.flatmap(lambda shape: st_numpy.arrays(dtype, shape))


def tensors_of(dtype: torch.dtype, *axes: int) -> st.SearchStrategy[Any]:
    raw = {1: "uint8", 2: "int16", 8: "int64"}[dtype.itemsize]
    return arrays_of(raw, *axes).map(lambda array: torch.from_numpy(array).view(dtype))


text = st.text(max_size=40)
ints64 = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
items = st.recursive(
    st.builds(shapes.Item, text, finite, st.lists(text, max_size=3), st.none()),
    lambda inner: st.builds(shapes.Item, text, finite, st.lists(text, max_size=3), inner),
    max_leaves=3,
)
points = st.builds(shapes.Point, ints64, finite)
options = st.fixed_dictionaries({"depth": ints64}, optional={"note": text})
zones = st.integers(-23 * 60, 23 * 60).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)
moments = st.datetimes(timezones=st.none() | st.just(datetime.UTC) | zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
orders = st.builds(
    shapes.Order,
    ints64,
    st.lists(items, max_size=2),
    st.sampled_from(shapes.Colour),
    moments,
    st.dates(),
    options,
    points,
    st.binary(max_size=20),
    st.dictionaries(ints64, st.tuples(ints64, text), max_size=3),
    st.none() | st.sampled_from(shapes.Level),
    decimals,
    st.none() | st.uuids(),
)
any_dtypes = (
    st_numpy.scalar_dtypes()
    | st_numpy.array_dtypes(max_size=3)
    | st_numpy.unicode_string_dtypes(max_len=5)
)
any_arrays = st_numpy.arrays(any_dtypes, st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0))
pickled = (
    plain
    | arrays_of("float64", -3, -3)
    | st.builds(shapes.Plain, plain)
    | st.complex_numbers(allow_nan=False)
    | st.integers()
    | st.tuples(st.sets(text), st.just(range(3)))
)

Same = Callable[[Any, Any], bool]
EVERY: dict[str, tuple[st.SearchStrategy[Any], Same]] = {
    "ints": (ints64, equal),
    "floats": (finite, equal),
    "bools": (st.booleans(), equal),
    "arrays": (arrays_of("float32", 2, 3), same_arrays),
    "tensors": (tensors_of(torch.float64, 2, 3), same_tensors),
    "halves": (tensors_of(torch.bfloat16, 4), same_tensors),
    "empties": (arrays_of("float32", 0, 3), same_arrays),
    "reads": (arrays_of("float32", 2, 3), same_arrays),
    "reads_tensors": (tensors_of(torch.bfloat16, 4), same_tensors),
    "texts": (st.text(max_size=250), equal),
    "blobs": (st.binary(max_size=1000), equal),
    "any_arrays": (any_arrays, same_arrays),
    "rows": (arrays_of("float32", -5, 2), same_arrays),
    "rows_padded": (arrays_of("float32", -5, 2), same_arrays),
    "grids": (arrays_of("int16", -5, 3, -4), same_arrays),
    "grids_padded": (arrays_of("int16", -5, 3, -4), same_arrays),
    "tensor_rows": (tensors_of(torch.float64, -5, -4), same_tensors),
    "tensor_rows_padded": (tensors_of(torch.float64, -5, -4), same_tensors),
    "brains": (tensors_of(torch.bfloat16, -5, 3), same_tensors),
    "brains_padded": (tensors_of(torch.bfloat16, -5, 3), same_tensors),
    "eighths": (tensors_of(torch.float8_e4m3fn, -5), same_tensors),
    "squares": (st.integers(0, 4).flatmap(lambda n: arrays_of("float32", n, n)), same_arrays),
    "nothings": (arrays_of("float32", -5, 0), same_arrays),
    "bare": (plain, equal),
    "unannotated": (plain, equal),
    "items": (items, equal),
    "orders": (orders, equal),
    "named_points": (points, equal),
    "options": (options, equal),
    "colours": (st.sampled_from(shapes.Colour), equal),
    "levels": (st.sampled_from(shapes.Level), equal),
    "drawings": (
        st.none() | st.builds(shapes.Circle, finite) | st.builds(shapes.Square, finite),
        equal,
    ),
    "boxes": (st.builds(shapes.Box, st.lists(ints64, max_size=5)), equal),
    "smalls": (st.integers(0, 99), equal),
    "modes": (st.sampled_from(["fast", "slow", 3, None]), equal),
    "moments": (st.none() | moments, equal),
    "days": (st.dates(), equal),
    "spans": (st.timedeltas(datetime.timedelta(-9999), datetime.timedelta(9999)), equal),
    "decimals": (decimals, equal),
    "keys": (st.uuids(), equal),
    "tables": (
        st.dictionaries(text, st.lists(st.tuples(ints64, text), max_size=3), max_size=3),
        equal,
    ),
    "sets": (st.sets(ints64, max_size=5), equal),
    "numbers": (st.none() | ints64 | finite, equal),
    "pickles": (pickled, lambda a, b: same_arrays(a, b) or a == b),
    "pickled_arrays": (arrays_of("float32", 3), same_arrays),
}


@pytest.mark.parametrize("name", EVERY)
def test_any_value_comes_back_equal(values: Served, name: str) -> None:
    strategy, same = EVERY[name]
    function = values.connect(name)

    @fewer
    @given(st.lists(strategy, min_size=1, max_size=6))
    def check(inputs: list[Any]) -> None:
        results = list(function.map(inputs))
        assert len(results) == len(inputs)
        for given_one, result in zip(inputs, results, strict=True):
            assert same(given_one, result), (given_one, result)

    check()


def test_sixty_four_parameters_keep_their_places(values: Served) -> None:
    many = values.connect("many")
    numbers = list(range(-32, 32))

    assert many.remote(*numbers) == numbers
    by_name = {f"x{at}": number for at, number in enumerate(numbers)}
    assert many.remote(**by_name) == numbers


def test_padding_is_to_the_longest_of_the_batch_with_zeros(values: Served) -> None:
    lengths = values.connect("lengths")
    calls = [
        lengths.spawn(np.full((n, 2), 7, np.float32), torch.ones(n, dtype=torch.int64))
        for n in (3, 0, 5, 1)
    ]

    for n, call in zip((3, 0, 5, 1), calls, strict=True):
        one, other, rows, longest = call.get(30)
        assert (one, other) == (n, n)
        assert n <= longest <= 5
        assert 1 <= rows <= 4


def test_arrays_that_come_back_belong_to_their_caller(values: Served) -> None:
    for name in ("rows", "rows_padded", "any_arrays"):
        function = values.connect(name)
        array = np.ones((3, 2), np.float32)
        first, second = function.remote(array), function.remote(array)
        first[:] = 9
        assert first.flags.writeable
        assert second.tolist() == array.tolist() == [[1, 1]] * 3


KEEPER = """
import os, sys, numpy as np, shmbatch
keeps = shmbatch.connect("values.keeps", arrays="numpy")
row = np.ones(1000, np.float32)
calls = [keeps.spawn(x * row, 10 * x * row) for x in (1, 2)]
print([call.get(30) for call in calls], flush=True)
os.kill(os.getpid(), 9)
"""


def test_inputs_that_a_function_has_kept_are_there_when_their_producer_is_gone(
    values: Served,
) -> None:
    lets_go = values.connect("lets_go")
    assert lets_go.remote(0) == []
    nbytes = shmbatch.statistics("values")["admission"]["nbytes"]

    with Program(KEEPER) as keeper:
        assert keeper.line() == str(["shared shared"] * 2)
        keeper.wait()
    processes.wait_until(lambda: values.statistics("keeps")["producers"] == 0, "it is gone")

    assert shmbatch.statistics("values")["admission"]["nbytes"] > nbytes, "it is still mapped"
    assert lets_go.remote(0) == [3000, 30000]
    assert shmbatch.statistics("values")["admission"]["nbytes"] == nbytes
    assert values.connect("keeps").remote(np.ones(1000, "f4"), torch.ones(1000)) == "shared shared"
    lets_go.remote(0)


def test_whoever_breaks_a_promise_fails_its_callers(values: Served) -> None:
    with pytest.raises(ValueError, match="assignment destination is read-only") as caught:
        values.connect("writes").remote(np.ones(3, np.float32))
    assert "xs[:] = 0" in caught.value.__notes__[0]


def test_tensors_of_variable_length_come_as_arrays_where_those_are_asked_for(
    values: Served,
) -> None:
    result = values.connect("brains", arrays="numpy").remote(
        torch.ones(2, 3, dtype=torch.bfloat16)
    )

    assert result.dtype == np.uint16
    assert result.tolist() == [[0x3F80] * 3] * 2


def test_large_buffers_travel_beside_their_pickle(values: Served) -> None:
    function = values.connect("pickled_arrays")
    array = np.arange(10_000, dtype=np.float64)

    result = function.remote({"array": array, "text": "x"})

    assert same_arrays(result["array"], array)
    result["array"][0] = 1
    tensor = torch.arange(1000)
    assert torch.equal(function.remote([tensor])[0], tensor)


def test_a_tuple_of_bytes_is_a_value_like_any_other(values: Served) -> None:
    """The core's own form of a packed value is a tuple too; nobody's tuple is taken for it."""
    for value in ((), (b"ab",), (b"a", b"b"), ((2,), b"12345678")):
        assert values.connect("pickles").remote(value) == value
        assert values.connect("bare").remote(value) == pickle_free(value)
    with pytest.raises(errors.InputTypeError):
        values.connect("rows").remote(((1, 2), b"12345678"))
    with pytest.raises(errors.InputTypeError):
        values.connect("any_arrays").remote((b"x", b"y"))


def pickle_free(value: Any) -> Any:
    return [pickle_free(each) for each in value] if isinstance(value, tuple) else value


# ---- what is refused at the call --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "kind", "fact"),
    [
        (
            "texts",
            "x" * 1001,
            errors.InputValueError,
            "take at most 1000 bytes, got 1001 in UTF-8",
        ),
        ("texts", "é" * 501, errors.InputValueError, "take at most 1000 bytes, got 1002 in UTF-8"),
        ("texts", "a\ud800", errors.InputValueError, "with the surrogate '\\ud800' at 1; drop it"),
        ("texts", b"x", errors.InputTypeError, "be a str, got bytes b'x'; use .decode()"),
        ("texts", 3, errors.InputTypeError, "be a str, got int 3; use str(value) if"),
        ("texts", ["x"], errors.InputTypeError, "be a str, got list; one call carries one value"),
        ("blobs", b"x" * 1001, errors.InputValueError, "take at most 1000 bytes, got 1001; raise"),
        ("blobs", "x", errors.InputTypeError, "be bytes, got str 'x'; use .encode()"),
        ("blobs", bytearray(b"x"), errors.InputTypeError, "got bytearray; use bytes(value)"),
        (
            "any_arrays",
            np.zeros(10_001, np.uint8),
            errors.InputValueError,
            "take at most 10000 bytes, got 10001 in an array of shape (10001,); raise max_bytes=",
        ),
        (
            "any_arrays",
            np.array([None]),
            errors.InputTypeError,
            "have a dtype without objects, got dtype object; use .astype(...)",
        ),
        ("any_arrays", [1, 2], errors.InputTypeError, "be an array, got list; use numpy.asarray("),
        ("any_arrays", torch.zeros(2), errors.InputTypeError, "use .detach().cpu().numpy()"),
        (
            "rows",
            np.zeros((6, 2), np.float32),
            errors.InputValueError,
            "have at most 5 along axis 'seq', got shape (6, 2); cut it, or raise max_len",
        ),
        (
            "rows",
            np.zeros((3, 3), np.float32),
            errors.InputValueError,
            "have shape (seq, 2), got (3, 3); reshape it, or change the annotation Float32[",
        ),
        (
            "rows",
            np.zeros((1, 3, 2), np.float32),
            errors.InputValueError,
            "have shape (seq, 2), got (1, 3, 2); one call carries one value, without the batch",
        ),
        ("rows", np.zeros((3, 2)), errors.InputTypeError, "have dtype float32, got float64"),
        ("rows", [[1, 2]], errors.InputTypeError, "of dtype float32 and shape (seq, 2), got list"),
        (
            "squares",
            np.zeros((2, 3), np.float32),
            errors.InputValueError,
            "have one length along both axes 'n', got shape (2, 3)",
        ),
        ("brains", torch.zeros(2, 3), errors.InputTypeError, "have dtype bfloat16, got float32"),
        (
            "bare",
            np.zeros(2),
            errors.InputTypeError,
            "of types that MessagePack has, got a numpy.ndarray; annotate the parameter itself",
        ),
        (
            "bare",
            [np.float64(1)],
            errors.InputTypeError,
            "got a numpy.float64 in a list; use .item()",
        ),
        ("bare", {"x": 1j}, errors.InputTypeError, "got a complex in a dict; use a dataclass"),
        ("bare", 2**64, errors.InputValueError, "have ints from -2**63 to 2**64 - 1, got int 18"),
        (
            "bare",
            ["\ud800"],
            errors.InputValueError,
            "got a str with the surrogate '\\ud800' at 0",
        ),
        ("bare", "x" * 70_000, errors.InputValueError, "at most 65536 bytes, got 70005 in Mess"),
        (
            "items",
            {"name": 3, "price": 1.0},
            errors.InputTypeError,
            "type in list[shapes.Item], got dict: Expected `str`, got `int` - at `$.name`",
        ),
        ("items", shapes.Circle(1.0), errors.InputTypeError, "Object missing required field"),
        ("smalls", 100, errors.InputTypeError, "Expected `int` <= 99"),
        ("modes", "x", errors.InputTypeError, "Invalid enum value 'x'"),
        ("pickles", lambda: 3, errors.InputTypeError, "cannot be pickled, got function: "),
        ("pickled_arrays", b"x" * 100_001, errors.InputValueError, "at most 100000 bytes, got 10"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_at_the_call(
    values: Served, name: str, value: Any, kind: type[Exception], fact: str
) -> None:
    message = refused(values.connect(name), kind, value)

    assert message.startswith(f"parameter 'xs' of values.{name} ")
    assert fact in message


@pytest.mark.parametrize("name", ["bare", "tables", "pickles"])
def test_deep_nesting_is_refused_at_the_call(values: Served, name: str) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        message = refused(values.connect(name), errors.InputValueError, deep)
    finally:
        while deep:  # level by level: freeing it at once would overflow the stack of some versions
            deep = deep[0]
    assert "is nested too deep" in message


def test_axes_of_one_name_must_agree_within_a_call(values: Served) -> None:
    message = refused(
        values.connect("lengths"),
        errors.InputValueError,
        np.zeros((3, 2), np.float32),
        torch.zeros(4, dtype=torch.int64),
    )

    assert message == (
        "axis 'seq' of values.lengths must have one length within a call, got 3 in 'xs' and 4 in "
        "'ys'; give different axes different names"
    )


@pytest.mark.parametrize("size", [999, 1000])
def test_values_up_to_the_limit_are_taken(values: Served, size: int) -> None:
    assert values.connect("texts").remote("x" * size) == "x" * size
    assert values.connect("blobs").remote(b"x" * size) == b"x" * size


# ---- what is refused one by one ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "fact"),
    [
        (1, "must be of the type in list[shapes.Item], got dict: Expected `str`, got `int`"),
        (2, "must be of types that MessagePack has, got a numpy.ndarray"),
        (3, "must have ints from -2**63 to 2**64 - 1"),
        (4, "must have text that UTF-8 can hold"),
    ],
)
def test_a_result_that_does_not_fit_is_its_callers_alone(
    values: Served, number: int, fact: str
) -> None:
    answers = values.connect("answers")
    good, bad = answers.spawn(0), answers.spawn(number)

    assert good.get(30) == shapes.Item("good", 1.0)
    with pytest.raises(errors.ResultError, match=r"^result [01] of values\.answers ") as caught:
        bad.get(30)
    assert fact in str(caught.value)


def test_a_pickle_that_does_not_load_fails_alone(values: Served) -> None:
    pickles = values.connect("pickles")
    good = [pickles.spawn(number) for number in range(3)]

    with pytest.raises(errors.InputValueError) as caught:
        pickles.remote(shapes.Bomb())

    assert "parameter 'xs' of values.pickles cannot be unpickled" in str(caught.value)
    assert "RuntimeError: boom" in str(caught.value)
    assert [call.get(30) for call in good] == [0, 1, 2]


def test_a_class_that_the_executor_cannot_import_is_named(values: Served) -> None:
    code = """
import shmbatch
class Mine: pass
try:
    shmbatch.connect("values.pickles").remote(Mine())
except shmbatch.errors.InputTypeError as error:
    print(error)
"""
    with processes.Program(code) as program:
        line = program.line()
    assert line.startswith("parameter 'xs' of values.pickles has a __main__.Mine, which this proc")
    assert line.endswith("put the class into a module that both processes have")


@pytest.mark.parametrize(
    ("name", "payload", "kind"),
    [
        ("items", b"\xc1", errors.InputValueError),
        ("items", b"\x93\x01\x02\x03", errors.InputTypeError),
        ("bare", b"\xdd\xff\xff\xff\xff", errors.InputValueError),
        ("bare", b"\x91" * 50_000, errors.InputValueError),
        ("bare", b"", errors.InputValueError),
        ("pickles", b"\xff" * 64, errors.InputValueError),
        ("pickles", b"", errors.InputValueError),
        ("pickles", (1).to_bytes(8, "little") + b"\xff" * 8, errors.InputValueError),
        ("any_arrays", b"\xff" * 64, errors.InputValueError),
        ("any_arrays", b"", errors.InputValueError),
        ("any_arrays", b"\x04\0\0\0<f4|" + b"\0" * 8, errors.InputValueError),
        ("any_arrays", b"\x04\0\0\0|O||" + b"\0" * 8, errors.InputValueError),
    ],
)
def test_a_broken_payload_fails_its_own_row_alone(
    values: Served, name: str, payload: bytes, kind: type[Exception]
) -> None:
    """As a producer could write that does not use this package."""
    function = values.connect(name)
    good = [EXAMPLES[name]] * 3
    before = [function.spawn(each) for each in good]
    connection = function.connect()
    ticket = connection.ring.submit((Pieces((payload,)),), 0)
    assert ticket >= 0
    after = [function.spawn(each) for each in good]

    with pytest.raises(kind) as caught:
        shmbatch.FunctionCall(connection, ticket, UNLIMITED).get(30)

    assert str(caught.value).startswith(f"parameter 'xs' of values.{name} ")
    for call in before + after:
        assert np.array_equal(call.get(30), EXAMPLES[name])


def test_the_error_of_a_result_that_cannot_be_unpickled_is_let_go_of(values: Served) -> None:
    """Its traceback has the frame of `remote`, which has the outcome, which has the error."""
    function = values.connect("pickles")
    value = shapes.OnlyElsewhere(os.getpid())

    def raised(call: Callable[[], object]) -> weakref.ref[BaseException]:
        try:
            call()
        except errors.ShmbatchError as error:
            return weakref.ref(error)
        raise AssertionError

    async def awaited() -> weakref.ref[BaseException]:
        try:
            await function.remote.aio(value)
        except errors.ShmbatchError as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        assert raised(lambda: function.remote(value))() is None
        assert raised(lambda: function.remote(xs=value))() is None
        assert asyncio.run(awaited())() is None
    finally:
        gc.enable()


def test_a_batch_of_broken_payloads_alone_runs_nothing(values: Served) -> None:
    function = values.connect("pickles")
    connection = function.connect()
    before = values.statistics("pickles")
    ticket = connection.ring.submit((Pieces((b"",)),), 0)

    with pytest.raises(errors.InputValueError, match="cannot be unpickled"):
        shmbatch.FunctionCall(connection, ticket, UNLIMITED).get(30)
    assert function.remote(1) == 1
    assert function.remote(2) == 2  # what was counted of a batch is known at the next one

    # The last batch is counted a moment after its outcome is there.
    expected = before["calls_done"] + 3
    processes.wait_until(lambda: values.statistics("pickles")["calls_done"] == expected, "counted")
    after = values.statistics("pickles")
    assert after["failed"]["InputValueError"] == 1 + before["failed"].get("InputValueError", 0)
    assert after["batches"] - before["batches"] == 2


EXAMPLES: dict[str, Any] = {
    "items": shapes.Item("x", 1.0),
    "bare": [1, 2],
    "pickles": [1, 2],
    "any_arrays": np.arange(3),
}


# ---- types that are not everywhere ------------------------------------------------------------


def test_a_producer_without_the_types_uses_plain_data(values: Served) -> None:
    code = """
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("apps")]
import shmbatch
items = shmbatch.connect("values.items")
print(items.remote({"name": "x", "price": 1.5}))
try:
    items.remote({"name": 3, "price": 1.5})
except shmbatch.errors.InputTypeError as error:
    print(error)
print(sorted({"shapes", "values", "torch"} & set(sys.modules)))
"""
    with processes.Program(code) as program:
        assert program.line() == str({"name": "x", "price": 1.5, "tags": []})
        assert program.line() == (
            "parameter 'xs' of values.items does not fit list[shapes.Item]: "
            "Expected `str`, got `int` - at `$.name`"
        )
        assert program.line() == "[]"


def test_a_producer_with_other_types_of_those_names_is_refused(values: Served) -> None:
    code = """
import sys, types
from dataclasses import dataclass
import shmbatch
other = types.ModuleType("shapes")
@dataclass
class Item:
    name: str
Item.__module__ = "shapes"
other.Item = Item
sys.modules["shapes"] = other
try:
    shmbatch.connect("values.items")
except shmbatch.errors.SignatureMismatch as error:
    print(error)
"""
    with processes.Program(code) as program:
        assert program.line() == (
            "parameter 'xs' of values.items is a list[shapes.Item] whose fields differ between "
            "the executor and this process; restart the one with the older file"
        )


def test_what_a_producer_does_not_need_it_does_not_import(values: Served) -> None:
    code = """
import sys, numpy, shmbatch
assert shmbatch.connect("values.texts").remote("x") == "x"
assert shmbatch.connect("values.blobs").remote(b"x") == b"x"
assert shmbatch.connect("values.rows").remote(numpy.ones((2, 2), "float32")).sum() == 4
assert shmbatch.connect("values.any_arrays").remote(numpy.ones((2, 2))).sum() == 4
assert shmbatch.connect("values.bare").remote([1]) == [1]
print(sorted({"torch", "asyncio", "jaxtyping", "values"} & set(sys.modules)))
print("shmbatch.contract.pickling" in sys.modules)
"""
    with processes.Program(code) as program:
        assert program.line() == "[]"
        assert program.line() == "False"


def test_floats_that_are_not_numbers_survive_in_messagepack(values: Served) -> None:
    numbers = values.connect("numbers")

    assert math.isnan(numbers.remote(math.nan))
    assert numbers.remote(math.inf) == math.inf


def test_pickled_handles_take_their_types_along(values: Served) -> None:
    handle = pickle.loads(pickle.dumps(values.connect("orders")))
    item = shapes.Item("x", 1.0)
    order = shapes.Order(
        1,
        [item],
        shapes.Colour.RED,
        datetime.datetime(2020, 1, 1),
        datetime.date(2020, 1, 1),
        {"depth": 1},
        shapes.Point(1, 2.0),
        b"",
        {1: (2, string.digits)},
        price=decimal.Decimal("1.10"),
        key=uuid.UUID(int=7),
    )

    assert handle.remote(order) == order
