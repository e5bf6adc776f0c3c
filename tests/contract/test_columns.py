"""What an annotation means: kind, dtype, shape, bytes; and what it may not be."""

from __future__ import annotations

import typing

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import (
    BFloat16,
    Bool,
    Complex64,
    Float,
    Float8e4m3b11fnuz,
    Float8e4m3fn,
    Float32,
    Int4,
    Int64,
    Shaped,
    UInt8,
)
from torch import Tensor

from shmbatch.contract import columns
from shmbatch.contract.annotations import parse_annotation
from shmbatch.contract.columns import Column
from shmbatch.contract.options import value_options
from shmbatch.contract.pieces import Pieces
from shmbatch.errors import ConfigError, ProtocolError

WHERE = "parameter 'xs' of sums.add"

DTYPES = sorted(columns.WIRE_DTYPES)
RAW_DTYPES = sorted(columns.RAW_DTYPES)

scalar_columns = st.sampled_from(
    [
        Column("xs", "int", "", "int64", ()),
        Column("xs", "float", "", "float64", ()),
        Column("xs", "bool", "", "bool", ()),
    ]
)
sized_columns = st.builds(
    Column,
    st.just("xs"),
    st.sampled_from(["str", "bytes", "ndarray", "pickle"]),
    st.just(""),
    st.just(""),
    st.just(()),
    max_bytes=st.integers(1, 2**32),
)
ragged_columns = st.builds(
    lambda dtype, shape, padded: Column(
        "xs",
        "ragged",
        "torch",
        dtype,
        shape,
        tuple(f"n{at}" if length < 0 else "" for at, length in enumerate(shape)),
        padded,
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(-300, 300), min_size=1, max_size=4)
    .map(tuple)
    .filter(lambda shape: min(shape) < 0),
    st.booleans(),
)
array_columns = st.builds(
    Column,
    st.sampled_from(["xs", "images", "result", "größe"]),
    st.just("array"),
    st.just("torch"),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 300), max_size=4).map(tuple),
)
fixed_columns = scalar_columns | array_columns
any_columns = fixed_columns | sized_columns | ragged_columns

# Everything that MessagePack could bring.
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def parse(annotation: object) -> Column:
    return parse_annotation(annotation, "xs", WHERE)


