"""Which functions a person means by a handle, an app, or what `batched` returned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..app import app as apps
from ..app.app import App
from ..app.decorators import Batched
from ..client.function import Function
from ..contract.definition import Definition
from ..contract.signature import signature_of
from ..errors import ConfigError
from ..executor.instances import Instances, needs_loop
from .clock import VirtualClock
from .events import VirtualEvents

Target: TypeAlias = Function | Batched | App


@dataclass(frozen=True)
class Meant:
    """A function and what messages call it."""

    address: str
    definition: Definition


def all_meant(target: Target) -> list[Meant]:
    """Return the functions of an app, or the one that *target* is.

    Raises:
        ConfigError: it is none of these, or a handle of a function that this process lacks.
    """
    if isinstance(target, App):
        if not target.definitions:
            raise ConfigError(
                f"app {target.name!r} has no functions; add one with @app.function()"
            )
        return [Meant(f"{target.name}.{name}", each) for name, each in target.definitions.items()]
    if isinstance(target, Batched):
        name = target.function.__name__
        signature = signature_of(target.function, name, target.values)
        return [Meant(name, target.definition(name, signature))]
    if isinstance(target, Function):
        address = str(target.address)
        definition = _definition_of(target)
        batching = target._batching.instead_of(definition.parameters, address)
        return [Meant(address, replace(definition, parameters=batching))]
    name = getattr(target, "__name__", type(target).__name__)
    raise ConfigError(
        f"{name!r} is no batched function; give the handle that @app.function() returns, what "
        "@shmbatch.batched(...) returns, or an App"
    )


def sole_described(target: Target) -> Meant:
    """Return the one batched function that *target* is; of a class no object is made.

    Raises:
        ConfigError: as `all_meant`; or it is an app of several, or a plain method.
    """
    found = all_meant(target)
    if len(found) > 1:
        names = ", ".join(each.definition.name for each in found)
        raise ConfigError(f"{target!r} has several functions, {names}; give one of their handles")
    (meant,) = found
    if meant.definition.signature.plain:
        raise ConfigError(f"'{meant.address}' is a plain method; only what is batched is checked")
    return meant


@contextmanager
def sole_meant(target: Target) -> Iterator[Meant]:
    """Yield the one batched function that *target* is, with the object whose method it may be.

    Raises:
        ConfigError: as `sole_described`.
        LoadError: its class, or a hook of that, raises.
    """
    meant = sole_described(target)
    events = VirtualEvents(VirtualClock()) if needs_loop(meant.definition) else None
    try:
        with Instances(events) as instances:
            (definition,) = instances.bound([meant.definition])
            yield replace(meant, definition=replace(definition, instance=None))
    finally:
        if events is not None:
            events.close()


def _definition_of(handle: Function) -> Definition:
    """Find what the handle's app knows of it."""
    address = handle.address
    class_name, _, method = address.function.rpartition(".")
    for app in list(apps.known):
        if app.name != address.app:
            continue
        if not class_name:
            definition = app.definitions.get(address.function)
            if definition is not None and definition.function is handle._plain:
                return definition
        elif class_name in app.classes:
            of = app.classes[class_name]
            for instance in list(of._instances.values()):
                if getattr(instance, method)._plain is handle._plain:
                    made = {each.name: each for each in of.definitions(instance._values)}
                    return made[address.function]
    raise ConfigError(
        f"this process has the address '{address}' but not the function; import it from its file"
    )
