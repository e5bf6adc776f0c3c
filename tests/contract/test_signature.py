"""Which functions can be batched, how calls bind to them, and every refusal."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

from shmbatch.contract.columns import Column
from shmbatch.contract.options import ValueOptions, value_options
from shmbatch.contract.signature import Signature, signature_of, source_file
from shmbatch.errors import ConfigError, InputTypeError, ProtocolError

if TYPE_CHECKING:
    from nowhere import Missing

XS = Column("xs", "int", "", "int64", ())
YS = Column("ys", "int", "", "int64", ())
RESULT = Column("result", "int", "", "int64", ())
ADD = Signature((XS, YS), RESULT)


def refusal(function: Callable[..., Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        signature_of(function, "sums.f")
    message = str(caught.value)
    assert "sums.f" in message
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def misfit(*args: object, **kwargs: object) -> str:
    with pytest.raises(InputTypeError) as caught:
        ADD.bind(args, kwargs, "sums.add")
    message = str(caught.value)
    assert message.startswith("sums.add() ")
    assert message.endswith(
        "; give one value of each list or stack in (xs: list[int], ys: list[int]) -> list[int]"
    )
    return message.removeprefix("sums.add() ").partition(";")[0]


# reading


def test_a_function_is_read_in_the_order_of_its_definition() -> None:
    def add(xs: list[int], ys: list[int]) -> list[int]: ...

    assert signature_of(add, "sums.add") == ADD
    assert ADD.describe() == "(xs: list[int], ys: list[int]) -> list[int]"


def test_async_functions_are_read_the_same_way() -> None:
    async def add(xs: list[int], ys: list[int]) -> list[int]: ...

    assert signature_of(add, "sums.add") == ADD


def test_parameters_may_be_positional_only() -> None:
    def add(xs: list[int], ys: list[int], /) -> list[int]: ...

    assert signature_of(add, "sums.add") == ADD


def test_arrays_and_scalars_mix() -> None:
    def classify(
        images: Float32[Tensor, "batch 3 8"],  # noqa: F722
        ids: Int64[np.ndarray, "batch"],  # noqa: F821, UP037
        hot: list[bool],
    ) -> Float32[Tensor, "batch 10"]: ...  # noqa: F722

    assert signature_of(classify, "digits.classify").describe() == (
        '(images: Float32[Tensor, "batch 3 8"], ids: Int64[np.ndarray, "batch"], '
        'hot: list[bool]) -> Float32[Tensor, "batch 10"]'
    )


def test_a_decorator_that_wraps_does_not_hide_the_signature() -> None:
    @torch.inference_mode()
    def add(xs: list[int], ys: list[int]) -> list[int]: ...

    assert signature_of(add, "sums.add") == ADD


def test_a_parameter_may_be_called_result() -> None:
    def double(result: list[int]) -> list[int]: ...

    signature = signature_of(double, "sums.double")

    assert Signature.from_message(signature.to_message()) == signature


# refusals at definition


def test_a_generator_is_refused() -> None:
    def f(xs: list[int]) -> Iterator[int]:
        yield from xs

    assert refusal(f) == (
        "sums.f is a generator, which gives its results one by one; "
        "return a list with one result per input"
    )


def test_an_async_generator_is_refused() -> None:
    async def f(xs: list[int]) -> AsyncIterator[int]:
        yield xs[0]

    assert refusal(f).startswith("sums.f is a generator")


def test_a_class_is_refused() -> None:
    class Adder:
        def add(self, xs: list[int]) -> list[int]: ...

    assert refusal(Adder) == "sums.f is a class; decorate its batched methods instead"


@pytest.mark.parametrize("thing", [len, functools.partial(print, "x"), np.add])
def test_what_is_no_python_function_is_refused_with_its_type(thing: Callable[..., Any]) -> None:
    assert refusal(thing) == (
        f"sums.f is of type {type(thing).__name__}; write it with def or async def"
    )


def test_no_parameters_are_refused() -> None:
    def f() -> list[int]: ...

    assert refusal(f) == "sums.f has no parameters; a batch needs at least 1 list or stack"


def test_variable_positional_parameters_are_refused() -> None:
    def f(xs: list[int], *rest: list[int]) -> list[int]: ...

    assert refusal(f).startswith("sums.f takes *rest; name each parameter")


def test_variable_keyword_parameters_are_refused() -> None:
    def f(xs: list[int], **options: list[int]) -> list[int]: ...

    assert refusal(f).startswith("sums.f takes **options; name each parameter")


def test_keyword_only_parameters_are_refused() -> None:
    def f(xs: list[int], *, ys: list[int]) -> list[int]: ...

    assert refusal(f).startswith("parameter 'ys' of sums.f is keyword-only")


def test_default_arguments_are_refused() -> None:
    def f(xs: list[int], ys: list[int] = [1]) -> list[int]: ...  # noqa: B006

    assert refusal(f) == (
        "parameter 'ys' of sums.f has a default, but in a batch every call gives a value; "
        "drop the default"
    )


def test_a_default_of_none_is_refused_as_well() -> None:
    def f(xs: list[int] = None) -> list[int]: ...  # noqa: RUF013

    assert refusal(f).startswith("parameter 'xs' of sums.f has a default")


def test_more_parameters_than_the_core_has_columns_are_refused() -> None:
    names = ", ".join(f"x{number}: list[int]" for number in range(65))
    scope: dict[str, Any] = {}
    exec(f"def f({names}) -> list[int]: ...", scope)

    assert refusal(scope["f"]) == "sums.f has 65 parameters; use at most 64"


def test_without_annotation_values_are_what_messagepack_has() -> None:
    def f(xs: list[int], ys): ...

    assert signature_of(f, "sums.f").describe() == "(xs: list[int], ys: list) -> list"


def test_an_annotation_that_is_not_supported_is_refused() -> None:
    def f(xs: dict[str, int]) -> list[int]: ...

    assert refusal(f).startswith("parameter 'xs' of sums.f has annotation dict[str, int]; supp")


def options(**said: Any) -> ValueOptions:
    return value_options(**said)


def test_a_length_for_an_axis_that_is_not_there_is_refused() -> None:
    def f(xs: Float32[np.ndarray, "batch seq"]) -> list[int]: ...  # noqa: F722

    said = options(max_lengths={"seq": 3, "sq": 4})
    with pytest.raises(ConfigError) as caught:
        signature_of(f, "sums.f", said)
    assert str(caught.value) == (
        "max_lengths has 'sq', which is no axis of a value of sums.f (named axes are seq, beside "
        "the first, which is the batch); drop it"
    )

    def g(xs: list[int]) -> list[int]: ...

    with pytest.raises(ConfigError, match=r"'seq', which is no axis .*no axis is named"):
        signature_of(g, "sums.g", options(max_lengths={"seq": 3}))


def test_an_axis_without_a_greatest_length_is_refused() -> None:
    def f(xs: Float32[np.ndarray, "batch seq 16"]) -> list[int]: ...  # noqa: F722

    assert refusal(f).endswith(
        "whose axis 'seq' has no maximum; add max_lengths={\"seq\": ...}, "
        "or write the axis as an integer"
    )


def test_padding_without_a_named_axis_is_refused() -> None:
    def f(xs: list[int]) -> list[int]: ...

    with pytest.raises(ConfigError, match=r"ragged='pad' means nothing for sums\.f, which "):
        signature_of(f, "sums.f", options(ragged="pad"))


def test_with_a_codec_every_value_is_pickled() -> None:
    def f(xs: Float32[np.ndarray, "batch 3"], ys: list[complex], zs) -> list[int]: ...  # noqa: F722

    signature = signature_of(f, "sums.f", options(codec="pickle", max_bytes=10))

    assert {column.kind for column in (*signature.parameters, signature.result)} == {"pickle"}
    assert {column.max_bytes for column in signature.parameters} == {10}


def test_a_mismatch_of_options_says_which() -> None:
    def f(xs: list[str]) -> list[int]: ...

    ours, theirs = (signature_of(f, "f", options(max_bytes=size)) for size in (10, 20))

    assert str(ours.mismatch(theirs, "sums.f")) == (
        "'sums.f' is (xs: list[str]) -> list[int] in the executor and in this producer, but "
        "differs for 'xs' in max_bytes 10 and 20; restart the one with the older file"
    )


def test_a_result_of_none_is_refused() -> None:
    def f(xs: list[int]) -> None: ...

    assert refusal(f).startswith("result of sums.f has annotation None; supported")


def test_an_annotation_that_cannot_be_resolved_is_refused_naming_the_parameter() -> None:
    def f(xs: Float32[Tensor, "batch"], ys: list[Missing]) -> list[int]: ...  # noqa: F821, UP037

    assert refusal(f) == (
        "annotation of parameter 'ys' of sums.f cannot be resolved (NameError: name 'Missing' is "
        "not defined); annotate with names that the module has when it runs"
    )


def test_a_result_that_cannot_be_resolved_is_refused() -> None:
    def f(xs: list[int]) -> Missing: ...

    assert refusal(f).startswith("annotation of the result of sums.f cannot be resolved")


def test_an_annotation_with_a_mistake_in_it_is_refused_with_that() -> None:
    def f(xs: list[int]) -> list[int]: ...

    f.__annotations__["xs"] = "list[int"

    assert "annotation of parameter 'xs' of sums.f cannot be resolved (Syntax" in refusal(f)


# source files


def test_the_source_file_is_where_the_function_stands() -> None:
    def f(xs: list[int]) -> list[int]: ...

    assert source_file(f) == Path(__file__).resolve()
    scope: dict[str, Any] = {}
    exec("def wrapper(xs): return f(xs)", scope)
    assert source_file(functools.wraps(f)(scope["wrapper"])) == Path(__file__).resolve()


@pytest.mark.parametrize("filename", ["<stdin>", "<string>", "<ipython-input-1-2>", "gone.py"])
def test_a_function_without_a_file_is_refused_with_put_it_in_a_file(filename: str) -> None:
    scope: dict[str, Any] = {"__name__": "session"}
    exec(compile("def f(xs: list[int]) -> list[int]: ...", filename, "exec"), scope)

    with pytest.raises(ConfigError) as caught:
        source_file(scope["f"])

    assert str(caught.value) == (
        f"f was not defined in a file (its source is {filename!r}), "
        "so no executor can import it; put it in a file"
    )


def test_a_function_of_a_main_module_without_a_file_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def f(xs: list[int]) -> list[int]: ...

    f.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))

    with pytest.raises(ConfigError, match="put it in a file"):
        source_file(f)


def test_what_has_no_code_is_refused() -> None:
    with pytest.raises(ConfigError, match="its source is 'unknown'"):
        source_file(len)


def test_a_session_on_standard_input_is_refused() -> None:
    program = """
