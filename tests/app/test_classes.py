"""Classes as they are defined: what is refused, what parameters are, and objects in this process.

What happens over executors is in tests/client/test_classes.py.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmbatch
from shmbatch.app.classes import Class
from shmbatch.app.parameters import MAX_NBYTES
from shmbatch.errors import ConfigError
from shmbatch.protocol.names import NAME_PATTERN, Address, advertise, withdraw

if TYPE_CHECKING:
    from fractions import Fraction  # no module has it when a class is read

pytestmark = pytest.mark.no_transport

batched = shmbatch.batched(max_batch_size=4, wait_ms=1)
parameter: Any = shmbatch.parameter


@pytest.fixture
def app() -> shmbatch.App:
    return shmbatch.App("sums")


def refusal(what: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        what(*args, **options)
    return str(caught.value)


class Plain:
    """What several tests make a served class of; each gets one of its own from `made`."""

    seed: int = parameter(default=0)

    def __init__(self) -> None:
        self.entered = [f"made with {self.seed}"]

    @shmbatch.enter()
    def load(self) -> None:
        self.entered.append("load")

    @shmbatch.enter()
    async def warm(self) -> None:
        await asyncio.sleep(0)
        self.entered.append("warm")

    @batched
    def act(self, xs: list[int]) -> list[int]:
        return [x + self.seed for x in xs]

    @batched
    async def act_later(self, xs: list[int]) -> list[int]:
        return self.act(xs)

    @batched
    def twice(self, xs: list[int]) -> list[int]:
        return self.act.local(self.act(xs))

    @batched
    def wrong(self, xs: list[int]) -> list[int]:
        return [self.act.remote(x) for x in xs]

    @shmbatch.method()
    def told(self) -> list[str]:
        return self.entered

    @shmbatch.exit()
    def close(self) -> None:
        self.entered.append("close")

    def helper(self) -> None: ...


@pytest.fixture
def plain(app: shmbatch.App) -> Any:
    return app.cls()(Plain)


# ---- what is refused -----------------------------------------------------------------------


def test_the_decorators_need_their_parentheses(app: shmbatch.App) -> None:
    def function(self: Any) -> None: ...

    assert refusal(lambda: app.cls(Plain)) == "app.cls takes no arguments; write @app.cls()"
    for name in ("enter", "exit"):
        decorator = getattr(shmbatch, name)
        expected = f"{name} takes no arguments; write @shmbatch.{name}()"
        assert refusal(decorator, function) == expected
        assert refusal(decorator, snap=True) == expected
    assert refusal(lambda: shmbatch.method(function)) == (
        "method takes its arguments by keyword; write @shmbatch.method()"
    )
    assert refusal(lambda: parameter(3)) == (
        "parameter takes its default by keyword; write parameter(default=...)"
    )


def test_options_of_app_cls_are_refused_by_name(app: shmbatch.App) -> None:
    assert refusal(lambda: app.cls(gpu="any", cpu=1)) == (
        "app.cls takes no gpu, cpu; options go to @shmbatch.batched(...)"
    )
    assert refusal(lambda: app.cls(image=1)) == (
        "there is no image=: everything runs on this machine, as it is; drop it"
    )


def test_what_is_no_class_is_refused(app: shmbatch.App) -> None:
    decorated: Any = refusal
    assert refusal(lambda: app.cls()(decorated)).startswith(
        "@app.cls() decorates <function refusal at "
    )
    assert refusal(lambda: app.cls()(decorated)).endswith(
        ", which is no class; use @app.function()"
    )


def test_a_class_below_app_function_is_sent_to_app_cls(app: shmbatch.App) -> None:
    registers: Any = app.function()
    assert refusal(lambda: registers(Plain)) == "'Plain' is a class; use @app.cls()"


def test_a_method_below_app_function_is_sent_to_app_cls(app: shmbatch.App) -> None:
    assert refusal(lambda: app.function()(Plain.act)) == (
        "'act' is a method of class 'Plain'; put @app.cls() above the class, "
        "and only @shmbatch.batched(...) above the method"
    )
    assert app.definitions == {}


def test_a_class_without_a_method_to_serve_is_refused(app: shmbatch.App) -> None:
    class Empty:
        @shmbatch.enter()
        def load(self) -> None: ...

        def act(self, xs: list[int]) -> list[int]:
            return xs

    assert refusal(lambda: app.cls()(Empty)) == (
        "class sums.Empty has no method to serve; decorate one with "
        "@shmbatch.batched(max_batch_size=..., wait_ms=...) or @shmbatch.method()"
    )
    assert app.classes == {}


def test_an_init_with_parameters_is_refused(app: shmbatch.App) -> None:
    class Initialised:
        def __init__(self, seed: int = 3) -> None: ...

        @batched
        def act(self, xs: list[int]) -> list[int]:
            return xs

    assert refusal(lambda: app.cls()(Initialised)) == (
        "class sums.Initialised has an __init__ with parameters; declare them as in "
        "`seed: int = shmbatch.parameter(default=0)` and use @shmbatch.enter()"
    )


def test_an_init_that_could_do_without_parameters_is_called_without(app: shmbatch.App) -> None:
    class Base:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.given = (args, kwargs)

    @app.cls()
    class Derived(Base, dict[str, int]):  # has a __new__ of its own, as torch.nn.Module has
        @batched
        def act(self, xs: list[int]) -> list[Any]:
            return [self.given, *xs]

    assert Derived().act.local([]) == [((), {})]


def test_two_classes_of_one_name_are_refused(app: shmbatch.App, plain: Any) -> None:
    assert (
        refusal(lambda: app.cls()(Plain)) == "app 'sums' has a class 'Plain' already; rename one"
    )


def test_names_that_no_address_has_are_refused(app: shmbatch.App) -> None:
    long_class = type("P" * 41, (), {"act": Plain.act})
    assert refusal(lambda: app.cls()(long_class)) == (
        f"class name is '{'P' * 41}'; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
    )
    foreign = type("Foreign", (), {"größe": Plain.act})
    assert refusal(lambda: app.cls()(foreign)) == (
        "method name is 'größe'; a name is 1 to 40 ASCII letters, digits, '_' or '-'"
    )


def test_a_signature_that_cannot_be_served_is_refused_by_its_full_name(app: shmbatch.App) -> None:
    class Many:
        @batched
        def act(self, *xs: int) -> list[int]:
            return list(xs)

    class Bare:
        @batched
        def act(self) -> list[int]:
            return []

    class Static:
        @batched
        def act() -> list[int]:  # type: ignore[misc]
            return []

    class Defaulted:
        @batched
        def act(self, xs: list[int] = []) -> list[int]:  # noqa: B006
            return xs

    assert refusal(lambda: app.cls()(Many)) == (
        "sums.Many.act takes *xs; name each parameter, one column stands for one"
    )
    assert refusal(lambda: app.cls()(Bare)) == (
        "sums.Bare.act has no parameters; a batch needs at least 1 list or stack"
    )
    assert refusal(lambda: app.cls()(Static)) == (
        "sums.Static.act has no parameters; a method's first one is self"
    )
    assert refusal(lambda: app.cls()(Defaulted)).startswith(
        "parameter 'xs' of sums.Defaulted.act has a default, but in a batch"
    )
    assert app.definitions == app.classes == {}


def test_a_hook_is_a_method_without_parameters() -> None:
    def loads(self: Any, path: str) -> None: ...

    for name in ("enter", "exit"):
        decorate = getattr(shmbatch, name)()
        assert refusal(decorate, 3) == (f"@shmbatch.{name}() decorates 3; it must be a method")
        assert refusal(decorate, loads) == (
            f"@shmbatch.{name}() decorates {loads.__qualname__}, which is called with self "
            f"alone; give it no other parameter"
        )


def test_a_plain_method_is_a_function_and_its_options_are_checked_at_once() -> None:
    decorated: Any = staticmethod(refusal)
    assert refusal(lambda: shmbatch.method()(decorated)).startswith(
        "@shmbatch.method() decorates <staticmethod("
    )
    assert "slots is 0; " in refusal(lambda: shmbatch.method(slots=0))
    assert "max_bytes is 0; " in refusal(lambda: shmbatch.method(max_bytes=0))
    assert "codec is 'json'; " in refusal(lambda: shmbatch.method(codec="json"))


# ---- parameters ----------------------------------------------------------------------------


def test_a_parameter_whose_name_is_private_is_refused(app: shmbatch.App) -> None:
    class Hidden:
        _values: int = parameter(default=0)
        act = Plain.act

    assert refusal(app.cls(), Hidden) == (
        "parameter '_values' of Hidden begins with an underscore; what is told is public"
    )


def test_a_parameter_has_one_of_five_types(app: shmbatch.App) -> None:
    class Bare:
        seed = parameter(default=0)
        act = Plain.act

    class Listed:
        seed: list[int] = parameter(default=[])
        act = Plain.act

    for each in (Bare, Listed):
        assert refusal(app.cls(), each) == (
            f"parameter 'seed' of {each.__name__} needs an annotation, "
            f"one of int, str, float, bool, bytes"
        )


def test_an_annotation_that_cannot_be_resolved_is_refused(app: shmbatch.App) -> None:
    class Lost:
        seed: Fraction = parameter(default=0)
        act = Plain.act

    assert refusal(lambda: app.cls()(Lost)) == (
        "an annotation of class Lost cannot be resolved (NameError: name 'Fraction' is not "
        "defined); use names that the module has when it runs"
    )


def test_a_default_is_of_the_parameters_type(app: shmbatch.App) -> None:
    class Mistyped:
        seed: int = parameter(default="0")
        act = Plain.act

    assert refusal(lambda: app.cls()(Mistyped)) == (
        "the default of parameter 'seed' of Mistyped is '0'; use a value of int"
    )


@pytest.fixture
def typed(app: shmbatch.App) -> Any:
    @app.cls()
    class Typed:
        whole: int = parameter(default=1)
        part: float = parameter(default=0)
        text: str = parameter(default="")
        flag: bool = parameter(default=False)
        raw: bytes = parameter(default=b"")
        needed: int = parameter()

        @batched
        def act(self, xs: list[int]) -> list[int]:
            return xs

    return Typed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": 1.0}, "parameter 'whole' of Typed is 1.0; use a value of int"),
        ({"whole": True}, "parameter 'whole' of Typed is True; use a value of int"),
        ({"whole": np.int64(3)}, "parameter 'whole' of Typed is np.int64(3); use a value of int"),
        ({"whole": 2**63}, "parameter 'whole' of Typed needs 64 bits; use an int of 64"),
        ({"part": "1"}, "parameter 'part' of Typed is '1'; use a value of float"),
        ({"part": True}, "parameter 'part' of Typed is True; use a value of float"),
        ({"text": b""}, "parameter 'text' of Typed is b''; use a value of str"),
        ({"flag": 0}, "parameter 'flag' of Typed is 0; use a value of bool"),
        ({"raw": ""}, "parameter 'raw' of Typed is ''; use a value of bytes"),
        (
            {"text": "a\0b"},
            "parameter 'text' of Typed is 'a\\x00b'; drop what UTF-8 lacks, and NUL",
        ),
        ({"raw": b"\0"}, "parameter 'raw' of Typed is b'\\x00'; drop what UTF-8 lacks, and NUL"),
        (
            {"text": "\ud800"},
            "parameter 'text' of Typed is '\\ud800'; drop what UTF-8 lacks, and NUL",
        ),
        (
            {"text": "x" * (MAX_NBYTES + 1)},
            "parameter 'text' of Typed has 65537 bytes, at most 65536 fit; "
            "name a file that it is in",
        ),
        (
            {"other": 1},
            "Typed has no parameter 'other'; it has whole, part, text, flag, raw, needed",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    typed: Any, given: dict[str, Any], message: str
) -> None:
    assert refusal(lambda: typed(needed=1, **given)) == message


def test_what_has_no_default_must_be_given(typed: Any, app: shmbatch.App, plain: Any) -> None:
    assert refusal(typed) == (
        "Typed needs parameter 'needed'; it has whole, part, text, flag, raw, needed"
    )
    assert refusal(lambda: typed(1)) == (
        "Typed takes its parameters by keyword; it has whole, part, text, flag, raw, needed"
    )
    assert [name for name in app.definitions if name.startswith("Typed")] == []
    assert "Plain.act" in app.definitions, "all its parameters have defaults"


def test_an_instance_tells_its_parameters_and_an_int_is_taken_for_a_float(typed: Any) -> None:
    one = typed(needed=3, part=2, text="é\udcff", raw=b"\xff")
    assert (one.needed, one.whole, one.text, one.raw) == (3, 1, "é\udcff", b"\xff")
    assert (one.part, type(one.part)) == (2.0, float)
    assert repr(one) == (
        "<sums.Typed(whole=1, part=2.0, text='é\\udcff', flag=False, raw=b'\\xff', needed=3)>"
    )


def test_values_of_the_command_line_are_what_a_person_means(typed: Any) -> None:
    texts = ["whole=-2", "part=1e-3", "text=a=b", "flag=YES", "raw=\udcffx", "needed=7"]
    assert dict(typed.read(texts)) == {
        "whole": -2,
        "part": 0.001,
        "text": "a=b",
        "flag": True,
        "raw": b"\xffx",
        "needed": 7,
    }
    for text, value in (("0", False), ("no", False), ("False", False), ("1", True)):
        assert dict(typed.read(["needed=1", f"flag={text}"]))["flag"] is value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole", "--param 'whole' has no value; write --param name=value"),
        ("whole=1.5", "parameter 'whole' of Typed is '1.5'; write a value of int"),
        ("part=one", "parameter 'part' of Typed is 'one'; write a value of float"),
        ("flag=maybe", "parameter 'flag' of Typed is 'maybe'; write a value of bool"),
        ("other=1", "Typed has no parameter 'other'; it has whole, part, text, flag, raw, needed"),
    ],
)
def test_a_text_that_stands_for_no_value_is_refused(typed: Any, text: str, message: str) -> None:
    assert refusal(lambda: typed.read(["needed=1", text])) == message


def test_a_parameter_is_given_once(typed: Any) -> None:
    message = "--param needed is given twice; give one value"
    assert refusal(lambda: typed.read(["needed=1", "flag=no", "needed=2"])) == message


def test_whatever_a_value_is_it_comes_back_from_its_text(typed: Any) -> None:
    from shmbatch.app.starting import _text

    given = {"part": float("inf"), "text": " é\n--x", "flag": True, "raw": bytes(range(1, 256))}
    values = typed.values({"needed": -(2**63), "whole": 2**63 - 1, **given})
    assert typed.read([f"{name}={_text(value)}" for name, value in values]) == values


# ---- names ---------------------------------------------------------------------------------


@pytest.fixture
def private() -> Iterator[str]:
    advertise("sums", "run-0123456789ab")
    yield "run-0123456789ab"
    withdraw("sums")


def test_an_instance_of_the_defaults_is_the_apps_own(plain: Any, private: str) -> None:
    for one in (plain(), plain(seed=0)):
        assert one.act.address == Address("sums", "Plain.act")
        assert one.act.address.served_as() == private


def test_every_other_set_of_values_has_a_name_of_its_own(plain: Any) -> None:
    names = {plain(seed=seed).act.address.served_as() for seed in range(1, 2000)}
    assert len(names) == 1999
    assert all(NAME_PATTERN.fullmatch(name) and name.startswith("sums-Plain-") for name in names)
    assert str(plain(seed=3).act.address) == "sums.Plain(seed=3).act"


def test_values_are_the_same_if_they_are_written_the_same(typed: Any) -> None:
    zero, below = typed(needed=1, part=0.0), typed(needed=1, part=-0.0)
    assert (str(zero.part), str(below.part)) == ("0.0", "-0.0")
    assert zero.act.address.served_as() != below.act.address.served_as()
    assert typed(needed=1, part=float("nan")) is typed(needed=1, part=float("nan"))


def test_a_long_value_is_cut_short_in_messages_and_in_no_name(typed: Any) -> None:
    one, other = (typed(needed=1, text="x" * 10_000 + end) for end in "ab")
    (definition,) = typed.definitions(typed.values({"needed": 1, "text": "x" * 10_000}))
    for told in (repr(one), str(one.act.address), definition.instance.name):
        assert 200 < len(told) < 250
    assert one.act.address.served_as() != other.act.address.served_as()


def test_the_same_values_have_the_same_name_whatever_the_method(plain: Any) -> None:
    again = pickle.loads(pickle.dumps(plain(seed=3)))
    names = {
        each.address.served_as() for each in (plain(seed=3).act, plain(seed=3).told, again.act)
    }
    assert len(names) == 1
    assert plain(seed=3) is plain(seed=3)


def test_names_have_40_characters_at_most_and_begin_with_all_of_a_private_one(
    private: str,
) -> None:
    long_app = shmbatch.App("a" * 40)
    long_class = type("P" * 40, (Plain,), {})
    one = long_app.cls()(long_class)(seed=1)
    assert len(one.act.address.served_as()) == 40
    assert NAME_PATTERN.fullmatch(one.act.address.served_as())
    under_run: Any = shmbatch.App("sums").cls()(long_class)
    name = under_run(seed=1).act.address.served_as()
    assert name.startswith(f"{private}-P")
    assert len(name) == 40


# ---- objects in this process ---------------------------------------------------------------


def test_local_makes_one_object_and_enters_it_once(plain: Any) -> None:
    one = plain(seed=2)
    assert one.told.local() == ["made with 2", "load", "warm"]
    assert one.act.local([1, 2]) == [3, 4]
    assert asyncio.run(one.act_later.local([1])) == [3]
    assert one.told.local() == ["made with 2", "load", "warm"], "nothing is made twice"


def test_threads_that_need_the_object_at_once_get_the_same_one(app: shmbatch.App) -> None:
    entered = []
    both = threading.Barrier(8)

    class Slow:
        @shmbatch.enter()
        def load(self) -> None:
            entered.append(self)

        @shmbatch.method()
        def told(self) -> int:
            return id(self)

    Served: Any = app.cls()(Slow)

    def told(_: int) -> int:
        both.wait()
        told: int = Served().told.local()
        return told

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(told, range(8)))) == len(entered) == 1


def test_an_async_hook_cannot_run_inside_an_event_loop(plain: Any) -> None:
    async def main() -> str:
        return refusal(lambda: plain(seed=5).told.local())

    assert asyncio.run(main()) == (
        "Plain.warm is async and cannot run inside an event loop; "
        "call .local(...) from outside, or from a thread"
    )
    assert plain(seed=5).told.local() == ["made with 5", "load", "warm"]


def test_what_a_hook_raises_in_this_process_comes_as_it_is(app: shmbatch.App) -> None:
    @app.cls()
    class Broken:
        @shmbatch.enter()
        async def load(self) -> None:
            raise RuntimeError("out of memory")

        @shmbatch.method()
        def told(self) -> int:
            return 0

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        Broken().told.local()


def test_members_are_ordinary_methods_inside_of_the_class(plain: Any) -> None:
    assert plain(seed=2).twice.local([1]) == [5]
    assert refusal(lambda: plain().wrong.local([1])) == (
        "Plain.act is called inside its own executor, which would wait for itself; "
        "call it as it is"
    )
    made = plain.made(plain.values({}))
    assert asyncio.run(made.act_later([1])) == [1]
    with pytest.raises(AttributeError, match=r"^Plain.act has no attribute 'remotely'$"):
        made.act.remotely  # noqa: B018
    made.close()
    assert made.entered[-1] == "close", "hooks are methods, too"


def test_a_method_that_is_not_served_is_named_with_the_remedy(plain: Any) -> None:
    with pytest.raises(AttributeError) as caught:
        plain(seed=3).helper()
    assert str(caught.value) == (
        "'helper' of <sums.Plain(seed=3)> is not served; it has act, act_later, twice, wrong, "
        "told; decorate it with @shmbatch.method()"
    )
    with pytest.raises(AttributeError) as caught:
        plain().nothing  # noqa: B018
    assert str(caught.value) == (
        "'nothing' of <sums.Plain(seed=0)> is not served; "
        "it has act, act_later, twice, wrong, told"
    )


def test_a_method_asked_of_the_class_is_named_with_the_remedy(plain: Any) -> None:
    with pytest.raises(
        AttributeError, match=r"^'act' is of instances of Plain; write Plain\(\).act$"
    ):
        plain.act.remote(1)
    with pytest.raises(AttributeError, match=r"^<Class 'sums.Plain'> has no attribute 'acts'$"):
        plain.acts  # noqa: B018


def test_a_class_may_inherit_from_one_that_is_served(app: shmbatch.App, plain: Any) -> None:
    class Shifted(plain):  # type: ignore[misc]
        seed: int = parameter(default=10)

        @shmbatch.enter()
        def shift(self) -> None:
            self.entered.append("shift")

        @batched
        def act(self, xs: list[int]) -> list[int]:
            return [100 + x for x in super().act(xs)]

        def load(self) -> None:
            """Is no hook any more."""

    Served: Any = app.cls()(Shifted)
    assert Served().told.local() == ["made with 10", "warm", "shift"]
    assert Served().act.local([1]) == [111]
    assert Served().twice.local([1]) == [221], "an inherited method calls the new one"
    assert plain().act.local([1]) == [1]
    assert {"Plain.act", "Shifted.act", "Shifted.told"} <= set(app.definitions)


# ---- pickling ------------------------------------------------------------------------------


def test_an_instance_and_its_handles_survive_pickling(plain: Any, private: str) -> None:
    one = plain(seed=3)
    name = one.act.address.served_as()
    handle = pickle.loads(pickle.dumps(one.act))
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(one))))
    withdraw("sums")  # where they arrive nobody may have told them
    assert handle.address.served_as() == again.told.address.served_as() == name
    assert name.startswith(private)
    assert (again.seed, repr(again)) == (3, "<sums.Plain(seed=3)>")
    assert not hasattr(again, "helper")
    assert refusal(lambda: again.act.local([1])) == (
        f"this process has the address '{private}.Plain(seed=3).act' but not the function; "
        f"import it from its file to call it locally"
    )


# ---- plain methods -------------------------------------------------------------------------


def test_plain_methods_take_single_values_with_defaults(app: shmbatch.App) -> None:
    @app.cls()
    class Tuned:
        @shmbatch.method(slots=3)
        def refresh(self, scale: float, name: str = "all", path: str | None = None) -> None: ...

        @shmbatch.method(codec="pickle")
        async def told(self) -> object: ...

    refresh = app.definitions["Tuned.refresh"]
    assert refresh.signature.describe() == (
        "(scale: float, name: str = 'all', path: str | None = None) -> None"
    )
    assert (refresh.parameters.max_batch_size, refresh.parameters.wait_ns) == (1, 0)
    assert refresh.slots == 3
    assert app.definitions["Tuned.told"].signature.describe() == "() -> object"
    assert app.definitions["Tuned.told"].instance is refresh.instance
    assert isinstance(Tuned, Class)


def test_a_default_that_no_call_could_give_is_refused(app: shmbatch.App) -> None:
    class Paths:
        @shmbatch.method()
        def refresh(self, path: object = Path()) -> None: ...

    class Mixed:
        @shmbatch.method()
        def refresh(self, scale: float = "1") -> None: ...  # type: ignore[assignment]

    assert refusal(lambda: app.cls()(Paths)) == (
        "the default of parameter 'path' of sums.Paths.refresh is a PosixPath; "
        "use None, a bool, a number, str or bytes"
    )
    assert refusal(lambda: app.cls()(Mixed)).startswith(
        "the default of parameter 'scale' of sums.Mixed.refresh "
    )
