"""How long an execution of each function may take, and who ends the process if one takes longer.

The decision is the core's, in a thread that needs no GIL; see ``watchdog.c``. Where a function has
let go of the GIL, as by sleeping or waiting for a device, a thread of ours then ends the process
as `dying` describes. Where it has not, within `GRACE_S`, or where that has not ended the process
within `END_S`, the core's thread does by itself what can be done: producers hear the cause, the
stacks of all threads go to standard error, as far as it is read within `GRACE_S`, status 1.

None of this is there in an executor without a function that has a limit.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..protocol import _core, control
from .dying import PATIENCE_S, Stuck

if TYPE_CHECKING:
    from .served import ServedFunction

# For which somebody may hold the GIL when a limit has passed; or leave standard error unread.
GRACE_S = 1.0
END_S = 2 * PATIENCE_S  # in which `die` has come to its end, if anything is to


class Watchdog:
    """Two threads that run from now to `close`; of the executor's thread, which makes it.

    Args:
        listener: at whose connections the producers are.
        die: ends the process; called by one of the threads.
    """

    def __init__(self, listener: socket.socket, die: Callable[[Stuck], object]) -> None:
        self._die = die
        self._causes: list[str] = []  # by the core's numbers
        self._main = threading.get_ident()
        self._signal = _stacks_signal()
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        self._core = _core.Watchdog(
            *(self._in, listener.fileno(), self._signal),
            *(round(GRACE_S * 1e9), round(END_S * 1e9)),
        )
        self._thread = threading.Thread(target=self._run, name="shmbatch-watchdog", daemon=True)
        self._thread.start()

    def watch(self, function: ServedFunction) -> None:
        """Watch over a function; for any thread.

        One without a limit, too: while it keeps the executor's thread, nothing can be said of the
        others.
        """
        limit_ns = function.definition.failing.execution_timeout_ns
        cause = f"an execution of {function.address} has taken longer than its execution_timeout"
        if limit_ns is not None:
            cause += f", {limit_ns / 1e9:g} s"
        self._causes.append(cause)
        number = self._core.add(
            limit_ns or 0,
            control.lost_packet(cause),
            f"shmbatch: {cause}, and Python does not answer; the executor ends\n".encode(),
            function.fetches,
        )
        function.be_watched(self, self._core, number)

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._in >= 0:
            self._core.close()
            os.write(self._in, b".")  # a fork may hold this end: there may be no end of file
            os.close(self._in)
            self._in = -1
            self._thread.join()
            os.close(self._out)
            if self._signal:
                faulthandler.unregister(self._signal)

    def _run(self) -> None:
        if not os.read(self._out, 1):
            return
        number = self._core.accept()
        if number < 0:
            return  # it was only closed
        stuck = Stuck(self._causes[number])
        self._die(stuck.with_traceback(_stack(self._main)))


def watchdog_over(
    functions: Sequence[ServedFunction],
    listener: socket.socket,
    die: Callable[[Stuck], object],
) -> Watchdog | None:
    """Return what watches over *functions*; None if none of them has a limit."""
    if all(each.definition.failing.execution_timeout_ns is None for each in functions):
        return None
    watchdog = Watchdog(listener, die)
    for each in functions:
        watchdog.watch(each)
    return watchdog


def _stacks_signal() -> int:
    """Have a signal that nobody uses write the stacks of all threads to standard error.

    Return its number; 0 if there is none.
    """
    try:
        taken = _taken_signals()
        for number in range(signal.SIGRTMAX, signal.SIGRTMIN, -1):
            if not taken >> (number - 1) & 1:
                faulthandler.register(number, sys.__stderr__ or 2, all_threads=True)
                return number
    except (OSError, RuntimeError, ValueError):  # closed, or not to be had
        pass
    return 0


def _taken_signals() -> int:
    """Return a bit for each signal that is handled, by C code as well, or ignored."""
    taken = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("SigCgt:", "SigIgn:")):
            taken |= int(line.partition(":")[2], 16)
    return taken


def _stack(thread: int) -> TracebackType | None:
    """Return where a thread is now, as a traceback of what was called from where."""
    frame = sys._current_frames().get(thread)
    trace: TracebackType | None = None
    while frame is not None:
        line = frame.f_lineno or frame.f_code.co_firstlineno  # an instruction may have none
        trace = TracebackType(trace, frame, frame.f_lasti, line)
        frame = frame.f_back
    return trace
