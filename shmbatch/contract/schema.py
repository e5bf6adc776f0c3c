"""The ``T`` of a ``list[T]`` as data, so that two processes can compare it and find it.

A type is described by nested tuples, which travel in the handshake::

    ("any",)  ("none",)  ("...",)
    ("class", "shop", "Order")                  a class, by where it stands
    ("of", ("class", "builtins", "dict"), ...)  a generic and its arguments
    ("union", ...)                              its members
    ("literal", ...)                            its values
    ("meta", T, ("ge", 0), ...)                 T with the constraints of `msgspec.Meta`

A class of the main program stands in the module by whose name others import that file: its stem.
What a class consists of is not described; a fingerprint tells whether it is the same.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeAlias

from ..errors import ConfigError

Tree: TypeAlias = tuple[Any, ...]

ANY: Tree = ("any",)
MAX_TEXT = 1000  # characters of a type as a person would write it

_LEAVES = {"any": "Any", "none": "None", "...": "..."}
_CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")
_MAX_DEPTH = 32


class Unsupported(Exception):
    """A type cannot travel; says why."""


def main_module() -> str:
    """Return the name by which others import the main program's file, "" if it has none."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(file, str):
        return ""
    return file.rpartition("/")[2].removesuffix(".py")


def find_module(name: str) -> types.ModuleType:
    """Return the module of that name, importing it if need be, but never the main file again.

    Raises:
        ImportError or whatever else the module raises.
    """
    module = sys.modules.get(name)
    if module is None and name == main_module():
        module = sys.modules.get("__main__")
    return importlib.import_module(name) if module is None else module


