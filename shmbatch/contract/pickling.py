"""Values as pickles of protocol 5, with large buffers beside them; only where it was asked for.

A payload is three or more pieces, each at a multiple of 16 bytes::

    u64 count of sizes | u64 size of the pickle | u64 size of each buffer    the header
    pickle
    buffers, which numpy and others take as they are
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

from ..errors import InputError, InputTypeError, InputValueError
from . import schema
from .coercion import refuse_size, shown
from .columns import Column
from .pieces import Pieces, align

_PROTOCOL = 5


class Pickle:
    """Packs the values of one column.

    Args:
        module: what ``__main__`` means in a pickle that comes from elsewhere; None for this
            process's own main program.
    """

    def __init__(self, column: Column, module: str | None) -> None:
        self._max_bytes = column.max_bytes
        self._module = module

    def pack(self, value: object, subject: str) -> Pieces:
        buffers: list[pickle.PickleBuffer] = []
        try:
            data = pickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append)
            raw = [buffer.raw() for buffer in buffers]
        except RecursionError:
            raise InputValueError(
                f"{subject} is nested too deep to be pickled; use lists beside each other"
            ) from None
        except Exception as error:  # pickle's own, and what a user's __reduce__ raises
            raise InputTypeError(
                f"{subject} cannot be pickled, got {shown(value)}: {_reason(error)}; "
                "use what stands at the top of a module, and no locks, files or generators"
            ) from error
        sizes = (len(data), *(each.nbytes for each in raw))
        header = struct.pack(f"={1 + len(sizes)}Q", len(sizes), *sizes)
        end = 0
        for nbytes in (len(header), *sizes):
            end = align(end) + nbytes
        if end > self._max_bytes:
            refuse_size(end, "pickled", self._max_bytes, subject)
        return Pieces((header, data, *raw))

    def unpack(self, payload: Any, subject: str) -> Any:
        """Return the value; its arrays are views of *payload*."""
        view = memoryview(payload)
        try:
            data, *buffers = _pieces(view)
            return _Unpickler(data, buffers, self._module).load()
        except _Missing as missing:
            raise InputTypeError(
                f"{subject} has a {missing.args[0]}, which this process cannot import "
                f"({missing.args[1]}); put the class into a module that both processes have"
            ) from None
        except KeyboardInterrupt as error:
            if self._module is None:  # meant for this process
                raise
            raise _unreadable(subject, len(view), error) from error
        except BaseException as error:  # whatever a user's __setstate__ raises, SystemExit too
            raise _unreadable(subject, len(view), error) from error


class _Missing(Exception):
    """There is no such class here."""


class _Unpickler(pickle.Unpickler):
    """Looks classes of a main program up where others import its file."""

    def __init__(self, data: memoryview, buffers: list[memoryview], module: str | None) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._main = module

    def find_class(self, module: str, name: str) -> Any:
        fault: Exception | None = None
        mains = [self._main] if module == "__main__" and self._main else []
        for each in (*mains, module):
            try:
                found: Any = schema.find_module(each)
                for part in name.split("."):
                    found = getattr(found, part)
                return found
            except Exception as error:  # a module may raise anything
                fault = fault or error
        raise _Missing(f"{module}.{name}", _reason(fault))


def _pieces(view: memoryview) -> list[memoryview]:
    """Return pickle and buffers; *view* is not trusted."""
    (count,) = struct.unpack_from("=Q", view)
    if not 1 <= count <= len(view) // 8 - 1:
        raise ValueError("its header is broken")
    at = 8 * (1 + count)
    pieces = []
    for nbytes in struct.unpack_from(f"={count}Q", view, 8):
        at = align(at)
        if nbytes > len(view) - at:
            raise ValueError("its header is broken")
        pieces.append(view[at : at + nbytes])
        at += nbytes
    return pieces


def _unreadable(subject: str, nbytes: int, error: BaseException) -> InputError:
    return InputValueError(f"{subject} cannot be unpickled, got {nbytes} bytes: {_reason(error)}")


def _reason(error: BaseException | None) -> str:
    try:
        return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    except BaseException:  # a user's __str__
        return type(error).__name__
