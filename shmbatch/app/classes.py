"""Classes of an app: their life cycle, their parameters, and the handles of their methods.

In the executor, a user's class is the class that the user wrote: `Member` objects in it bind as
ordinary methods. Everywhere else its name stands for `Class`, which makes `Instance`, whose
attributes are handles.
"""

from __future__ import annotations

import inspect
import os
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..client.function import Function
from ..contract.batching import BatchParameters, slot_capacity
from ..contract.definition import Definition, Hook, InstanceDefinition
from ..contract.gpu import check_graphs
from ..contract.options import DEFAULT_MAX_BYTES, ValueOptions, value_options
from ..contract.signature import signature_of, source_file
from ..errors import ConfigError
from ..protocol.names import Address, check_name
from .decorators import Batched, Member
from .starting import OnFirstUse

if TYPE_CHECKING:
    from .app import App

_TYPES = (int, str, float, bool, bytes)
MAX_NBYTES = 65_536  # of a str or bytes; Linux takes 128 KiB an argument of a command
_REQUIRED: Any = object()
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Values = tuple[tuple[str, Any], ...]  # of parameters, in the order of the class


@dataclass(frozen=True)
class Method(Member):
    """A plain method: takes the arguments of one call, and runs between batches."""

    slots: int | None
    values: ValueOptions


@dataclass(frozen=True)
class LifeCycle:
    """A method that the executor calls: before it serves anything, or when it serves no more."""

    function: Hook
    when: Literal["enter", "exit"]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.function.__get__(instance, owner)


@dataclass(frozen=True)
class Parameter:
    """What a class is to be told before it is made; see `parameter`."""

    default: Any
    name: str = ""
    type: Any = object

    def checked(self, value: Any, where: str) -> Any:
        """Return *value*, which must be of the parameter's type; an int is taken for a float."""
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type:
            raise ConfigError(f"{where} is {value!r:.100}; use a value of {self.type.__name__}")
        # An executor is told on its command line.
        if self.type in (str, bytes):
            try:
                encoded = os.fsencode(value)
            except UnicodeEncodeError:
                encoded = b"\0"
            if b"\0" in encoded:
                raise ConfigError(f"{where} is {value!r:.100}; drop what UTF-8 lacks, and NUL")
            if len(encoded) > MAX_NBYTES:
                raise ConfigError(
                    f"{where} has {len(encoded)} bytes, at most {MAX_NBYTES} fit; "
                    f"name a file that it is in"
                )
        if self.type is int and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{where} needs {value.bit_length()} bits; use an int of 64")
        return value

    def read(self, text: str, where: str) -> Any:
        """Return the value that a person means by *text*."""
        try:
            if self.type is bool:
                return _BOOLS[text.lower()]
            return os.fsencode(text) if self.type is bytes else self.type(text)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{where} is {text[:100]!r}; write a value of {self.type.__name__}"
            ) from None


def enter(*misplaced: Any, **refused: Any) -> Callable[[Hook], LifeCycle]:
    """Have the executor call a method once, before it serves anything; it may be async.

    For what takes long and is needed by every batch, such as loading a model. If it raises, the
    executor does not start. Where a class has several, they are called from the top of the class.

    Raises:
        ConfigError: it has arguments, or decorates no method without parameters.
    """
    return _life_cycle("enter", misplaced, refused)


def exit(  # noqa: A001 - Modal's name for it
    *misplaced: Any, **refused: Any
) -> Callable[[Hook], LifeCycle]:
    """Have the executor call a method once, after the last batch; it may be async.

    It is not called where the executor is killed. What it raises is logged.

    Raises:
        ConfigError: as `enter`.
    """
    return _life_cycle("exit", misplaced, refused)


