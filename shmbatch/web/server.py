"""How a web worker serves a socket that others listen on too, and how it stops serving it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from ..protocol.clock import now_ns
from .admitting import Admission

# A connection without a request gets this long to send one: it may be on its way.
_LINGER_NS = 1_000_000_000
_LOOK_S = 0.02

# As many does a worker take at once of those who wait, and leaves the others to its neighbours.
_ACCEPTED_AT_ONCE = 2


class Shared(socket.socket):
    """A socket on which somebody else listens already; how many may wait is their business."""

    def listen(self, backlog: int = 0, /) -> None:
        pass


class Server(uvicorn.Server):
    """uvicorn's server; when it stops, no request is lost that has reached this process.

    uvicorn alone closes every connection that has no request in progress, though one may have
    just been sent. Here each of them has its next request answered, and is closed then.

    Args:
        ready: called when it accepts connections.
    """

    def __init__(self, admission: Admission, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                admission,
                loop="asyncio",  # uvloop listens itself, and with that sets how many may wait
                lifespan="on",
                backlog=_ACCEPTED_AT_ONCE,
                log_config=None,
                access_log=False,
            )
        )
        self._admission = admission
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._admission.draining = True
        until_ns = now_ns() + _LINGER_NS
        # At least once: who has just been accepted is not among the connections yet.
        await asyncio.sleep(_LOOK_S)
        while self.server_state.connections and not self.force_exit and now_ns() < until_ns:
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)
