"""How the executor ends when it cannot go on: who is told, in which order, what is left out.

After an illegal access nothing works that asks the device, and whoever asks may wait for ever:
torch's atexit functions, the destructors of its memory, events and graphs. A function that is
stuck may hold whatever they need. So none of them runs; the process is over as soon as everybody
has been told and the names are gone.

::

    producers        hear the cause and are hung up on; first, since they wait
    log              one line and the traceback, at CRITICAL
    service manager  a status
    names            of socket, lock and semaphores are removed
    process          ends with status 1

None of these may keep the others from their turn for ever, as a log does that nobody reads: after
`PATIENCE_S` a thread that needs neither the interpreter nor its lock ends the process.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from ..contract.exceptions import class_name

log = logging.getLogger("shmbatch.executor")

PATIENCE_S = 5.0

_LINE_MAX = 500  # characters of an error's message


class Fatal(Exception):
    """This process cannot go on. Its message is the cause, one line that every caller is told."""

    said: str  # of the executor, in its log and by the service manager


class Stuck(Fatal):
    """An execution takes longer than it may; its traceback is where the executor's thread is."""

    said = "is stuck"


class DeviceLost(Fatal):
    """The device works no more for this process; raised out of `Loop.run`, to end it."""

    said = "has lost its device"

    @classmethod
    def because(cls, error: BaseException, address: str) -> DeviceLost:
        """Return what to raise from *error*, with which the function at *address* met the loss.

        Of the message its first line is told; in those of CUDA the others are advice.
        """
        try:
            line = next(iter(str(error).strip().splitlines()), "")[:_LINE_MAX]
        except BaseException:  # a class of the user's
            line = ""
        name = class_name(error)
        return cls(f"{line} ({name}) in {address}" if line else f"{name} in {address}")


def die(
    name: str,
    fatal: Fatal,
    *,
    hang_up: Callable[[str], None],
    notify: Callable[..., None],
    end: Callable[[int], None],
) -> None:
    """Tell everybody and end this process with status 1.

    Args:
        name: that this executor serves.
        hang_up: tells producers the cause; see `Control.hang_up`.
        notify: tells a service manager.
        end: removes names and ends the process with a status, running no destructors.
    """
    try:
        gc.disable()  # it would come upon the device's memory
        with suppress(OSError, RuntimeError):  # no descriptor for it, or no thread
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=nowhere)
        try:
            hang_up(str(fatal))
        except Exception:
            log.exception("a fault while producers were told that %s dies", name)
        log.critical("%s %s and ends: %s", name, fatal.said, fatal, exc_info=fatal)
        notify(STATUS=f"{fatal.said}: {fatal}")
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or None
                stream.flush()
    finally:
        try:
            end(1)
        finally:
            os._exit(1)
