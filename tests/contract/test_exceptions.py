"""An exception arrives as itself or as a `RemoteError`, within its limit, whatever it does."""

from __future__ import annotations

import builtins
import dataclasses
import datetime
import json
import sys
import threading
import types
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.contract import exceptions
from shmbatch.contract.exceptions import MIN_LIMIT, pack_exception, unpack_exception
from shmbatch.errors import BatchResultError, RemoteError

AMPLE = 100_000


class Plain(Exception):
    pass


class WordsAround(Exception):
    """Its args are the message, its __init__ makes a message of its argument."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Mute(Exception):
    """Cannot say anything without what only its __init__ sets."""

    def __init__(self, code: int, *, reason: str) -> None:
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Reduced(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code, self.reason = code, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.code, self.reason)


class MadeElsewhere(Exception):
    def __reduce__(self) -> Any:
        return print, ("not", "these")


class Placed(Exception):
    place = "executor"

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"{getattr(self, 'code', 'nothing')} in the {self.place}"


class Impostor(Exception):
    """Calling it gives no exception at all."""

    def __new__(cls, text: str) -> Any:
        return text


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Hostile(Exception):
    """Every method that packing could call leaves through the back door."""

    def __str__(self) -> str:
        raise SystemExit("no")

    def __repr__(self) -> str:
        raise SystemExit("no")

    def __reduce__(self) -> Any:
        raise SystemExit("no")


class Unprintable:
    def __repr__(self) -> str:
        raise SystemExit("no")


class OnlyHere(Exception):
    class Nested(Exception):
        pass


def raised(error: BaseException) -> BaseException:
    """Return *error* with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def travel(error: BaseException, limit: int = AMPLE) -> Exception:
    packed = pack_exception(error, limit)
    assert len(packed) <= limit
    return unpack_exception(packed)


