"""How long to spin before parking; the same rule for producers and executor.

Spinning answers a call forty times sooner than sleeping. Where it pays, it even costs less CPU,
for two wake-ups take longer than the whole call; where it does not, it takes a CPU from those who
are waited for. Which of the two it is nobody can know from the number of CPUs, or of producers. So
`auto` tries: it spins for little more than a wake-up takes, goes on as long as that brings what
it waits for, and else parks ever longer before it tries again; see ``spinning.c``. At worst one
wait of 257 is longer by a spin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .settings import setting

if TYPE_CHECKING:
    from ._core import Spinning

MODES = ("auto", "spin", "park")

_SPIN_NS = 5_000_000  # with `spin`: longer than nearly every call, shorter than a person notices


def wait_mode(mode: str | None) -> str:
    """Return *mode*, else what SHMBATCH_WAIT says, else ``"auto"``.

    Raises:
        ConfigError: it is none of `MODES`.
    """
    return setting("wait", mode, MODES)


def spinning_for(mode: str, auto_ns: int) -> Spinning:
    """Return how long to spin.

    Args:
        mode: one of `MODES`.
        auto_ns: how long `auto` spins where it pays.
    """
    from ._core import Spinning  # not above: the command line only asks for the modes

    if mode == "auto":
        return Spinning(auto_ns, True)
    return Spinning(_SPIN_NS if mode == "spin" else 0, False)
