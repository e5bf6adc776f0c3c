"""Which requests a worker takes on: so many at a time, and each connection's last as it drains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from .health import PATHS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Admission:
    """An ASGI app that passes requests on to another.

    Args:
        limit: most requests in progress; one more is answered with 503 at once. Whoever asks for
            the worker's health is not counted and always let in.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.draining = False  # have every connection closed after the next response
        self._app = app
        self._limit = limit
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if self.draining and message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        if scope["path"] in PATHS:
            await self._app(scope, receive, sent)
        elif self._in_progress >= self._limit:
            detail = f"this worker has {self._in_progress} requests in progress; try again"
            refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
            await refusal(scope, receive, sent)
        else:
            self._in_progress += 1
            try:
                await self._app(scope, receive, sent)
            finally:
                self._in_progress -= 1