# rebuilt as itself


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        ValueError(),
        KeyError("key"),
        KeyError(3),
        ZeroDivisionError("division by zero"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        AssertionError(None),
        TypeError("two", 2, 2.5, b"bytes", True),
        Plain({"a": [1, 2]}),
        OnlyHere.Nested("nested"),
        BatchResultError("2 results for 3 inputs"),
        torch.OutOfMemoryError("no memory"),
        np.linalg.LinAlgError("singular"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_classes_that_this_process_has_are_rebuilt(error: Exception) -> None:
    arrived = travel(raised(error))

    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert arrived is not error


def test_the_traceback_of_the_executor_stands_in_the_notes() -> None:
    (note,) = travel(raised(ValueError("bad"))).__notes__

    assert note.startswith("executor traceback:\nTraceback (most recent call last):\n")
    assert "in raised\n    raise error" in note
    assert note.endswith("\nValueError: bad")


def test_causes_and_notes_stand_in_the_traceback() -> None:
    error = ValueError("bad")
    error.__cause__ = KeyError("why")
    error.add_note("a hint")

    (note,) = travel(raised(error)).__notes__

    assert "KeyError: 'why'\n\nThe above exception was the direct cause" in note
    assert note.endswith("ValueError: bad\na hint")


def test_every_caller_gets_an_instance_of_its_own() -> None:
    packed = pack_exception(raised(ValueError("bad")), AMPLE)

    assert unpack_exception(packed) is not unpack_exception(packed)


def test_a_message_that_its_class_would_decorate_again_arrives_as_it_was() -> None:
    arrived = travel(WordsAround(5))

    assert type(arrived) is WordsAround
    assert str(arrived) == "code 5"


def test_a_class_that_cannot_be_called_with_its_args_is_rebuilt_without_init() -> None:
    arrived = travel(KeywordOnly(code=5))

    assert type(arrived) is KeywordOnly
    assert str(arrived) == "code 5"
    assert arrived.args == ("code 5",)


def test_a_class_that_says_how_to_rebuild_it_is_rebuilt_that_way() -> None:
    arrived = travel(Reduced(5, "late"))

    assert isinstance(arrived, Reduced)
    assert (arrived.code, str(arrived)) == (5, "late (5)")


def test_a_class_that_only_something_else_rebuilds_is_called_with_its_args() -> None:
    arrived = travel(MadeElsewhere("text"))

    assert type(arrived) is MadeElsewhere
    assert arrived.args == ("text",)


def test_what_init_sets_is_kept_even_where_the_text_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pack_exception(Placed(5), AMPLE)
    monkeypatch.setattr(Placed, "place", "producer")

    assert str(unpack_exception(packed)) == "5 in the producer"


def test_file_names_of_operating_system_errors_survive() -> None:
    arrived = travel(FileNotFoundError(2, "No such file or directory", "gone.txt"))

    assert type(arrived) is FileNotFoundError
    assert arrived.filename == "gone.txt"
    assert str(arrived) == "[Errno 2] No such file or directory: 'gone.txt'"


def test_errors_of_the_json_module_keep_their_position() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("[1,")

    arrived = travel(caught.value)

    assert isinstance(arrived, json.JSONDecodeError)
    assert (str(arrived), arrived.pos) == (str(caught.value), caught.value.pos)


def test_an_exception_that_takes_no_notes_still_arrives() -> None:
    arrived = travel(raised(Frozen(5)))

    assert arrived == Frozen(5)


def test_arguments_that_messagepack_lacks_become_their_repr() -> None:
    arrived = travel(Plain(threading.Lock, 1j, "text", 2**70, "\ud800"))

    assert arrived.args == (repr(threading.Lock), "1j", "text", str(2**70), "\\ud800")


def test_an_array_among_the_arguments_becomes_its_repr() -> None:
    array = np.zeros(3)

    assert travel(Plain(array)).args == (repr(array),)


def test_text_that_utf8_cannot_carry_arrives_escaped() -> None:
    assert str(travel(KeywordOnly(code="\ud800"))) == "code \\ud800"


def test_dates_and_tuples_become_what_messagepack_has() -> None:
    moment = datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC)

    assert travel(Plain(moment, (1, 2))).args == (moment, [1, 2])


def test_a_class_of_the_main_program_is_found_under_its_files_stem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = "/somewhere/sums.py"
    main.OnlyHere = OnlyHere
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(OnlyHere, "__module__", "sums")

    assert type(travel(OnlyHere("here"))) is OnlyHere

    monkeypatch.setattr(OnlyHere, "__module__", "products")
    assert type(travel(OnlyHere("here"))) is RemoteError


# a RemoteError instead


def remote(error: BaseException) -> str:
    arrived = travel(raised(error))
    assert type(arrived) is RemoteError
    assert arrived.__notes__[0].startswith("executor traceback:\n")
    assert "in raised\n" in arrived.__notes__[0]
    return str(arrived)


def test_a_class_that_this_process_lacks_becomes_a_remote_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Plain, "__module__", "their.module")

    assert remote(Plain("bad")) == "their.module.Plain: bad"


def test_a_class_inside_a_function_becomes_a_remote_error() -> None:
    class Local(Exception):
        pass

    assert remote(Local("bad")).endswith(".<locals>.Local: bad")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_becomes_a_remote_error(error: BaseException) -> None:
    assert remote(error) == f"builtins.{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [StopIteration(3), StopAsyncIteration()])
def test_what_would_end_a_loop_becomes_a_remote_error(error: Exception) -> None:
    assert remote(error) == f"builtins.{type(error).__name__}: {error}"


def test_an_exception_that_cannot_speak_without_init_becomes_a_remote_error() -> None:
    assert remote(Mute(5, reason="late")).endswith(".Mute: late")


def test_a_class_whose_call_gives_no_exception_becomes_a_remote_error() -> None:
    assert remote(Exception.__new__(Impostor, "text")).endswith(".Impostor: text")


