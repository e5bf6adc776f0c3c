"""Which tests touch a transport: those from which something can be reached that starts an
executor or opens a segment. They run over every transport, the others once.

Found by what a test's code names, that of its fixtures, and that of the helpers in ``tests`` that
these name. A test that names such a thing and yet gets nowhere near a transport, or chooses its
own, is marked ``no_transport``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from shmbatch.protocol import transport
from tests import processes, programs
from tests.crash.points import Victims

STARTERS = (
    *(processes.Served, processes.Supervised, Victims),
    *(programs.started, transport.executor_transport),
)
# Of `programs.ran` only with one of these words; `app.run` cannot be told from its name alone.
_COMMANDS = {"run", "start", "tune"}


def touches_a_transport(metafunc: pytest.Metafunc) -> bool:
    """Say so of a test; fail if a fixture that tests share would serve them all over one."""
    found = _reaches(metafunc.function, set())
    for definitions in metafunc._arg2fixturedefs.values():
        definition = definitions[-1]
        if _reaches(definition.func, set()):
            found = True
            if definition.scope != "function" and "transport" not in definition.argnames:
                raise pytest.UsageError(
                    f"fixture {definition.argname!r} of {metafunc.module.__name__} starts an "
                    f"executor for several tests; it must ask for 'transport'"
                )
    return found


def _reaches(thing: Any, seen: set[int]) -> bool:
    """Whether code of *thing*, or of what it names in ``tests``, names a starter."""
    if any(thing is starter for starter in STARTERS):
        return True
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    for function in _functions(thing):
        names, words = _named(function.__code__)
        values = _values(function, names)
        if {"app", "run"} <= names or (words and any(each is programs.ran for each in values)):
            return True
        if any(_reaches(value, seen) for value in values):
            return True
    return False


def _functions(thing: Any) -> Iterator[FunctionType]:
    """Yield the functions of ours behind *thing*: itself, what it wraps, its methods."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    # Hypothesis keeps the test apart from what it hands to pytest.
    thing = getattr(getattr(thing, "hypothesis", None), "inner_test", thing)
    if not str(getattr(thing, "__module__", "")).startswith(("tests", "test_")):
        return
    if isinstance(thing, type):
        for each in vars(thing).values():
            yield from _functions(getattr(each, "fget", each))
    elif isinstance(thing, FunctionType):
        yield thing


def _named(code: CodeType) -> tuple[set[str], bool]:
    """The names that code uses, inner functions too, and whether a command is a constant."""
    names, words = set(code.co_names), False
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner_names, inner_words = _named(constant)
            names |= inner_names
            words = words or inner_words
        elif isinstance(constant, str | tuple):
            words = words or bool(
                _COMMANDS & {*((constant,) if isinstance(constant, str) else constant)}
            )
    return names, words


def _values(function: Callable[..., Any], names: set[str]) -> list[Any]:
    """What *names* mean in a function's module, and in the modules that they mean."""
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    for module in [value for value in values if isinstance(value, ModuleType)]:
        if module.__name__.startswith("tests"):
            values += [vars(module)[name] for name in names if name in vars(module)]
    return values
