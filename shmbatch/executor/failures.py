"""Which errors the calls of a function got: counted by kind, and logged now and then.

The callers have the errors themselves, tracebacks included. The log has the first of a kind and
then at most one a minute, so that a function which fails all the time does not fill a disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..contract.exceptions import class_name, traceback_of
from ..protocol.clock import now_ns

log = logging.getLogger("shmbatch.executor")

EVERY_NS = 60_000_000_000  # of one kind, one line in this time

_KINDS_MAX = 32  # what a function raises may have any number of names; these are counted apart
_OTHERS = "other"
_NAME_MAX = 80  # characters
_MESSAGE_MAX = 200


@dataclass
class _Kind:
    """What is known of one kind of error."""

    calls: int = 0
    unsaid: int = 0  # calls since the last line in the log
    said_ns: int | None = None


class Failures:
    """Errors of one function's calls. For the loop's thread; `by_kind` for any.

    Args:
        address: of the function, for the log.
        clock: tells the time, nanoseconds.
    """

    def __init__(self, address: str, clock: Callable[[], int] = now_ns) -> None:
        self._address = address
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self.noted: list[tuple[BaseException, int, int]] = []  # and not yet settled

    def note(self, error: BaseException, calls: int = 1, level: int = logging.WARNING) -> None:
        """Note that calls get an error; it is counted and logged by `settle`."""
        self.noted.append((error, calls, level))

    def settle(self) -> None:
        """Count and log what was noted; to be called when the callers have their outcomes."""
        noted, self.noted = self.noted, []
        last: dict[str, tuple[BaseException, int]] = {}
        for error, calls, level in noted:
            name = class_name(error)[:_NAME_MAX]
            if name not in self._kinds and len(self._kinds) >= _KINDS_MAX:
                name = _OTHERS
            kind = self._kinds.setdefault(name, _Kind())
            kind.calls += calls
            kind.unsaid += calls
            last[name] = error, level
        at_ns = self._clock()
        for name, (error, level) in last.items():
            kind = self._kinds[name]
            if kind.said_ns is None or at_ns - kind.said_ns >= EVERY_NS:
                self._say(kind, error, level)
                kind.said_ns, kind.unsaid = at_ns, 0

    def by_kind(self) -> dict[str, int]:
        """Return how many calls failed, by the name of their error's class."""
        return {name: kind.calls for name, kind in self._kinds.copy().items()}

    def _say(self, kind: _Kind, error: BaseException, level: int) -> None:
        since = "" if kind.said_ns is None else " since the last line like this"
        log.log(
            level,
            "%d %s of %s failed%s: %s",
            kind.unsaid,
            "call" if kind.unsaid == 1 else "calls",
            self._address,
            since,
            _described(error),
            exc_info=(type(error), error, traceback_of(error))
            if log.isEnabledFor(logging.DEBUG)
            else None,
        )


def _described(error: BaseException) -> str:
    """Return class, message and place of *error*, on one line."""
    try:
        message = " ".join(str(error).split())[:_MESSAGE_MAX]
    except BaseException as fault:  # a user's __str__
        message = f"<{class_name(fault)} while it was described>"
    trace = traceback_of(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return f"{class_name(error)[:_NAME_MAX]}: {message}{where}"
