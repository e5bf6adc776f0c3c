"""Which values a column takes, in which form they leave, and what a refusal says."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch._subclasses.fake_tensor import FakeTensorMode

from shmbatch.contract.columns import RAW_DTYPES, WIRE_DTYPES, Column
from shmbatch.errors import InputError, InputTypeError, InputValueError

SUBJECT = "parameter 'xs' of sums.add"
INT = Column("xs", "int", "", "int64", ())
FLOAT = Column("xs", "float", "", "float64", ())
BOOL = Column("xs", "bool", "", "bool", ())

NUMPY_DTYPES = sorted(WIRE_DTYPES.keys() - RAW_DTYPES.keys())
RAW_NAMES = sorted(RAW_DTYPES)


def array_column(dtype: str, *shape: int, library: Any = "torch") -> Column:
    return Column("xs", "array", library, dtype, shape)


IMAGE = array_column("float32", 3, 4)


def refusal(column: Column, value: object, error: type[InputError]) -> str:
    with pytest.raises(InputError) as caught:
        column.coerce(value, SUBJECT)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{SUBJECT} must ")
    assert "\n" not in message
    assert not message.endswith(".")
    return message.removeprefix(f"{SUBJECT} must ")


def content(column: Column, value: object) -> bytes:
    """Coerce *value*, check the form that the core relies on, and return the bytes."""
    canonical = column.coerce(value, SUBJECT)
    assert type(canonical) is column.carrier
    if isinstance(canonical, memoryview):
        assert canonical.format == "c"
        assert canonical.ndim == 1
        assert canonical.c_contiguous
    else:
        assert isinstance(canonical, np.ndarray)
        assert canonical.dtype == column.wire_dtype
        assert canonical.dtype.isnative
        assert canonical.shape == column.shape
        assert canonical.flags.c_contiguous
    assert memoryview(canonical).nbytes == column.nbytes
    return bytes(canonical.tobytes())


# ints


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_int64_comes_back_as_it_was(number: int) -> None:
    assert INT.coerce(number, SUBJECT) == number


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**63, 2**64])
def test_an_int_outside_int64_is_refused_with_the_bounds(number: int) -> None:
    message = refusal(INT, number, InputValueError)

    assert message == f"be an int from -2**63 to 2**63 - 1, got int {number}"


def test_a_numpy_uint64_outside_int64_is_refused() -> None:
    assert "got int 18446744073709551615" in refusal(INT, np.uint64(2**64 - 1), InputValueError)


def test_an_int_too_long_to_print_is_refused_all_the_same() -> None:
    assert "got int of 16610 bits" in refusal(INT, 10**5000, InputValueError)


@pytest.mark.parametrize("dtype", [name for name in NUMPY_DTYPES if "int" in name])
def test_numpy_integers_become_exact_ints(dtype: str) -> None:
    number = INT.coerce(np.dtype(dtype).type(7), SUBJECT)

    assert number == 7
    assert type(number) is int


def test_an_int_enum_becomes_an_exact_int() -> None:
    color = enum.IntEnum("Color", {"RED": 3})

    assert type(INT.coerce(color.RED, SUBJECT)) is int


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (True, "bool True"),
        (np.True_, "bool True"),
        (2.0, "float 2.0"),
        (np.float32(2), "float32 2.0"),
        ("3", "str '3'"),
        (b"3" * 50, "bytes b'" + "3" * 40 + "'..."),
        (None, "None"),
        (Decimal(3), "Decimal"),
        (np.timedelta64(3, "s"), "timedelta64 3 seconds"),
        (3j, "complex"),
        ({}, "dict"),
    ],
)
def test_other_types_are_no_ints(value: object, got: str) -> None:
    message = refusal(INT, value, InputTypeError)

    assert message == f"be an int, got {got}; use int(value) if that is what you mean"


@pytest.mark.parametrize("value", [[1, 2], (1,)])
@pytest.mark.parametrize("column", [INT, FLOAT, BOOL])
def test_a_batch_where_one_value_belongs_is_refused_with_that_remedy(
    column: Column, value: object
) -> None:
    message = refusal(column, value, InputTypeError)

    assert f"got {type(value).__name__}; one call carries one value, not a batch" in message


@pytest.mark.parametrize(
    ("value", "got"),
    [(np.array(3), "ndarray of shape ()"), (torch.tensor([3]), "Tensor of shape (1,)")],
)
def test_an_array_is_no_scalar_and_the_remedy_is_item(value: object, got: str) -> None:
    for column in (INT, FLOAT, BOOL):
        message = refusal(column, value, InputTypeError)

        assert message.endswith(f"got {got}; use .item() if it holds one number")


# floats


@given(st.floats())
def test_every_float_comes_back_with_its_bits(number: float) -> None:
    canonical = FLOAT.coerce(number, SUBJECT)

    assert type(canonical) is float
    assert np.float64(canonical).tobytes() == np.float64(number).tobytes()


@given(st.integers(-(2**1000), 2**1000))
def test_ints_are_floats_too(number: int) -> None:
    canonical = FLOAT.coerce(number, SUBJECT)

    assert type(canonical) is float
    assert canonical == float(number)


@pytest.mark.parametrize(
    "value", [np.float16(1.5), np.float32(1.5), np.float64(1.5), np.longdouble(1.5)]
)
def test_numpy_floats_become_exact_floats(value: object) -> None:
    canonical = FLOAT.coerce(value, SUBJECT)

    assert canonical == 1.5
    assert type(canonical) is float


@pytest.mark.parametrize("infinity", [float("-inf"), np.float32("inf"), np.longdouble("inf")])
def test_infinities_pass(infinity: float) -> None:
    assert FLOAT.coerce(infinity, SUBJECT) == infinity


def test_an_int_too_large_for_a_float_is_refused_with_the_bound() -> None:
    message = refusal(FLOAT, 10**400, InputValueError)

    assert message == "be a float of at most 1.7976931348623157e+308, got int of 1329 bits"


@pytest.mark.skipif(
    np.finfo(np.longdouble).max == np.finfo(np.float64).max,
    reason="longdouble is no longer than float64 here",
)
def test_a_longdouble_too_large_for_a_float_is_refused() -> None:
    assert "got longdouble 1e+400" in refusal(FLOAT, np.longdouble("1e400"), InputValueError)


@pytest.mark.parametrize("value", [False, np.False_, "1.0", None, Fraction(1, 2), 1j])
def test_other_types_are_no_floats(value: object) -> None:
    message = refusal(FLOAT, value, InputTypeError)

    assert message.startswith("be a float, got ")
    assert message.endswith("use float(value) if that is what you mean")


# bools


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_bools_become_exact_bools(value: object) -> None:
    canonical = BOOL.coerce(value, SUBJECT)

    assert canonical == value
    assert type(canonical) is bool


@pytest.mark.parametrize(("value", "got"), [(1, "int 1"), (0.0, "float 0.0"), ("", "str ''")])
def test_numbers_are_no_bools(value: object, got: str) -> None:
    message = refusal(BOOL, value, InputTypeError)

    assert message == f"be a bool, got {got}; use bool(value) if that is what you mean"


# arrays


@given(st.sampled_from(NUMPY_DTYPES), st.data())
def test_arrays_of_any_strides_keep_their_content(dtype: str, data: st.DataObject) -> None:
    stack = data.draw(npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4)))
    index = data.draw(npst.basic_indices(stack.shape, allow_newaxis=True))
    value = np.asarray(stack[index]).T

    assert content(array_column(dtype, *value.shape), value) == value.tobytes()


@given(st.sampled_from(NUMPY_DTYPES), st.data())
def test_tensors_of_any_strides_keep_their_content(dtype: str, data: st.DataObject) -> None:
    array = data.draw(npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4)))
    tensor = torch.from_numpy(array).permute(tuple(reversed(range(array.ndim))))

    assert content(array_column(dtype, *tensor.shape), tensor) == array.T.tobytes()


@given(
    st.sampled_from(RAW_NAMES), npst.array_shapes(min_dims=0, min_side=0, max_side=4), st.data()
)
def test_raw_tensors_of_any_strides_keep_their_content(
    dtype: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    column = array_column(dtype, *shape)
    bits = data.draw(npst.arrays(column.wire_dtype, shape[::-1]))
    tensor = torch.from_numpy(bits).view(getattr(torch, dtype))
    tensor = tensor.permute(tuple(reversed(range(len(shape)))))

    assert content(column, tensor) == bits.T.tobytes()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_columns_of_either_library_take_arrays_and_tensors(library: str) -> None:
    column = array_column("float32", 2, library=library)

    assert content(column, np.ones(2, "float32")) == content(column, torch.ones(2))


def test_contiguous_values_are_not_copied() -> None:
    array, tensor = np.ones((3, 4), "float32"), torch.ones(3, 4)
    raw = torch.ones(3, 4, dtype=torch.bfloat16)

    assert np.shares_memory(IMAGE.coerce(array, SUBJECT), array)
    assert np.shares_memory(IMAGE.coerce(tensor, SUBJECT), tensor.numpy())
    raw_column = array_column("bfloat16", 3, 4)
    coerced = raw_column.coerce(raw, SUBJECT)
    assert np.shares_memory(np.asarray(coerced), raw.view(torch.uint16).numpy())
    assert raw_column.coerce(coerced, SUBJECT) is coerced  # once it is what the core takes


def test_not_a_number_and_infinities_pass_in_arrays() -> None:
    value = np.array([np.nan, np.inf, -np.inf], "float32")

    assert content(array_column("float32", 3), value) == value.tobytes()


def test_empty_arrays_pass() -> None:
    for dtype in ("float32", "bfloat16"):
        column = array_column(dtype, 0, 7)

        assert content(column, torch.ones(0, 7, dtype=getattr(torch, dtype))) == b""


def test_a_tensor_that_requires_a_gradient_is_detached() -> None:
    tensor = torch.ones(3, 4, requires_grad=True)
    raw = torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True)

    assert content(IMAGE, tensor) == np.ones((3, 4), "float32").tobytes()
    assert content(array_column("bfloat16", 3, 4), raw) == b"\x80\x3f" * 12
    assert tensor.requires_grad


def test_a_parameter_of_a_module_passes() -> None:
    weight = torch.nn.Linear(4, 3).weight

    assert content(IMAGE, weight) == weight.detach().numpy().tobytes()


def test_lazy_conjugation_and_negation_of_tensors_are_resolved() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()

    assert content(array_column("complex64", 2), tensor) == (
        np.array([1 - 2j, 3 + 4j], "complex64").tobytes()
    )
    assert content(array_column("float32", 2), tensor.imag) == (
        np.array([-2, 4], "float32").tobytes()
    )


def test_a_numpy_scalar_is_an_array_without_axes() -> None:
    assert content(array_column("float32"), np.float32(1.5)) == np.float32(1.5).tobytes()


def test_a_subclass_of_ndarray_leaves_as_an_ndarray(tmp_path: Any) -> None:
    value = np.memmap(tmp_path / "values", "float32", "w+", shape=(3, 4))

    assert content(IMAGE, value) == bytes(48)


def test_an_alias_of_a_dtype_leaves_under_its_own_name() -> None:
    canonical = array_column("int64", 2).coerce(np.ones(2, "longlong"), SUBJECT)

    assert isinstance(canonical, np.ndarray)
    assert canonical.dtype.char == np.dtype("int64").char


def test_a_wrong_dtype_is_refused_with_both_and_astype() -> None:
    message = refusal(IMAGE, np.ones((3, 4)), InputTypeError)

    assert message == "have dtype float32, got float64; use .astype('float32')"


def test_a_wrong_dtype_of_a_tensor_is_refused_with_both_and_to() -> None:
    message = refusal(IMAGE, torch.ones(3, 4, dtype=torch.float16), InputTypeError)

    assert message == "have dtype float32, got float16; use .to(torch.float32)"


@pytest.mark.parametrize("dtype", [*NUMPY_DTYPES, *RAW_NAMES])
def test_nothing_but_the_exact_dtype_passes(dtype: str) -> None:
    column = array_column(dtype, 2)
    for other in [*NUMPY_DTYPES, *RAW_NAMES]:
        tensor = torch.zeros(2, dtype=getattr(torch, other))
        if other == dtype:
            assert content(column, tensor) == bytes(column.nbytes)
        else:
            refusal(column, tensor, InputTypeError)


def test_an_object_array_is_refused() -> None:
    assert "got object" in refusal(IMAGE, np.ones((3, 4), object), InputTypeError)


def test_foreign_byte_order_is_refused_with_astype() -> None:
    swapped = np.ones((3, 4), np.dtype("float32").newbyteorder("S"))
    message = refusal(IMAGE, swapped, InputTypeError)

    assert message.startswith("have native byte order, got dtype ")
    assert message.endswith("; use .astype('float32')")


def test_a_numpy_array_for_a_dtype_that_numpy_lacks_is_refused_with_the_way() -> None:
    for array in (np.ones(4, "float32"), np.ones(4, "uint16")):
        message = refusal(array_column("bfloat16", 4), array, InputTypeError)

        assert message == (
            f"have dtype bfloat16, which numpy lacks, got {array.dtype}; "
            "use torch.from_numpy(value).to(torch.bfloat16)"
        )


def test_a_masked_array_is_refused_with_filled() -> None:
    masked = np.ma.masked_array(np.ones((3, 4), "float32"), mask=True)

    assert refusal(IMAGE, masked, InputTypeError) == (
        "be an array without a mask, got a masked array; use .filled()"
    )


@pytest.mark.parametrize("make", [np.zeros, lambda shape, _: torch.zeros(shape)])
def test_a_wrong_shape_is_refused_with_both(make: Callable[[Any, str], object]) -> None:
    message = refusal(IMAGE, make((4, 3), "float32"), InputValueError)

    assert message == (
        "have shape (3, 4), got (4, 3); reshape it, or change the annotation "
        'Float32[Tensor, "batch 3 4"]'
    )


@pytest.mark.parametrize("shape", [(), (12,), (3,), (3, 4, 1), (0, 4)])
def test_nothing_but_the_exact_shape_passes(shape: tuple[int, ...]) -> None:
    for value in (np.zeros(shape, "float32"), torch.zeros(shape)):
        assert f"got {shape}" in refusal(IMAGE, value, InputValueError)


def test_a_raw_tensor_of_wrong_shape_is_refused() -> None:
    value = torch.zeros(4, 3, dtype=torch.bfloat16)

    assert "got (4, 3)" in refusal(array_column("bfloat16", 3, 4), value, InputValueError)


@pytest.mark.parametrize(
    "bytes_of",
    [lambda raw: raw[::2], lambda raw: raw[:24].cast("c", (2, 12))],
    ids=["steps", "2-D"],
)
def test_bytes_that_the_core_would_not_take_are_refused_for_a_raw_tensor(
    bytes_of: Callable[[memoryview[bytes]], memoryview[bytes]],
) -> None:
    with pytest.raises(InputError, match="must be"):
        array_column("bfloat16", 3, 4).coerce(bytes_of(memoryview(bytes(48)).cast("c")), SUBJECT)


def test_a_stack_where_one_value_belongs_is_refused_with_that_remedy() -> None:
    message = refusal(IMAGE, np.zeros((8, 3, 4), "float32"), InputValueError)

    assert message == (
        "have shape (3, 4), got (8, 3, 4); one call carries one value, without the batch axis"
    )


def test_a_tensor_on_a_gpu_is_refused_with_cpu() -> None:
    for dtype in ("float32", "bfloat16"):
        with FakeTensorMode():  # says that it is on a GPU, and needs none
            tensor = torch.zeros(3, 4, dtype=getattr(torch, dtype), device="cuda")
        message = refusal(array_column(dtype, 3, 4), tensor, InputTypeError)

        assert message == "be on the CPU, got a tensor on cuda:0; use .cpu()"


def test_a_tensor_without_data_is_refused() -> None:
    message = refusal(IMAGE, torch.zeros(3, 4, device="meta"), InputTypeError)

    assert message == "hold data, got a tensor on meta"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_are_refused_with_to_dense() -> None:
    for tensor in (torch.ones(3, 4).to_sparse(), torch.ones(3, 4).to_sparse_csr()):
        message = refusal(IMAGE, tensor, InputTypeError)

        assert message == f"be dense, got a tensor of layout {tensor.layout}; use .to_dense()"


def test_a_tensor_that_cannot_be_read_is_refused_with_torchs_reason() -> None:
    with FakeTensorMode():
        tensor = torch.zeros(3, 4)
    message = refusal(IMAGE, tensor, InputTypeError)

    assert message.startswith("be a plain tensor, got FakeTensor: ")


def test_lists_and_scalars_are_refused_with_the_way_to_make_an_array() -> None:
    values = [([[1.0]], "list"), (1.5, "float 1.5"), (None, "None"), (range(3), "range")]
    for value, got in values:
        message = refusal(array_column("float32", 3, library="numpy"), value, InputTypeError)

        assert message == (
            f"be an array of dtype float32 and shape (3,), got {got}; "
            "use numpy.asarray(value, dtype='float32')"
        )


def test_lists_for_a_tensor_are_refused_with_the_way_to_make_a_tensor() -> None:
    message = refusal(array_column("bfloat16", 3), [1, 2, 3], InputTypeError)

    assert message == (
        "be a tensor of dtype bfloat16 and shape (3,), got list; "
        "use torch.tensor(value, dtype=torch.bfloat16)"
    )


def test_no_torch_is_imported_to_refuse_or_accept() -> None:
    program = """
import sys
import numpy
from shmbatch.contract.columns import Column
from shmbatch.errors import InputTypeError

column = Column("xs", "array", "torch", "float32", (2,))
column.coerce(numpy.ones(2, "float32"), "x")
try:
    column.coerce([1.0, 2.0], "x")
except InputTypeError:
    print("torch" in sys.modules, "msgspec" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "False False\n"