def test_control_c_during_the_rebuilding_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_exception(Plain("bad"), AMPLE)

    def interrupted(self: Plain, *args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plain, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack_exception(packed)


def test_an_exception_group_becomes_a_remote_error() -> None:
    error = ExceptionGroup("several", [ValueError("one")])

    assert remote(error) == "builtins.ExceptionGroup: several (1 sub-exception)"


def test_a_module_is_not_asked_for_what_it_would_import(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = types.ModuleType("lazy")
    asked = []
    lazy.__getattr__ = lambda name: asked.append(name) or Plain
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    monkeypatch.setattr(Plain, "__module__", "lazy")

    assert remote(Plain("bad")) == "lazy.Plain: bad"
    assert asked == []


def test_a_name_that_is_no_exception_class_is_not_called() -> None:
    for module, qualname in [
        ("builtins", "print"),
        ("builtins", "int"),
        ("builtins", ""),
        ("os", "system"),
        ("", ""),
        ("builtins", "ValueError.__init__"),
        ("builtins", "ValueError.args"),
    ]:
        arrived = unpack_exception(msgspec.msgpack.encode([module, qualname, ["x"], "m", ""]))

        assert type(arrived) is RemoteError
        assert str(arrived) == f"{module}.{qualname}: m"
        assert not hasattr(arrived, "__notes__")


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)

    arrived = unpack_exception(msgspec.msgpack.encode(["tabnanny", "NannyNag", None, "m", ""]))

    assert type(arrived) is RemoteError
    assert "tabnanny" not in sys.modules


# limits

texts = st.text(st.characters(), max_size=2000)  # lone surrogates included
arguments = st.one_of(
    texts,
    st.none(),
    st.integers(),
    st.floats(),
    st.binary(max_size=1000),
    st.lists(texts, max_size=3),
)


@given(
    st.sampled_from([ValueError, KeyError, OSError, Plain, SystemExit]),
    st.lists(arguments, max_size=4),
    st.integers(MIN_LIMIT, 5000),
)
def test_every_exception_fits_its_limit_and_arrives(
    cls: type[BaseException], args: list[object], limit: int
) -> None:
    error = raised(cls(*args))

    arrived = travel(error, limit)

    assert type(arrived) in (type(error), RemoteError)


def test_long_tracebacks_lose_their_beginning() -> None:
    def deeper(level: int) -> None:
        if level == 0:
            raise ValueError("the bottom")
        (even if level % 2 else odd)(level)

    def even(level: int) -> None:
        deeper(level - 1)

    def odd(level: int) -> None:
        deeper(level - 1)

    with pytest.raises(ValueError, match="bottom") as caught:
        deeper(60)
    limit = 1000

    packed = pack_exception(caught.value, limit)
    (note,) = unpack_exception(packed).__notes__

    assert limit - 8 <= len(packed) <= limit  # what room there is is used
    assert note.startswith("executor traceback:\n[...]")
    assert note.endswith('raise ValueError("the bottom")\nValueError: the bottom')


def test_a_long_message_outlives_the_traceback_and_is_cut_at_its_end() -> None:
    arrived = travel(raised(ValueError("é" * 1000)), 2100)
    assert str(arrived) == "é" * 1000

    arrived = travel(raised(ValueError("é" * 1000)), 500)
    assert type(arrived) is ValueError
    assert str(arrived).removesuffix("[...]").strip("é") == ""
    assert 200 < len(str(arrived)) < 240


def test_long_arguments_are_given_up_before_the_message() -> None:
    arrived = travel(Plain("short", b"x" * 5000), 600)

    assert type(arrived) is Plain
    assert str(arrived).startswith("('short', b'xxx")
    assert str(arrived).endswith("x[...]")


def test_arguments_are_given_up_and_the_traceback_kept_where_that_is_enough() -> None:
    class Long(Exception):
        def __str__(self) -> str:
            return "brief"

    arrived = travel(raised(Long(b"x" * 5000)), 1000)

    assert str(arrived).endswith("Long: brief")
    assert arrived.__notes__[0].endswith("Long: brief")


def test_a_class_path_that_does_not_fit_is_cut() -> None:
    long = type("L" * 1000, (Exception,), {"__module__": "m" * 1000})

    assert str(travel(long("bad"), MIN_LIMIT)) == f"{'m' * 55}[...].{'L' * 55}[...]: bad"


@pytest.mark.parametrize("nbytes", [30, 31, 32, 33, 254, 255, 256, 257, 65535, 65536, 65537])
def test_the_limit_holds_where_messagepack_changes_its_headers(nbytes: int) -> None:
    error = ValueError("x" * nbytes)
    exact = len(pack_exception(error, 10**6))

    for limit in range(max(exact - 6, MIN_LIMIT), max(exact, MIN_LIMIT) + 2):
        travel(error, limit)
    whole = max(exact, MIN_LIMIT)
    assert pack_exception(error, whole) == pack_exception(error, 10**6)


@pytest.mark.parametrize("nbytes", [0, 1, 31, 32, 255, 256, 65535, 65536])
def test_the_length_of_a_string_in_messagepack_is_known_exactly(nbytes: int) -> None:
    empty, full = msgspec.msgpack.encode(""), msgspec.msgpack.encode("x" * nbytes)

    assert exceptions._growth(nbytes) == len(full) - len(empty)


# hostile content


def test_an_exception_whose_methods_exit_is_packed_all_the_same() -> None:
    arrived = travel(raised(Hostile("x")))

    assert type(arrived) is RemoteError
    assert str(arrived).endswith(".Hostile: <SystemExit while it was described>")


def test_an_argument_whose_repr_exits_is_packed_all_the_same() -> None:
    assert travel(Plain("x", Unprintable())).args == ("x", "<SystemExit while it was described>")


def test_an_argument_that_holds_itself_is_packed_all_the_same() -> None:
    loop: list[object] = []
    loop.append(loop)

    assert travel(Plain("x", loop)).args == ("x", "[[...]]")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x95",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x93\xa0\xa0" + b"\x91" * 100_000,
        msgspec.msgpack.encode(["builtins", "ValueError", None, "m"]),
        msgspec.msgpack.encode(["builtins", "ValueError", {}, "m", ""]),
        msgspec.msgpack.encode([1, "ValueError", None, "m", ""]),
        msgspec.msgpack.encode({"module": "builtins"}),
    ],
    ids=lambda data: str(data[:12]),
)
def test_bytes_that_are_no_exception_become_a_remote_error(data: bytes) -> None:
    arrived = unpack_exception(data)

    assert type(arrived) is RemoteError
    assert f"an exception arrived as {len(data)} bytes that are not one" in str(arrived)


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_remote_error(data: bytes) -> None:
    assert isinstance(unpack_exception(data), RemoteError)


class_names = st.sampled_from(
    [name for name, value in vars(builtins).items() if isinstance(value, type)]
)


@given(
    class_names,
    st.none() | st.lists(st.none() | st.integers(0, 9) | st.text() | st.binary(), max_size=6),
    st.text(),
)
def test_no_builtin_with_any_arguments_does_worse_than_a_remote_error(
    qualname: str, args: list[object] | None, message: str
) -> None:
    arrived = unpack_exception(msgspec.msgpack.encode(["builtins", qualname, args, message, "t"]))

    if type(arrived) is RemoteError:
        assert str(arrived) == f"builtins.{qualname}: {message}"
    else:
        assert isinstance(arrived, getattr(builtins, qualname))
        str(arrived)


@given(st.data())
def test_damaged_bytes_become_some_exception(data: st.DataObject) -> None:
    packed = bytearray(pack_exception(raised(ValueError("bad", 3)), 1000))
    for _ in range(data.draw(st.integers(1, 8))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))

    arrived = unpack_exception(bytes(packed))

    assert isinstance(arrived, Exception)
    assert isinstance(str(arrived), str)
