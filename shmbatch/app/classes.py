"""A class whose instances live in executors: what is served of it, and under which names.

In the executor, a user's class is the class that the user wrote. Everywhere else its name stands
for `Class`, which makes `Instance`, whose attributes are handles.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.function import Function
from ..contract.batching import BatchParameters
from ..contract.definition import Definition, Hook, InstanceDefinition
from ..contract.gpu import check_graphs
from ..contract.lending import check_read_only
from ..contract.signature import Signature, signature_of, source_file
from ..errors import ConfigError
from ..protocol.names import MOST_SHOWN, Address, check_name
from .decorators import Batched
from .instance import Instance
from .members import LifeCycle, Member, Method
from .parameters import REQUIRED, Parameter, Values, parameters_of, shown
from .starting import OnFirstUse

if TYPE_CHECKING:
    from .app import App


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
        attributes = _attributes(user_class)
        for name, found in attributes.items():
            if isinstance(found, Member):
                self.members[_public(check_name(name, "method name"))] = found
            elif isinstance(found, LifeCycle):
                self._hooks[found.when] += (found.function,)
        self.parameters = parameters_of(attributes, user_class)
        self._instances: dict[str, Instance] = {}
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
        return any(each.default is REQUIRED for each in self.parameters.values())

    def __call__(self, *misplaced: Any, **given: Any) -> Instance:
        if misplaced:
            raise ConfigError(
                f"{self.name} takes its parameters by keyword; it has {self._known()}"
            )
        values = self.values(given)
        # As threads do it at the same time, too: there is one object for `local`.
        return self._instances.setdefault(shown(values), Instance(self, values))

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
            if value is REQUIRED:
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
            if name in given:
                raise ConfigError(f"--param {name} is given twice; give one value")
            known = self.parameters.get(name, Parameter(REQUIRED, name, str))
            given[name] = known.read(value, f"parameter {name!r} of {self.name}")
        return self.values(given)

    def address(self, values: Values, name: str) -> Address:
        """Return where a method of the instance with these values is served."""
        defaults = tuple((name, each.default) for name, each in self.parameters.items())
        # As written, not as compared: 0.0 equals -0.0, and NaN nothing.
        instance = "" if shown(values) == shown(defaults) else shown(values)
        return Address(self.app.name, f"{self.name}.{name}", instance)

    def definitions(self, values: Values) -> list[Definition]:
        """Return what an executor of the instance with these values serves."""
        instance = InstanceDefinition(
            f"{self.name}({shown(values):.{MOST_SHOWN}})",
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
            check_read_only(definition, f"{self.app.name}.{whole_name}")
            return definition
        assert isinstance(member, Method)
        function = member.function
        one = BatchParameters(1, 0)
        return Definition(
            *(whole_name, function, signature, one, member.slots),
            instance=instance,
            failing=member.failing,
        )

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


def _attributes(user_class: type) -> dict[str, Any]:
    """Return what the class and those that it inherits from define, base classes first."""
    found: dict[str, Any] = {}
    for each in reversed(user_class.__mro__):
        found.update(vars(each))
    return found


def _public(name: str) -> str:
    if name.startswith("_"):
        raise ConfigError(f"method {name!r} begins with an underscore; what is served is public")
    return name


def _takes_parameters(user_class: type) -> bool:
    """Say whether the class's ``__init__`` has parameters; ``*args``, which may be none, apart."""
    made: Any = user_class.__init__  # type: ignore[misc]
    if made is object.__init__:
        return False
    _, *others = inspect.signature(made).parameters.values()
    return any(each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in others)


def _shape(member: Member, where: str) -> Signature:
    assert isinstance(member, (Batched, Method))
    plain = isinstance(member, Method)
    return signature_of(member.function, where, member.values, method=True, plain=plain)