def find_class(module: str, qualname: str) -> type:
    """Return the class that stands there.

    Raises:
        LookupError: there is none.
    """
    try:
        found: Any = find_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything, and may exit
        raise LookupError(f"{module}.{qualname}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise LookupError(f"{module}.{qualname} is no class")
    return found


def describe(annotation: Any) -> Tree:
    """Return the description of a type.

    Raises:
        Unsupported: MessagePack lacks it, or another process could not find it.
    """
    if annotation is None or annotation is type(None):
        return ("none",)
    if annotation is Ellipsis:
        return ("...",)
    if annotation is Any or annotation is object:
        return ANY
    if hasattr(annotation, "array_type"):  # jaxtyping's, which are made as they are written
        raise Unsupported(_lacking(annotation))
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _describe_annotated(*arguments)
    if origin is typing.Literal:
        for value in arguments:
            if value is not None and type(value) not in (bool, int, str):
                raise Unsupported(f"MessagePack lacks a Literal of {value!r}; use ints and strs")
        return ("literal", *arguments)
    if origin is typing.Union or origin is types.UnionType:
        return ("union", *map(describe, arguments))
    if isinstance(annotation, typing.NewType):
        return describe(annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":  # `type X = ...`, from Python 3.12 on
        return describe(annotation.__value__)
    if origin is not None and hasattr(annotation, "__args__"):
        return ("of", describe(origin), *map(describe, arguments))
    found = origin or annotation  # typing.List without arguments has an origin all the same
    if not isinstance(found, type):
        raise Unsupported(
            f"{inspect.formatannotation(annotation)[:200]} is no type; use one that exists when "
            "the function is defined"
        )
    return _describe_class(found)


def _describe_annotated(base: Any, *metadata: Any) -> Tree:
    constraints = [
        (name, value)
        for each in metadata
        if type(each).__module__.partition(".")[0] == "msgspec"
        for name in _CONSTRAINTS
        if (value := getattr(each, name, None)) is not None
    ]
    return ("meta", describe(base), *constraints) if constraints else describe(base)


def _describe_class(cls: type) -> Tree:
    module, qualname = cls.__module__, cls.__qualname__
    if module == "__main__":
        module = main_module() or module
    try:
        found = find_class(module, qualname)
    except LookupError:
        found = type(None)
    if found is not cls:
        raise Unsupported(
            f"{module}.{qualname} cannot be found by that name; define it at the top of a module"
        )
    return ("class", module, qualname)


def text(tree: Tree) -> str:
    """Return the type as a person would write it."""
    kind, *rest = tree
    if kind in _LEAVES:
        return _LEAVES[kind]
    if kind == "class":
        module, qualname = rest
        return str(qualname if module in ("builtins", "typing") else f"{module}.{qualname}")
    if kind == "of":
        return f"{text(rest[0])}[{', '.join(map(text, rest[1:])) or '()'}]"
    if kind == "union":
        return " | ".join(map(text, rest))
    if kind == "literal":
        return f"Literal[{', '.join(map(repr, rest))}]"
    constraints = ", ".join(f"{name}={value!r}" for name, value in rest[1:])
    return f"Annotated[{text(rest[0])}, Meta({constraints})]"


def check(tree: object, depth: int = 0) -> None:
    """Refuse what `describe` never returns; *tree* is not trusted.

    Raises:
        ValueError: it describes no type.
    """
    if not isinstance(tree, tuple) or not tree or depth > _MAX_DEPTH:
        raise ValueError("a type is described by tuples")
    kind, *rest = tree
    plain = (str, int, float, bool, type(None))
    if not isinstance(kind, str):
        raise ValueError("a description begins with what it is of")
    if kind in _LEAVES:
        known = not rest
    elif kind == "class":
        known = len(rest) == 2 and all(isinstance(name, str) and name for name in rest)
    elif kind == "literal":
        known = bool(rest) and all(isinstance(value, plain) for value in rest)
    elif kind == "meta" and len(rest) >= 2:
        check(rest[0], depth + 1)
        known = all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and pair[0] in _CONSTRAINTS
            and isinstance(pair[1], plain)
            for pair in rest[1:]
        )
    else:
        known = kind in ("of", "union") and bool(rest)
        for each in rest if known else ():
            check(each, depth + 1)
    if not known:
        raise ValueError(f"there is no description of kind {kind[:20]!r} like that")
    if depth == 0 and len(text(tree)) > MAX_TEXT:
        raise ValueError(f"the description of a type has more than {MAX_TEXT} characters")


def resolve(tree: Tree) -> Any:
    """Return the type that *tree* describes, importing modules as needed.

    Raises:
        LookupError: a class is not to be found in this process.
    """
    kind, *rest = tree
    if kind == "any":
        return Any
    if kind == "none":
        return None
    if kind == "...":
        return Ellipsis
    if kind == "class":
        return find_class(*rest)
    if kind == "literal":
        return typing.Literal[tuple(rest)]
    if kind == "union":
        return typing.Union[tuple(map(resolve, rest))]  # noqa: UP007 - of as many as there are
    if kind == "meta":
        import msgspec

        return typing.Annotated[resolve(rest[0]), msgspec.Meta(**dict(rest[1:]))]
    origin, *arguments = map(resolve, rest)
    return origin[tuple(arguments)]


def fingerprint(resolved: Any) -> str:
    """Return 16 hexadecimal digits that change with what the classes of a type consist of.

    Raises:
        Unsupported: MessagePack lacks a part of it.
    """
    import hashlib

    import msgspec.inspect

    try:
        msgspec.msgpack.Decoder(resolved)
        info = msgspec.inspect.type_info(resolved)
    except Exception as error:  # a forward reference is code, which may raise anything
        raise Unsupported(f"msgspec refuses it: {error}") from error
    digest = hashlib.blake2b(digest_size=8)
    for token in _tokens(info, set()):
        digest.update(token.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _tokens(info: Any, seen: set[Any]) -> Iterator[str]:
    """Walk through what msgspec knows of a type; raise `Unsupported` at what it only guesses."""
    import msgspec
    import msgspec.inspect

    if isinstance(info, msgspec.inspect.CustomType):
        if info.cls is not object:
            raise Unsupported(_lacking(info.cls))
        return
    if isinstance(info, tuple):
        for each in info:
            yield from _tokens(each, seen)
        return
    if not isinstance(info, msgspec.Struct):
        yield repr(info)
        return
    yield type(info).__name__
    cls: Any = getattr(info, "cls", None)
    if cls is not None:
        yield cls.__qualname__
        if cls in seen:
            return
        seen.add(cls)
    if isinstance(info, msgspec.inspect.EnumType):
        yield repr([(name, member.value) for name, member in cls.__members__.items()])
        return
    for name in info.__struct_fields__:
        # Defaults are each process's own; their repr may hold an address.
        if name not in ("cls", "default", "default_factory", "extra_json_schema", "extra"):
            yield name
            yield from _tokens(getattr(info, name), seen)


def _lacking(cls: type) -> str:
    root = cls.__module__.partition(".")[0]
    name = inspect.formatannotation(cls).replace("jaxtyping.", "")[:200]
    if root in ("numpy", "torch", "jaxtyping"):
        return (
            f"MessagePack lacks {name}; annotate the parameter itself with an array, such as "
            'Float32[np.ndarray, "batch n"] or list[np.ndarray], or use codec="pickle"'
        )
    return (
        f"MessagePack lacks {name}; use a dataclass, a msgspec.Struct or another type that it "
        'has, or codec="pickle"'
    )


def checked(annotation: Any, fact: str) -> tuple[Tree, str]:
    """Return description and fingerprint of the ``T`` that a person wrote.

    Raises:
        ConfigError: it cannot travel; *fact* begins the message.
    """
    try:
        tree = describe(annotation)
        check(tree)
        if tree == ANY:
            return tree, ""
        fingerprint(annotation)  # says of the annotation itself why it cannot travel
        # Of what any process makes of the description, which leaves out what does not matter.
        return tree, fingerprint(resolve(tree))
    except (Unsupported, ValueError, LookupError) as reason:
        raise ConfigError(f"{fact}, but {reason}") from None
    except RecursionError:
        raise ConfigError(f"{fact}, but that is a type within itself without end") from None