from shmbatch.contract.signature import source_file
from shmbatch.errors import ConfigError

def f(xs: list[int]) -> list[int]: ...
try:
    source_file(f)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, check=True
    )

    assert "its source is '<stdin>'" in done.stdout
    assert "put it in a file" in done.stdout


# binding


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, 2), {}), ((1,), {"ys": 2}), ((), {"xs": 1, "ys": 2}), ((), {"ys": 2, "xs": 1})],
)
def test_arguments_bind_by_position_and_by_name(
    args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    assert ADD.bind(args, kwargs, "sums.add") == (1, 2)


def test_too_many_arguments_are_refused_with_both_counts() -> None:
    assert misfit(1, 2, 3) == "takes 2 arguments, 3 were given"


def test_missing_arguments_are_refused_by_name() -> None:
    assert misfit(1) == "takes 2 arguments, missing 'ys'"
    assert misfit() == "takes 2 arguments, missing 'xs', 'ys'"


def test_an_unknown_argument_is_refused_by_name() -> None:
    assert misfit(1, ys=2, zs=3) == "got an unexpected argument 'zs'"
    assert misfit(1, zs=3) == "got an unexpected argument 'zs'"


def test_an_argument_given_twice_is_refused_by_name() -> None:
    assert misfit(1, xs=2) == "got multiple values for argument 'xs'"
    assert misfit(1, 2, ys=2) == "got multiple values for argument 'ys'"


def test_a_single_argument_is_counted_in_the_singular() -> None:
    with pytest.raises(InputTypeError, match=r"^sums\.f\(\) takes 1 argument, missing 'xs'"):
        Signature((XS,), RESULT).bind((), {}, "sums.f")


@given(
    st.integers(1, 3),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["xs", "ys", "zs", "q"]), st.integers()),
)
def test_binding_agrees_with_python(count: int, args: list[int], kwargs: dict[str, int]) -> None:
    columns = tuple(Column(name, "int", "", "int64", ()) for name in ["xs", "ys", "zs"][:count])
    python = inspect.Signature(
        [inspect.Parameter(c.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for c in columns]
    )
    try:
        expected = python.bind(*args, **kwargs).args
    except TypeError:
        with pytest.raises(InputTypeError):
            Signature(columns, RESULT).bind(tuple(args), kwargs, "sums.f")
    else:
        assert Signature(columns, RESULT).bind(tuple(args), kwargs, "sums.f") == expected


# the handshake

parameters = st.lists(
    st.builds(
        Column,
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.just("array"),
        st.sampled_from(["numpy", "torch"]),
        st.sampled_from(["bool", "uint8", "float32", "complex128"]),
        st.lists(st.integers(0, 300), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda column: column.name,
)


@given(parameters)
def test_signatures_survive_the_handshake(columns: list[Column]) -> None:
    signature = Signature(tuple(columns), RESULT)

    assert Signature.from_message(signature.to_message()) == signature


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": []},
        {"parameters": None},
        {"parameters": {"xs": XS.to_message()}},
        {"parameters": [None]},
        {"parameters": [XS.to_message(), XS.to_message()]},
        {"parameters": [XS.to_message() | {"name": f"x{n}"} for n in range(256)]},
        {"result": None},
        {"result": XS.to_message()},
        {"extra": 1},
        {"plain": None},
        {"plain": 0},
        {"defaults": [["ys", 1]]},  # in a batch every call gives a value
        {"defaults": None},
        {"defaults": {}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_malformed_signature_from_a_peer_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match=r"^a (signature|column) arrived "):
        Signature.from_message(ADD.to_message() | change)


@pytest.mark.parametrize("message", [None, [], "", 3, {}, {"parameters": [XS.to_message()]}])
def test_what_is_no_signature_is_refused(message: object) -> None:
    with pytest.raises(ProtocolError, match="a signature arrived as "):
        Signature.from_message(message)


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"parameters": plain_data, "result": plain_data}) | plain_data)
def test_no_message_does_worse_than_a_protocol_error(message: object) -> None:
    with pytest.raises(ProtocolError):
        Signature.from_message(message)