def _life_cycle(
    when: Literal["enter", "exit"], misplaced: tuple[Any, ...], refused: Mapping[str, Any]
) -> Callable[[Hook], LifeCycle]:
    if misplaced or refused:
        raise ConfigError(f"{when} takes no arguments; write @shmbatch.{when}()")

    def decorate(function: Hook) -> LifeCycle:
        where = f"@shmbatch.{when}()"
        if not inspect.isfunction(function):
            raise ConfigError(f"{where} decorates {function!r:.100}; it must be a method")
        if len(inspect.signature(function).parameters) != 1:
            raise ConfigError(
                f"{where} decorates {function.__qualname__}, which is called with self alone; "
                f"give it no other parameter"
            )
        return LifeCycle(function, when)

    return decorate


def method(
    *misplaced: Any,
    slots: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lengths: Mapping[str, int] | None = None,
    codec: str | None = None,
) -> Callable[[Callable[..., Any]], Method]:
    """Have a method of an `App.cls` class called as it is, with the arguments of one call.

    One call at a time, and none while a batch of the same instance runs: so it may change what
    the batches use. Its annotations are those of single values. It may be async, have no
    parameters, and have defaults.

    Args:
        slots: calls that one producer can have pending; by default 64.
        max_bytes, max_lengths, codec: as of `batched`.

    Raises:
        ConfigError: an argument is wrong, or what is decorated is no method.
    """
    if misplaced:
        raise ConfigError("method takes its arguments by keyword; write @shmbatch.method()")
    slot_capacity(1, slots, 0, 0)  # checks slots
    values = value_options(max_bytes, max_lengths, "list", codec)

    def decorate(function: Callable[..., Any]) -> Method:
        if not inspect.isfunction(function):
            raise ConfigError(
                f"@shmbatch.method() decorates {function!r:.100}; it must be a method"
            )
        return Method(function, slots, values)

    return decorate


def parameter(*misplaced: Any, default: Any = _REQUIRED) -> Any:
    """Declare a parameter of an `App.cls` class: ``seed: int = shmbatch.parameter(default=0)``.

    The annotation is int, str, float, bool or bytes. Each set of values has an executor of its
    own; that of the defaults is the app's.

    Args:
        default: a value of that type; without one, every instance has to be given a value.

    Raises:
        ConfigError: *default* is not given by keyword.
    """
    if misplaced:
        raise ConfigError("parameter takes its default by keyword; write parameter(default=...)")
    return Parameter(default)


