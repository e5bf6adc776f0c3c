"""What time it is where nobody waits, and what happens when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from numbers import Real

from ..contract.checking import shown
from ..errors import ConfigError
from ..executor.batcher import NEVER_NS

START_NS = 1_000_000_000_000  # a while after zero, so that nothing is due before there was time

_SECONDS_MAX = 1e9  # thirty years, in nanoseconds well below NEVER_NS


def nanoseconds(name: str, seconds: object) -> int:
    """Return virtual seconds that a person wrote, in nanoseconds.

    Raises:
        ConfigError: they are no number, or not from 0 to 1e9.
    """
    number = float(seconds) if isinstance(seconds, Real) else -1.0
    if not 0 <= number <= _SECONDS_MAX:
        raise ConfigError(
            f"{name} is {shown(seconds)}; use virtual seconds from 0 to {_SECONDS_MAX:g}"
        )
    return round(number * 1e9)


class VirtualClock:
    """Stands still until it is moved; on its way, what was scheduled happens.

    What an action raises is kept in `troubles` as well: while a function runs, the executor would
    take it for the function's.
    """

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.troubles: list[BaseException] = []
        self._actions: list[tuple[int, int, Callable[[], object]]] = []
        self._order = count()

    def read(self) -> int:
        """Return what time it is, nanoseconds."""
        return self.now_ns

    def at(self, at_ns: int, action: Callable[[], object]) -> None:
        """Have *action* happen at a time; at once, when the clock is next moved, if that is past.

        Actions of one time happen in the order in which they were scheduled.
        """
        heapq.heappush(self._actions, (at_ns, next(self._order), action))

    @property
    def next_ns(self) -> int:
        """When the next action happens; `NEVER_NS` if none is scheduled."""
        return self._actions[0][0] if self._actions else NEVER_NS

    def move(self, to_ns: int) -> None:
        """Move on, never back, and let happen what happens until then."""
        while self._actions and self._actions[0][0] <= to_ns:
            at_ns, _, action = heapq.heappop(self._actions)
            self.now_ns = max(self.now_ns, at_ns)
            self.noting(action)
        self.now_ns = max(self.now_ns, to_ns)

    def noting(self, step: Callable[[], object]) -> None:
        """Take a step whose errors are nobody else's."""
        try:
            step()
        except BaseException as error:
            self.troubles.append(error)
            raise