# plain methods


class Tuned:
    """What signatures of plain methods are read from."""

    def refresh(self, scale: float, by: int = 3, name: str | None = None) -> bool:
        return bool(self and scale and by and name)

    def told(self) -> None: ...

    def anything(self, value, *, loud=False): ...  # type: ignore[no-untyped-def]

    def image(self, image: Float32[np.ndarray, "3 4"]) -> Int64[np.ndarray, ""]: ...  # noqa: F722

    def row(self, row: Float32[np.ndarray, "seq 4"]) -> np.ndarray: ...  # noqa: F722


def plain(function: Callable[..., Any], options: ValueOptions | None = None) -> Signature:
    return signature_of(
        function, "sums.Tuned.f", options or ValueOptions(), method=True, plain=True
    )


REFRESH = plain(Tuned.refresh)


def test_a_plain_method_has_the_columns_of_single_values() -> None:
    assert [column.kind for column in REFRESH.parameters] == ["float", "int", "msgpack"]
    assert REFRESH.defaults == (("by", 3), ("name", None))
    assert REFRESH.describe() == "(scale: float, by: int = 3, name: str | None = None) -> bool"
    assert plain(Tuned.told).describe() == "() -> None"
    image = plain(Tuned.image)
    assert image.describe() == '(image: Float32[np.ndarray, "3 4"]) -> Int64[np.ndarray, ""]'
    assert (image.parameters[0].shape, image.result.shape) == ((3, 4), ())
    row = plain(Tuned.row, value_options(100, {"seq": 9}, "list", None))
    assert row.describe() == '(row: Float32[np.ndarray, "seq 4"]) -> np.ndarray'
    assert row.parameters[0].shape == (-9, 4)