class Class:
    """A class whose instances live in executors; what `App.cls` makes of it.

    Calling it with parameters, by keyword, returns an `Instance`.
    """

    def __init__(self, app: App, user_class: type) -> None:
        self.app = app
        self.user_class = user_class
        self.name = check_name(user_class.__name__, "class name")
        self._hooks = {"enter": tuple[Hook, ...](), "exit": tuple[Hook, ...]()}
        self.members: dict[str, Member] = {}
        for name, found in _attributes(user_class):
            if isinstance(found, Member):
                self.members[check_name(name, "method name")] = found
            elif isinstance(found, LifeCycle):
                self._hooks[found.when] += (found.function,)
        self.parameters = _parameters(user_class)
        self._instances: dict[Values, Instance] = {}
        where = f"{app.name}.{self.name}"
        if not self.members:
            raise ConfigError(
                f"class {where} has no method to serve; decorate one with "
                f"@shmbatch.batched(max_batch_size=..., wait_ms=...) or @shmbatch.method()"
            )
        if _takes_parameters(user_class):
            raise ConfigError(
                f"class {where} has an __init__ with parameters; declare them as in "
                f"`seed: int = shmbatch.parameter(default=0)` and use @shmbatch.enter()"
            )
        self._shapes = {
            name: _shape(member, f"{where}.{name}") for name, member in self.members.items()
        }
        for member in self.members.values():
            source_file(member.function)  # what is interactive cannot be served

    @property
    def needs_parameters(self) -> bool:
        """Whether there is a parameter without a default."""
        return any(each.default is _REQUIRED for each in self.parameters.values())

    def __call__(self, *misplaced: Any, **given: Any) -> Instance:
        if misplaced:
            raise ConfigError(
                f"{self.name} takes its parameters by keyword; it has {self._known()}"
            )
        values = self.values(given)
        # As threads do it at the same time, too: there is one object for `local`.
        return self._instances.setdefault(values, Instance(self, values))

    def values(self, given: Mapping[str, Any]) -> Values:
        """Return the values of all parameters: the ones *given*, and defaults.

        Raises:
            ConfigError: one is unknown, missing, or of the wrong type.
        """
        for name in given:
            if name not in self.parameters:
                raise ConfigError(f"{self.name} has no parameter {name!r}; it has {self._known()}")
        values = []
        for name, each in self.parameters.items():
            value = given.get(name, each.default)
            if value is _REQUIRED:
                raise ConfigError(f"{self.name} needs parameter {name!r}; it has {self._known()}")
            values.append((name, each.checked(value, f"parameter {name!r} of {self.name}")))
        return tuple(values)

    def read(self, texts: Sequence[str]) -> Values:
        """Return the values that ``name=value`` on a command line stands for; as `values`."""
        given = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--param {text[:100]!r} has no value; write --param name=value")
            known = self.parameters.get(name, Parameter(_REQUIRED, name, str))
            given[name] = known.read(value, f"parameter {name!r} of {self.name}")
        return self.values(given)

    def address(self, values: Values, name: str) -> Address:
        """Return where a method of the instance with these values is served."""
        defaults = tuple((name, each.default) for name, each in self.parameters.items())
        instance = "" if values == defaults else _shown(values)
        return Address(self.app.name, f"{self.name}.{name}", instance)

    def definitions(self, values: Values) -> list[Definition]:
        """Return what an executor of the instance with these values serves."""
        instance = InstanceDefinition(
            f"{self.name}({_shown(values)})",
            lambda: self.made(values),
            self._hooks["enter"],
            self._hooks["exit"],
        )
        return [self._definition(name, instance) for name in self.members]

    def _definition(self, name: str, instance: InstanceDefinition) -> Definition:
        member, signature = self.members[name], self._shapes[name]
        whole_name = f"{self.name}.{name}"
        if isinstance(member, Batched):
            definition = member.definition(whole_name, signature, instance)
            check_graphs(definition, f"{self.app.name}.{whole_name}")
            return definition
        assert isinstance(member, Method)
        function = member.function
        one = BatchParameters(1, 0)
        return Definition(whole_name, function, signature, one, member.slots, instance=instance)

    def made(self, values: Values) -> Any:
        """Return an object of the user's class in this process, not entered yet."""
        new: Any = self.user_class.__new__
        made = new(self.user_class)
        for name, value in values:
            setattr(made, name, value)
        made.__init__()
        return made

    def entered(self, values: Values) -> Any:
        """Return an object of the user's class in this process, its enter hooks run.

        Raises:
            ConfigError: a hook is async, and an event loop runs in this thread.
        """
        made = self.made(values)
        for hook in self._hooks["enter"]:
            awaitable = hook(made)
            if inspect.iscoroutine(awaitable):
                import asyncio

                if asyncio._get_running_loop() is not None:
                    awaitable.close()
                    raise ConfigError(
                        f"{hook.__qualname__} is async and cannot run inside an event loop; "
                        f"call .local(...) from outside, or from a thread"
                    )
                asyncio.run(awaitable)
        return made

    def handle(self, values: Values, name: str, local: Callable[..., Any]) -> Function:
        """Return the handle of a method of the instance with these values."""
        member = self.members[name]
        address = self.address(values, name)
        starter = None
        if address.instance:
            starter = OnFirstUse(Path(self.app.file or ""), self.app.name, values)
        return Function(
            address,
            local=local,
            signature=self._shapes[name],
            decorated=member.parameters if isinstance(member, Batched) else BatchParameters(1, 0),
            starter=starter,
        )

    def _known(self) -> str:
        return ", ".join(self.parameters) or "none"

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("members", {}):
            raise AttributeError(
                f"{name!r} is of instances of {self.name}; write {self.name}().{name}"
            )
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Let another class inherit from what the user wrote."""
        return (self.user_class,)

    def __repr__(self) -> str:
        return f"<Class '{self.app.name}.{self.name}'>"


class Instance:
    """An instance of a class, as producers know it: its methods are handles."""

    def __init__(self, of: Class, values: Values) -> None:
        self._of = of
        self._values = values
        self._made: Any = None
        self._making = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        of = self._of
        if name in of.parameters:
            return dict(self._values)[name]
        if name not in of.members:
            raise AttributeError(
                f"{name!r} of {self!r} is not served; it has {', '.join(of.members)}"
                + ("; decorate it with @shmbatch.method()" if hasattr(of.user_class, name) else "")
            )
        handle = of.handle(self._values, name, self._local(name))
        self.__dict__[name] = handle
        return handle

    def _local(self, name: str) -> Callable[..., Any]:
        """Return a method on an object in this process, which is made when it is first called."""

        def local(*args: Any, **kwargs: Any) -> Any:
            with self._making:
                if self._made is None:
                    self._made = self._of.entered(self._values)
            return getattr(self._made, name)(*args, **kwargs)

        return local

    def __reduce__(self) -> tuple[Any, ...]:
        handles = {name: getattr(self, name) for name in self._of.members}
        return _RemoteInstance, (repr(self), handles, dict(self._values))

    def __repr__(self) -> str:
        return f"<{self._of.app.name}.{self._of.name}({_shown(self._values)})>"


class _RemoteInstance:
    """An instance that came from another process: its handles, without its class."""

    def __init__(self, name: str, handles: dict[str, Function], values: dict[str, Any]) -> None:
        self._arguments = (name, handles, values)
        self.__dict__.update(handles | values)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RemoteInstance, self._arguments

    def __repr__(self) -> str:
        return self._arguments[0]


def _attributes(user_class: type) -> Iterator[tuple[str, Any]]:
    """Yield what the class and those that it inherits from define, base classes first."""
    seen: dict[str, Any] = {}
    for each in reversed(user_class.__mro__):
        seen.update(vars(each))
    yield from seen.items()


def _parameters(user_class: type) -> dict[str, Parameter]:
    found = {name: each for name, each in _attributes(user_class) if isinstance(each, Parameter)}
    if not found:
        return {}
    try:
        hints = typing.get_type_hints(user_class)
    except Exception as error:
        raise ConfigError(
            f"an annotation of class {user_class.__name__} cannot be resolved "
            f"({type(error).__name__}: {error}); use names that the module has when it runs"
        ) from error
    parameters = {}
    for name, each in found.items():
        where = f"parameter {name!r} of {user_class.__name__}"
        kind = hints.get(name)
        if kind not in _TYPES:
            names = ", ".join(allowed.__name__ for allowed in _TYPES)
            raise ConfigError(f"{where} needs an annotation, one of {names}")
        typed = Parameter(each.default, name, kind)
        if each.default is not _REQUIRED:
            typed = Parameter(typed.checked(each.default, f"the default of {where}"), name, kind)
        parameters[name] = typed
    return parameters


def _takes_parameters(user_class: type) -> bool:
    """Say whether the class's ``__init__`` has parameters; ``*args``, which may be none, apart."""
    made: Any = user_class.__init__  # type: ignore[misc]
    if made is object.__init__:
        return False
    _, *others = inspect.signature(made).parameters.values()
    return any(each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in others)


def _shape(member: Member, where: str) -> Any:
    assert isinstance(member, (Batched, Method))
    plain = isinstance(member, Method)
    return signature_of(member.function, where, member.values, method=True, plain=plain)


def _shown(values: Values) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values)
