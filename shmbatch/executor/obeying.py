"""How an executor obeys its supervisor: when it drains, and when another one replaces it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import HandshakeError, ShmbatchError
from ..protocol.clock import now_ns
from ..protocol.orders import Orders
from .tenure import Tenure

log = logging.getLogger("shmbatch.executor")


class Obedience:
    """What to do when the supervisor orders something, or is gone; for the control thread.

    Args:
        drain: called when the executor is to drain, any number of times.
        end: called with an exit status when it is to end at once.
        replaced: called when another one has taken over: accept nobody more, drain.
    """

    def __init__(
        self,
        orders: Orders,
        tenure: Tenure,
        *,
        drain: Callable[[], None],
        end: Callable[[int], None],
        replaced: Callable[[], None],
    ) -> None:
        self._orders = orders
        self._tenure = tenure
        self._drain = drain
        self._end = end
        self._replaced = replaced
        #: Descriptors to be looked at, and what to call when one can be read: False to end that.
        pidfd, _ = orders.supervisor.fds()
        self.watches = {pidfd: self._orphaned, orders.fileno(): self._ordered}

    def fds(self) -> tuple[int, int]:
        """Return what producers get: the supervisor's pidfd and its notice."""
        return self._orders.supervisor.fds()

    def ask_for_reload(self, sock_fd: int) -> None:
        """Have the supervisor reload, and answer at this socket.

        Raises:
            HandshakeError: it does not read.
        """
        log.info("a reload is asked for")
        if not self._orders.say("reload", [sock_fd]):
            raise HandshakeError(
                f"the supervisor (process {self._orders.keeper}) does not read what it is told; "
                f"see whether it is stopped"
            )

    def _orphaned(self) -> bool:
        log.info("the supervisor of this executor is gone")
        self._drain()
        return False

    def _ordered(self) -> bool:
        try:
            order = self._orders.next()
        except BlockingIOError:
            return True
        if order is None:
            return False
        if order == "stop":
            self._drain()
        elif order == "end":
            self._end(0)
        elif order == "yield":
            self._tenure.give_up()
            self._orders.say("yielded")
        elif order == "take":
            self._take()
        elif order == "replaced":
            at_ns = now_ns()
            self._replaced()
            self._orders.say("released", at_ns=at_ns)
        return True

    def _take(self) -> None:
        try:
            self._tenure.take()
        except (ShmbatchError, OSError) as error:
            # Whoever has the name will keep it: the supervisor gives it back to the old one.
            log.error("cannot take the name over: %s", error)
            self._orders.say("failed", error=type(error).__name__, message=str(error))
            self._end(1)
        self._orders.say("taken", at_ns=now_ns())
