"""How an exception travels from the executor to a caller, without pickle.

It becomes the MessagePack array ``[module, qualname, args, message, traceback]``. ``args`` are
what its class is rebuilt from; null stands for ``[message]``, which is what most have, so that
a long message is not sent twice. The receiver looks the class up among the modules it already
has: nothing is imported and nothing is unpickled, so the worst a hostile executor can do is to
have an exception class of the producer called with plain data.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import RemoteError

MIN_LIMIT = 256  # bytes: a class path and the beginning of a message

_CUT = "[...]"
_CLASS_NAME: Any = type.__dict__["__name__"]
_TRACEBACK: Any = BaseException.__dict__["__traceback__"]


def pack_exception(error: BaseException, limit: int, *, trace: bool = True) -> bytes:
    """Return *error*, with its traceback if *trace*, in at most *limit* bytes; never raises.

    That is `MIN_LIMIT` or more.

    Arguments that MessagePack lacks become their repr. What does not fit is given up in this
    order: the beginning of the traceback, the arguments, the end of the message.
    """
    import traceback

    module = _text(lambda: type(error).__module__)
    qualname = _text(lambda: type(error).__qualname__)
    message = _text(lambda: error)
    lines = _text(lambda: "".join(traceback.format_exception(error))) if trace else ""
    fields = [module, qualname, _args(error, message), message]
    if len(_encode([*fields, ""])) > limit:
        fields = [_head(module, limit // 4), _head(qualname, limit // 4), None, ""]
        fields[3] = _head(message, limit - len(_encode([*fields, ""])))
    return _encode([*fields, _tail(lines, limit - len(_encode([*fields, ""])))])


def unpack_exception(data: bytes) -> Exception:
    """Return a new exception that says what `pack_exception` was given.

    It is of the original class if that is an `Exception` which this process has, else a
    `RemoteError`; the executor's traceback stands in its notes. ``StopIteration`` becomes a
    `RemoteError` as well: it would end a loop of the caller, and asyncio cannot deliver it.

    Raises:
        KeyboardInterrupt: sent to this process; nothing else is ever raised.
    """
    import msgspec

    try:
        module, qualname, args, message, trace = msgspec.msgpack.decode(
            data, type=tuple[str, str, list[Any] | None, str, str]
        )
    except Exception:  # not only msgspec's own: deep nesting is a RecursionError
        return RemoteError(
            f"an exception arrived as {len(data)} bytes that are not one; "
            "use one version of shmbatch in both processes"
        )
    error = _rebuild(_find(module, qualname), [message] if args is None else args, message)
    if error is None:
        error = RemoteError(f"{module}.{qualname}: {message}")
    if trace:
        try:
            error.add_note(f"executor traceback:\n{trace.rstrip()}")
        except Exception:  # a frozen dataclass takes no notes
            pass
    return error


def class_name(error: BaseException) -> str:
    """Return the name of the class of *error*, whatever a metaclass makes of it; never raises."""
    return str.__str__(_CLASS_NAME.__get__(type(error)))


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return where *error* comes from, whatever its class makes of it; never raises."""
    trace: TracebackType | None = _TRACEBACK.__get__(error)
    return trace


def _args(error: BaseException, message: str) -> Any:
    """Return what the class wants to be called with, encoded; None for ``[message]``."""
    import msgspec

    try:
        # A class that says how to rebuild it says more: OSError adds its file names.
        reduced: Any = error.__reduce__()
        args = list(reduced[1] if reduced[0] is type(error) else error.args)
        if len(args) == 1 and type(args[0]) is str and args[0] == message:
            return None
        return msgspec.Raw(_encode([_plain(argument) for argument in args]))
    except BaseException:  # see _text
        return None


def _plain(argument: object) -> object:
    try:
        _encode(argument)
    except BaseException:  # see _text
        return _text(lambda: argument if isinstance(argument, str) else repr(argument))
    return argument


def _text(make: Callable[[], object]) -> str:
    """Return ``str(make())`` as UTF-8 can carry it, whatever a user's methods do."""
    try:
        return str(make()).encode("utf-8", "backslashreplace").decode()
    # Even a SystemExit from a user's __str__ must not keep a batch from its outcome.
    except BaseException as fault:
        return f"<{class_name(fault)} while it was described>"


def _encode(value: object) -> bytes:
    import msgspec

    return msgspec.msgpack.encode(value)


def _growth(nbytes: int) -> int:
    """Bytes by which a string of *nbytes* is longer in MessagePack than an empty one."""
    return nbytes + (nbytes > 31) + (nbytes > 0xFF) + 2 * (nbytes > 0xFFFF)


def _head(text: str, room: int) -> str:
    data = text.encode()
    if _growth(len(data)) <= room:
        return text
    return data[: max(room - 4 - len(_CUT), 0)].decode("utf-8", "ignore") + _CUT


def _tail(text: str, room: int) -> str:
    data = text.encode()
    if _growth(len(data)) <= room:
        return text
    kept = room - 4 - len(_CUT)
    return _CUT + data[-kept:].decode("utf-8", "ignore") if kept > 0 else ""


def _find(module: str, qualname: str) -> type[Exception] | None:
    """Return the class of that path if this process has it already."""
    from pathlib import Path

    main = sys.modules.get("__main__")
    main_file = getattr(main, "__file__", None)
    holders: list[object] = [sys.modules.get(module)]
    # The executor imports a user's file under its stem; here it may be the main program.
    if isinstance(main_file, str) and Path(main_file).stem == module:
        holders.append(main)
    for holder in holders:
        found: Any = holder
        try:
            for part in qualname.split("."):
                # Not getattr(): that runs a module's lazy imports.
                found = object.__getattribute__(found, "__dict__")[part]
        except (AttributeError, KeyError, TypeError):
            continue
        if isinstance(found, type) and issubclass(found, Exception):
            return None if issubclass(found, (StopIteration, StopAsyncIteration)) else found
    return None


def _rebuild(cls: type[Exception] | None, args: list[Any], message: str) -> Exception | None:
    """Return an instance that says *message*, or failing that one that says anything."""
    if cls is None:
        return None
    second_best = None
    # Many classes cannot be called with their args: __init__ wants others, or would put
    # words around a message that has them already. Then the instance alone has to do.
    for make in (cls, functools.partial(cls.__new__, cls)):
        try:
            error = make(*args)
            says = str(error)
        except KeyboardInterrupt:  # meant for this process
            raise
        except BaseException:
            continue
        if isinstance(error, cls) and says == message:
            return error
        if isinstance(error, cls) and second_best is None:
            second_best = error
    return second_best