def test_a_plain_method_without_annotations_takes_what_messagepack_has() -> None:
    def anything(self: Any, value, other=None): ...  # type: ignore[no-untyped-def]

    assert plain(anything).describe() == "(value: object, other: object = None) -> object"


def test_what_no_plain_method_can_have_is_refused() -> None:
    def refused(function: Callable[..., Any]) -> str:
        with pytest.raises(ConfigError) as caught:
            plain(function)
        return str(caught.value)

    def tensor(self: Any, x: Tensor) -> None: ...

    def unknown(self: Any, x: complex) -> None: ...

    def many(self: Any, *xs: int) -> None: ...

    def nothing() -> None: ...

    assert refused(Tuned.anything) == (
        "parameter 'loud' of sums.Tuned.f is keyword-only, values are passed by position; "
        "drop the '*'"
    )
    assert "has annotation" in refused(tensor)
    assert "arrays of fixed shape" in refused(tensor)
    assert refused(unknown).startswith("parameter 'x' of sums.Tuned.f has annotation complex")
    assert refused(many).startswith("sums.Tuned.f takes *xs; ")
    assert refused(nothing) == "sums.Tuned.f has no parameters; a method's first one is self"
    assert refused(Tuned.row).endswith(
        "whose axis 'seq' has no maximum; add max_lengths={\"seq\": ...}, "
        "or write the axis as an integer"
    )