def refusal(annotation: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(annotation)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


@pytest.mark.parametrize(("scalar", "dtype"), [(int, "int64"), (float, "float64"), (bool, "bool")])
def test_a_list_of_scalars_is_a_column_of_eight_bytes(scalar: type, dtype: str) -> None:
    for annotation in (list[scalar], typing.List[scalar]):  # noqa: UP006
        column = parse(annotation)

        assert column == Column("xs", scalar.__name__, "", dtype, ())
        assert column.nbytes == 8
        assert column.carrier is scalar
        assert column.annotation == f"list[{scalar.__name__}]"


def test_a_bool_scalar_occupies_an_int64() -> None:
    assert parse(list[bool]).wire_dtype == np.dtype("int64")


def test_a_jaxtyping_array_loses_its_batch_axis() -> None:
    column = parse(Float32[Tensor, "batch 3 224 224"])

    assert column == Column("xs", "array", "torch", "float32", (3, 224, 224))
    assert column.nbytes == 4 * 3 * 224 * 224
    assert column.wire_dtype == np.dtype("float32")
    assert column.carrier is np.ndarray
    assert column.annotation == 'Float32[Tensor, "batch 3 224 224"]'


def test_the_array_type_decides_what_the_function_sees() -> None:
    column = parse(Int64[np.ndarray, "b 16"])

    assert column == Column("xs", "array", "numpy", "int64", (16,))
    assert column.annotation == 'Int64[np.ndarray, "batch 16"]'


def test_an_array_with_only_the_batch_axis_has_values_without_axes() -> None:
    assert parse(Float32[np.ndarray, "batch"]).shape == ()


def test_lengths_may_carry_the_names_that_jaxtyping_allows() -> None:
    assert parse(Float32[Tensor, "batch channels=3 16"]).shape == (3, 16)


def test_jaxtypings_two_names_of_bool_are_one_dtype() -> None:
    assert parse(Bool[np.ndarray, "batch 2"]).dtype == "bool"


@pytest.mark.parametrize(("dtype", "itemsize"), [("bfloat16", 2), ("float8_e4m3fn", 1)])
def test_dtypes_that_numpy_lacks_travel_raw(dtype: str, itemsize: int) -> None:
    annotation = {"bfloat16": BFloat16, "float8_e4m3fn": Float8e4m3fn}[dtype]
    column = parse(annotation[Tensor, "batch 5"])

    assert column.dtype == dtype
    assert column.wire_dtype == np.dtype(f"uint{8 * itemsize}")
    assert column.nbytes == 5 * itemsize
    assert column.carrier is memoryview


def test_named_axes_stand_in_the_shape_as_the_negative_of_their_maximum() -> None:
    said = value_options(max_lengths={"seq": 512, "wide": 9})
    column = parse_annotation(Float32[np.ndarray, "batch seq 16 wide"], "xs", WHERE, said)

    assert column.kind == "ragged"
    assert column.shape == (-512, 16, -9)
    assert column.axes == ("seq", "", "wide")
    assert column.variable == (0, 2)
    assert not column.padded
    assert column.nbytes == 32 + 4 * 512 * 16 * 9
    assert column.carrier is np.ndarray
    assert column.annotation == 'Float32[np.ndarray, "batch seq 16 wide"]'


@pytest.mark.parametrize(
    "annotation", [BFloat16[Tensor, "batch seq"], Float32[Tensor, "batch seq seq"]]
)
def test_arrays_that_python_must_look_at_are_carried_in_pieces(annotation: typing.Any) -> None:
    column = parse_annotation(annotation, "xs", WHERE, value_options(max_lengths={"seq": 3}))

    assert column.carrier is Pieces


@pytest.mark.parametrize(
    ("annotation", "kind", "carrier"),
    [
        (list[str], "str", str),
        (list[bytes], "bytes", bytes),
        (list[np.ndarray], "ndarray", Pieces),
        (list[int | None], "msgpack", Pieces),
        (list, "msgpack", Pieces),
        (list[typing.Any], "msgpack", Pieces),
    ],
)
def test_values_without_one_size_have_room_for_max_bytes(
    annotation: object, kind: str, carrier: type
) -> None:
    for size in (1, 16, 1000):
        column = parse_annotation(annotation, "xs", WHERE, value_options(max_bytes=size))

        assert (column.kind, column.carrier, column.max_bytes) == (kind, carrier, size)
        assert column.nbytes >= 16 + size
        assert column.nbytes % 16 == 0


def test_a_value_with_an_empty_axis_occupies_nothing() -> None:
    assert parse(Float32[np.ndarray, "batch 0 7"]).nbytes == 0


@pytest.mark.parametrize("annotation", [Complex64, UInt8, BFloat16, Float8e4m3fn, Bool])
def test_jaxtyping_names_come_back_as_they_were_written(annotation: typing.Any) -> None:
    column = parse(annotation[Tensor, "batch 4"])

    assert column.annotation == f'{annotation.__name__}[Tensor, "batch 4"]'


@given(fixed_columns)
def test_bytes_agree_with_the_wire_dtype(column: Column) -> None:
    one = np.empty((), column.wire_dtype)

    assert column.nbytes == np.broadcast_to(one, column.shape).nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wire_dtype_is_as_large_as_torchs(dtype: str) -> None:
    column = Column("xs", "array", "torch", dtype, ())

    assert column.wire_dtype.itemsize == getattr(torch, dtype).itemsize


@given(any_columns)
def test_columns_survive_the_handshake(column: Column) -> None:
    message = column.to_message()

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message)) == message
    assert Column.from_message(message) == column


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (int, "int"),
        (None, "None"),
        (Tensor, "torch.Tensor"),
        (np.ndarray, "numpy.ndarray"),
        (typing.Any, "Any"),
        (Float32[list, "batch 3"], "Float32[list, 'batch 3']"),
        (dict[str, int], "dict[str, int]"),
        (tuple[int, ...], "tuple[int, ...]"),
        ("list[int]", "'list[int]'"),
    ],
)
def test_other_annotations_are_refused_with_what_is_supported(
    annotation: object, shown: str
) -> None:
    message = refusal(annotation)

    assert message.startswith(f"{WHERE} has annotation {shown}; supported are list[int], ")
    assert 'Float32[Tensor, "batch 3 224 224"]' in message


def test_a_union_of_array_types_is_refused() -> None:
    assert "Float32[Tensor, 'batch 3'], Float32[" in refusal(
        Float32[Tensor | np.ndarray, "batch 3"]
    )


def test_a_class_that_only_resembles_jaxtypings_is_refused() -> None:
    half = type("Half", (), {"array_type": np.ndarray, "dtypes": ("int8",)})

    assert "test_columns.Half; supported are" in refusal(half)


def test_a_family_of_dtypes_is_refused_naming_a_concrete_one() -> None:
    message = refusal(Float[Tensor, "batch 3"])

    assert message.endswith("which stands for 10 dtypes; name one, such as Float32 or Int64")


def test_any_dtype_is_refused_naming_a_concrete_one() -> None:
    assert "which stands for any dtype; name one" in refusal(Shaped[Tensor, "batch 3"])


def test_raw_dtypes_are_refused_for_numpy() -> None:
    message = refusal(BFloat16[np.ndarray, "batch 3"])

    assert message.endswith("numpy has no bfloat16; use Tensor instead of np.ndarray")


