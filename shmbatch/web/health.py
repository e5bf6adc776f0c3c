"""What a web worker says of its health: that it is alive, and whether its executor is there."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from ..client.asking import statistics
from ..errors import ShmbatchError

if TYPE_CHECKING:
    from fastapi import FastAPI

LIVE, READY = "/livez", ("/readyz", "/healthz")
PATHS = frozenset((LIVE, *READY))

_ANSWER_S = 1.0  # an executor that has not answered by then is not ready


def add_health(site: FastAPI, app: str | None) -> None:
    """Have *site* answer at ``/livez``, and at ``/readyz`` alias ``/healthz``.

    Args:
        app: whose executor is to be there; None if none is needed.
    """

    # Of their own: endpoints may keep those of the event loop busy.
    threads = ThreadPoolExecutor(1, "shmbatch-health")
    asked: asyncio.Future[str | None] | None = None

    async def live() -> dict[str, str]:
        return {"status": "alive"}

    async def ready() -> JSONResponse:
        nonlocal asked
        reason = None
        if app is not None:
            if asked is None or asked.done():  # once for all who wait
                asked = asyncio.get_running_loop().run_in_executor(threads, _missing, app)
            reason = await asyncio.shield(asked)
        if reason is not None:
            return JSONResponse({"status": "not ready", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    site.add_api_route(LIVE, live, include_in_schema=False)
    for path in READY:
        site.add_api_route(path, ready, include_in_schema=False)


def _missing(app: str) -> str | None:
    """Say why calls of *app*'s functions would fail; None if they would not."""
    try:
        state = statistics(app, timeout=_ANSWER_S)["state"]
    except ShmbatchError as error:
        return str(error)
    return None if state == "serving" else f"the executor of {app!r} is {state}"
