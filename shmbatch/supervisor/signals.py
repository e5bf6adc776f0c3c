"""How a supervisor hears of signals: as numbers at a descriptor, which a fork does not inherit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..protocol.supervision import STOP, STOP_NOW
from ..protocol.terminal import has_terminal

STOPPING = (signal.SIGTERM, signal.SIGINT)
_ALL = (*STOPPING, signal.SIGHUP, STOP, STOP_NOW)


def _ring(number: int, frame: FrameType | None) -> None:
    """Do nothing: the number of the signal goes to the descriptor by itself."""


class Signals:
    """All that a supervisor heeds, for as long as this process lives."""

    def __init__(self) -> None:
        # Who was told to ignore that its terminal goes, as by nohup, has none to lose.
        self._terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()
        self.fd, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._replaced = {each: signal.signal(each, _ring) for each in _ALL}
        self._replaced_fd = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)

    def arrived(self) -> bytes:
        """Return the numbers of those that have arrived; call it when `fd` can be read."""
        return os.read(self.fd, 4096)

    def says_reload(self, number: int) -> bool:
        """Say whether this is a SIGHUP, and not because the terminal is gone."""
        return number == signal.SIGHUP and not (self._terminal and not has_terminal())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Have signals wait meanwhile; in a fork until `leave`, which has handlers of its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)

    def leave(self) -> None:
        """In a fork: have signals do what they did before."""
        signal.set_wakeup_fd(self._replaced_fd)
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._bell)
