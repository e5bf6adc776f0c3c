"""How the executor waits when nothing can be launched: spin, park, or its event loop.

Three places to wait, one bell. Spinning reads the bell; parking announces itself in the bell and
sleeps through the transport; while async batches are in flight the executor waits in the event
loop, announces that in the bell, and is woken through a datagram socket. Datagrams because both
ends say per message that they do not block: no producer can make another one, or the executor,
wait by what it does to a shared descriptor. Nor by descriptors that it sends along, which to close
may take time: from Linux 6.16 on the socket takes none, before that it is looked at, and is heard
no more once it has some: then the slices below are all that wakes the executor there.

Every wait ends after `SLICE_NS`, whatever a producer has done to the bell.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from ..protocol import control
from ..protocol._core import PARKED, POLLING
from ..protocol.clock import now_ns
from ..protocol.spinning import spinning_for
from ..protocol.transport import ExecutorTransport
from . import closing

log = logging.getLogger("shmbatch.executor")

SLICE_NS = 50_000_000

_SPIN_NS = 50_000  # of `auto`
_SO_PASSRIGHTS = 83  # Linux 6.16; the socket module does not name it
_DATAGRAMS_MAX = 64  # read in one go; a producer may send them faster than they are read


class Poller:
    """Waits for the bell. `wake` may be called from any thread and from signal handlers."""

    def __init__(self, transport: ExecutorTransport, mode: str) -> None:
        self.bell = transport.bell
        self._is_spoilt = False  # the socket must not be read
        self._park = transport.park
        self._wake = transport.wake
        self._spinning = spinning_for(mode, _SPIN_NS)
        self._inner, self.producers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inner.setblocking(False)
        self._takes_descriptors = not _refuses_descriptors(self._inner)
        self.producers_end.setblocking(False)

    def spin(self, seen: int, until_ns: int, calls: int) -> int:
        """Return what the bell reads: at once if not *seen*, else when *calls* were published.

        Return *seen* at *until_ns*, when the time to spin is over, at once where spinning does
        not pay. Calls that come, if too few, give it that time again, up to four times in all.
        `wake` ends it; a producer's urgent ring may have to wait until then. Look at the rings
        only after this: what was rung for the word is in them.
        """
        return self.bell.spin(self._spinning, seen, until_ns, calls)

    def park(self, seen: int, until_ns: int, calls: int) -> int:
        """Sleep while the bell reads *seen*, until *until_ns* at most; return what it reads.

        Args:
            calls: sleep on while fewer calls than this have been published.
        """
        timeout_ns = until_ns - now_ns()
        if timeout_ns <= 0:
            return self.bell.look()
        word = self._park(seen, timeout_ns if timeout_ns < SLICE_NS else SLICE_NS, calls)
        self._spinning.slept()
        return word

    def wait_in_loop(
        self, loop: asyncio.AbstractEventLoop, seen: int, until_ns: int, calls: int
    ) -> int:
        """As `park`, running *loop* meanwhile; its `stop` ends the wait too."""
        timeout_ns = min(SLICE_NS, until_ns - now_ns())
        if timeout_ns <= 0 or not self.bell.arm(seen, POLLING, calls):
            loop.call_soon(loop.stop)  # one round, so that tasks get on
            loop.run_forever()
            return self.bell.look()
        if not self._is_spoilt:
            loop.add_reader(self._inner, self._heard, loop)
        timer = loop.call_later(timeout_ns / 1e9, loop.stop)
        try:
            loop.run_forever()
        finally:
            timer.cancel()
            self.bell.disarm()
        return self.bell.look()

    def wake(self) -> None:
        """End the wait in progress, or the next one."""
        sleeping = self.bell.ring()
        if sleeping & PARKED:
            self._wake()
        if sleeping & POLLING:
            try:
                self.producers_end.send(b"!", socket.MSG_DONTWAIT)
            except OSError:
                pass  # full: it has been woken already

    def close(self) -> None:
        """Close both ends of the socket; idempotent."""
        closing.close(self._inner)
        self.producers_end.close()

    def _heard(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for _ in range(_DATAGRAMS_MAX):
                if self._takes_descriptors and control.brings_descriptors(self._inner):
                    loop.remove_reader(self._inner)
                    self._is_spoilt = True
                    log.error("a producer has sent descriptors to the loop, which will wake late")
                    break
                self._inner.recv(16)
        except OSError:
            pass
        loop.stop()


def _refuses_descriptors(sock: socket.socket) -> bool:
    """Have *sock* take no descriptors; say whether this kernel can do that."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True