def test_a_default_that_does_not_fit_its_parameter_is_refused_at_once() -> None:
    def refused(default: object, annotation: object) -> str:
        def f(self: Any, x: Any = default) -> None: ...

        f.__annotations__["x"] = annotation
        with pytest.raises(ConfigError) as caught:
            plain(f, value_options(8, None, "list", None))
        return str(caught.value)

    where = "the default of parameter 'x' of sums.Tuned.f"
    assert refused([], list) == f"{where} is a list; use None, a bool, a number, str or bytes"
    assert refused(2**63, int).startswith(f"{where} ")
    assert refused(True, int).startswith(f"{where} ")
    assert refused("123456789", str).startswith(f"{where} ")
    assert refused(float("nan"), float) == (
        f"{where} is nan, which equals no other in a handshake; use None"
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "bound"),
    [
        ((1.0,), {}, (1.0, 3, None)),
        ((1.0, 2), {}, (1.0, 2, None)),
        ((1.0,), {"name": "x"}, (1.0, 3, "x")),
        ((), {"scale": 1.0}, (1.0, 3, None)),
        ((), {"by": 1, "scale": 1.0, "name": None}, (1.0, 1, None)),
    ],
)
def test_what_is_not_given_has_its_default(
    args: tuple[Any, ...], kwargs: dict[str, Any], bound: tuple[Any, ...]
) -> None:
    assert REFRESH.bind(args, kwargs, "f") == bound


