"""How long to spin before parking; the same rule for producers and executor.

Spinning answers a call forty times sooner than sleeping, if a CPU is spare for it, and halves
everybody's throughput if none is. So `auto` spins only while fewer producers are active than
there are CPUs, which leaves one for the other side, and backs off where spinning does not pay:
after a spin in vain it parks 1, 2, 4, ... up to 64 times before it tries again; a spin that
succeeds resets this.
"""

from __future__ import annotations

from .cpus import usable_cpus
from .settings import setting

MODES = ("auto", "spin", "park")

_SPIN_NS = 5_000_000  # with `spin`: longer than nearly every call, shorter than a person notices
_SKIP_MAX = 64


def wait_mode(mode: str | None) -> str:
    """Return *mode*, else what SHMBATCH_WAIT says, else ``"auto"``.

    Raises:
        ConfigError: it is none of `MODES`.
    """
    return setting("wait", mode, MODES)


class Spinning:
    """`spin_ns` is how long to spin next; `parked` must hear of each wait that had to park.

    Args:
        mode: one of `MODES`.
        auto_ns: how long `auto` spins where it does.
    """

    __slots__ = ("_auto_ns", "_cpus", "_next_skip", "_skip", "_won", "spin_ns")

    def __init__(self, mode: str, auto_ns: int) -> None:
        self._cpus = usable_cpus()
        self._auto_ns = auto_ns if mode == "auto" and self._cpus > 1 else 0
        self._won = 0
        self._skip = 0
        self._next_skip = 1
        self.spin_ns = _SPIN_NS if mode == "spin" else self._auto_ns

    @property
    def crowd(self) -> int:
        """So many active producers that nobody who parks begins to spin; 0: nobody learns when
        to, so `parked` need not hear."""
        return self._cpus if self._auto_ns else 0

    def parked(self, *, won: int, active: int) -> None:
        """Choose how long to spin next, after a wait that parked.

        Args:
            won: how many spins have succeeded so far.
            active: how many producers called lately.
        """
        if not self._auto_ns:
            return
        if self.spin_ns:  # in vain
            if won != self._won:
                self._won = won
                self._next_skip = 1
            self._skip = self._next_skip
            self._next_skip = min(2 * self._next_skip, _SKIP_MAX)
            self.spin_ns = 0
        else:
            self._skip -= 1
        if self._skip <= 0 and active < self._cpus:
            self.spin_ns = self._auto_ns
