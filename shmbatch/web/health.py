"""What a web worker says of its health: that it is alive, and whether its executor is there."""

from __future__ import annotations

import asyncio
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

    async def live() -> dict[str, str]:
        return {"status": "alive"}

    async def ready() -> JSONResponse:
        # In a thread, since it waits; in one that no endpoint can keep busy.
        reason = await asyncio.to_thread(_missing, app) if app is not None else None
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