def test_what_has_no_default_is_missed_by_name() -> None:
    with pytest.raises(InputTypeError) as caught:
        REFRESH.bind((), {"by": 1}, "sums.Tuned.refresh")
    assert str(caught.value) == (
        "sums.Tuned.refresh() takes 3 arguments, missing 'scale'; its signature is "
        "(scale: float, by: int = 3, name: str | None = None) -> bool"
    )
    with pytest.raises(InputTypeError, match=r"takes 0 arguments, 1 were given; its signature"):
        plain(Tuned.told).bind((1,), {}, "f")


@given(
    st.integers(0, 3),
    st.lists(st.floats(), max_size=4),
    st.dictionaries(st.sampled_from(["xs", "ys", "zs", "q"]), st.floats()),
)
def test_binding_with_defaults_agrees_with_python(
    defaulted: int, args: list[float], kwargs: dict[str, float]
) -> None:
    names = ["xs", "ys", "zs"]
    columns = tuple(Column(name, "float", "", "float64", ()) for name in names)
    defaults = tuple((name, name) for name in names[3 - defaulted :])
    python = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=dict(defaults).get(name, inspect.Parameter.empty),
            )
            for name in names
        ]
    )
    signature = Signature(columns, RESULT, True, defaults)
    try:
        bound = python.bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(InputTypeError):
            signature.bind(tuple(args), kwargs, "sums.f")
    else:
        bound.apply_defaults()
        assert signature.bind(tuple(args), kwargs, "sums.f") == bound.args


@pytest.mark.parametrize(
    "each", [REFRESH, plain(Tuned.told), plain(Tuned.image), Signature((XS,), RESULT)]
)
def test_plain_signatures_survive_the_handshake_too(each: Signature) -> None:
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(each.to_message()))
    assert Signature.from_message(message) == each


@pytest.mark.parametrize(
    "change",
    [
        {"plain": False},  # and with defaults
        {"plain": 1},
        {"defaults": None},
        {"defaults": {"by": 3}},
        {"defaults": [["by", 3]]},  # not of the last
        {"defaults": [["name", None], ["by", 3]]},
        {"defaults": [["by", 3], ["name", None], ["more", 1]]},
        {"defaults": [["scale", 1.0], ["by", 3], ["name", None], ["name", None]]},
        {"defaults": [["by", [3]], ["name", None]]},
        {"defaults": [["by"], ["name", None]]},
        {"defaults": ["by", "name"]},
        {"defaults": [[["by"], 3], ["name", None]]},
    ],
    ids=lambda change: str(change)[:60],
)
def test_malformed_defaults_from_a_peer_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match=r"^a signature arrived "):
        Signature.from_message(REFRESH.to_message() | change)


def test_other_defaults_are_another_signature() -> None:
    other = Signature(REFRESH.parameters, REFRESH.result, True, (("by", 4), ("name", None)))
    assert str(REFRESH.mismatch(other, "sums.Tuned.refresh")) == (
        "'sums.Tuned.refresh' is (scale: float, by: int = 3, name: str | None = None) -> bool in "
        "the executor and (scale: float, by: int = 4, name: str | None = None) -> bool in this "
        "producer; restart the one with the older file"
    )


@given(
    st.fixed_dictionaries(
        {
            "parameters": st.just([XS.to_message()]),
            "result": st.just(RESULT.to_message()),
            "plain": plain_data,
            "defaults": plain_data,
        }
    )
)
def test_no_defaults_do_worse_than_a_protocol_error(message: dict[str, Any]) -> None:
    try:
        read = Signature.from_message(message)
    except ProtocolError:
        return
    assert read.plain is message["plain"]
    assert [list(each) for each in read.defaults] == message["defaults"]