@pytest.mark.parametrize("dtype", [Int4, Float8e4m3b11fnuz])
def test_dtypes_that_torch_lacks_are_refused_with_those_it_has(dtype: typing.Any) -> None:
    message = refusal(dtype[Tensor, "batch 3"])

    assert "is not supported; use one of bfloat16," in message


@pytest.mark.parametrize("axes", ["", "3", "...", "*batch", "_", "#batch 3", "batch+1", "b=3"])
def test_the_first_axis_must_be_a_name(axes: str) -> None:
    message = refusal(Float32[np.ndarray, axes])

    first = axes.split()[0] if axes else ""
    assert f"first axis {first!r} is not a name; the first axis is the batch" in message


@pytest.mark.parametrize("axis", ["*rest", "...", "_", "n+1", "#3", "-1", "1_0"])
def test_axes_that_are_neither_lengths_nor_names_are_refused(axis: str) -> None:
    message = refusal(Float32[np.ndarray, f"batch {axis} 16"])

    assert f"axis {axis!r} is neither an integer nor a name; write " in message


def test_a_value_beyond_the_size_limit_is_refused_with_both_sizes() -> None:
    message = refusal(Float32[np.ndarray, "batch 1000000 1000000"])

    assert "one value takes 4000000000000 bytes, the limit is 1099511627776" in message


def test_an_empty_axis_does_not_excuse_a_length_that_numpy_refuses() -> None:
    assert "the limit is" in refusal(Float32[np.ndarray, "batch 0 99999999999999999"])


def test_a_length_of_absurdly_many_digits_is_refused() -> None:
    huge = type("Huge", (), {"array_type": np.ndarray, "dtypes": ("int8",)})
    huge.dim_str = "batch " + "9" * 5000

    assert "is neither an integer nor a name" in refusal(huge)


def test_too_many_axes_are_refused() -> None:
    message = refusal(Float32[np.ndarray, "batch " + "1 " * 33])

    assert "is not a shape of up to 32 lengths" in message


GOOD = Column("xs", "array", "torch", "float32", (3, 4)).to_message()


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "two words"},
        {"name": "x" * 256},
        {"name": 3},
        {"kind": None},
        {"kind": ["array"]},
        {"kind": "int"},
        {"library": ""},
        {"library": "jax"},
        {"library": []},
        {"dtype": "float31"},
        {"dtype": []},
        {"dtype": "bfloat16", "library": "numpy"},
        {"shape": 3},
        {"shape": [3, -1]},
        {"shape": [3, True]},
        {"shape": [3.0]},
        {"shape": ["3"]},
        {"shape": [1] * 33},
        {"shape": [2**40, 2**40]},
        {"shape": [2**63, 0]},
        {"kind": "int", "library": "", "dtype": "float64", "shape": []},
        {"kind": "int", "library": "", "dtype": "int64", "shape": [1]},
        {"kind": "int", "library": "numpy", "dtype": "int64", "shape": []},
        {"kind": ["int"], "library": "", "dtype": "int64", "shape": []},
        {"kind": "str"},
        {"kind": "str", "library": "", "dtype": "", "shape": []},
        {"kind": "str", "library": "", "dtype": "", "shape": [], "max_bytes": 2**33},
        {"kind": "str", "library": "", "dtype": "", "shape": [], "max_bytes": True},
        {"kind": "msgpack", "library": "", "dtype": "", "shape": [], "max_bytes": 9},
        {"kind": "ragged"},
        {"kind": "ragged", "shape": [-3, 4], "axes": ["seq"]},
        {"kind": "ragged", "shape": [-3, 4], "axes": ["seq", "x"]},
        {"kind": "ragged", "shape": [-3, 4], "axes": ["", ""]},
        {"kind": "ragged", "shape": [-3, 4], "axes": [3, ""]},
        {"kind": "ragged", "shape": [-3, 4], "axes": ["seq", ""], "padded": 1},
        {"kind": "ragged", "shape": [-(2**41)], "axes": ["seq"]},
        {"shape": [-3, 4]},
        {"padded": True},
        {"axes": ["seq"]},
        {"max_bytes": 3},
        {"element": ["any"]},
        {"fingerprint": "0"},
        {"fingerprint": 3},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_malformed_column_from_a_peer_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="a column arrived"):
        Column.from_message(GOOD | change)


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_column_without_all_its_fields_is_refused(field: str) -> None:
    with pytest.raises(ProtocolError, match="name, kind, library, dtype, shape, axes"):
        Column.from_message({key: value for key, value in GOOD.items() if key != field})


@given(plain_data, st.dictionaries(st.sampled_from(sorted(GOOD)), plain_data))
def test_no_message_does_worse_than_a_protocol_error(
    message: object, change: dict[str, object]
) -> None:
    messages = []
    for hostile in (message, GOOD | change):
        try:
            column = Column.from_message(hostile)
        except ProtocolError as error:
            messages.append(str(error))
        else:
            assert column.to_message() == hostile
    assert all(len(text) < 2000 and "\n" not in text for text in messages)
